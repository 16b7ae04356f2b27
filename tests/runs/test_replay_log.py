"""Stored transitions beside the checkpoint: written once, exact after kills, refused where damaged."""

import json
import random
import time

import jaxtyping
import pytest
import torch
from problems import command_line, experiment, library, outcome, play, start_process
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
import torchq.runs.memory
import torchq.runs.training
from torchq.errors import CheckpointError
from torchq.runs.replay_log import ReplayLog, clean

SHORT = library(episode_length=5)
SMALL = ("--algo", "stlrq", "--env", "pendulum", "--num-seeds", 2, "--rank", 3, "--no-optimal", "--device", "cpu",
         "--no-progress", "--replay-batch", 2, "--replay-capacity", 12, "--eval-every", 2)  # fmt: skip


def written(count, slots=10, start=0):
    """A memory in which transition n is the number n everywhere."""
    memory = torch.zeros(2, 3, slots, 5)
    for number in range(start, count):
        memory[:, :, number % slots] = number
    return memory


def test_every_transition_is_written_once_and_old_files_go(tmp_path):
    log, sizes = ReplayLog(tmp_path, capacity=6), []
    for count in (2, 3, 3, 7, 12, 13):
        segments = log.append(written(count), count)
        clean(tmp_path, log.names)
        sizes.append([(segment.first, segment.end) for segment in segments])
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(segment.name("") for segment in segments)
    assert sizes == [
        [(0, 2)], [(0, 2), (2, 3)], [(0, 2), (2, 3)], [(0, 2), (2, 3), (3, 7)], [(3, 7), (7, 12)],
        [(7, 12), (12, 13)],
    ]  # fmt: skip
    again = torch.zeros(2, 3, 8, 5)
    ReplayLog(tmp_path, 6, segments).restore(again, 13)
    assert {number % 8: number for number in range(7, 13)} == {
        slot: int(again[0, 0, slot, 0]) for slot in range(8) if again[0, 0, slot, 0]
    }


def test_more_than_the_capacity_at_once_leaves_out_what_is_never_drawn(tmp_path):
    (segment,) = ReplayLog(tmp_path, capacity=6).append(written(29, start=19), 29)
    assert (segment.first, segment.end) == (23, 29)
    assert load_file(tmp_path / segment.name(""))["transitions"][0, 0, :, 0].tolist() == list(range(23, 29))


def test_much_at_once_is_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("torchq.runs.replay_log._SEGMENT_BYTES", 2 * 3 * 5 * 4 * 3)  # Three transitions of every task.
    segments = ReplayLog(tmp_path, capacity=8).append(written(8), 8)
    assert [(segment.first, segment.end) for segment in segments] == [(0, 3), (3, 6), (6, 8)]
    again = torch.zeros(2, 3, 10, 5)
    ReplayLog(tmp_path, 8, segments).restore(again, 8)
    assert torch.equal(again, written(8))


@pytest.mark.parametrize("damage", ["missing", "truncated", "another", "a gap", "nonsense"])
def test_damaged_segments_are_one_line(tmp_path, damage):
    log = ReplayLog(tmp_path, capacity=6)
    log.append(written(3), 3)
    segments = log.append(written(7), 7)
    path = tmp_path / segments[1].name("")
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "another":
        path.write_bytes((tmp_path / segments[0].name("")).read_bytes())
    listed = {"a gap": segments[1:], "nonsense": [7]}.get(damage, segments)
    with pytest.raises(CheckpointError, match=r"^checkpoint: [^\n]+$"):
        ReplayLog(tmp_path, 6, listed).restore(torch.zeros(2, 3, 10, 5), 7)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -9), out + err
    return process.returncode


def equal(one, other):
    """The same rows, tensors and counters; segments are cut where checkpoints happened to be."""
    ours, theirs = outcome(one), outcome(other)
    assert ours[:2] == theirs[:2]
    for index in (ours[2], theirs[2]):
        assert index.pop("replay")
    assert ours[2] == theirs[2]


def test_a_run_with_replay_that_is_killed_resumes_exactly(tmp_path):
    """A checkpoint after every round; 60 transitions a task and more go through a memory of 40."""
    arguments = ("--algo", "stlrq", "--env", "pendulum", "--episodes", 14, "--num-seeds", 2, "--rank", 3,
                 "--replay-capacity", 140, "--replay-recent", 1, "--no-optimal", "--device", "cpu", "--eval-every", 2,
                 "--engine", "fused")  # fmt: skip
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    assert finish(start_process(*arguments, "--out", quiet)) == 0
    moments, deaths = random.Random(2), 0
    for _ in range(3):
        process = start_process(*arguments, "--out", killed, *(["--resume"] if killed.exists() else []))
        deadline = time.monotonic() + 60
        while not (killed / "checkpoint" / "checkpoint.json").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.02 if deaths == 0 else 3.0))
        process.kill()
        deaths += finish(process) != 0
    assert deaths
    assert finish(start_process(*arguments, "--out", killed, "--resume")) == 0
    equal(killed, quiet)
    (tmp_path / "killed" / "checkpoint" / "replay-left-over.safetensors").write_text("of a process that was killed")
    longer = ("--episodes", 16, "--resume")
    for folder in (quiet, killed):
        assert command_line(*longer, "--out", folder)[0] == 0
    equal(killed, quiet)
    assert not list(killed.glob("checkpoint/*left-over*"))


def test_blocks_of_rounds_leave_what_the_position_before_can_draw(tmp_path, monkeypatch):
    """Ctrl-C inside a block that would write over the oldest: the checkpoint is that of a run of so many rounds."""
    given = (*SMALL, "--engine", "fused", "--out")
    assert command_line(*given, tmp_path / "a", "--episodes", 9, library=SHORT)[0] == 0
    original = torchq.runs.experiment.Experiment.play_block

    def interrupted(self, state, first, count):
        result = original(self, state, first, count)
        if first + count >= 30:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(torchq.runs.training, "BLOCK_SECONDS", 100.0)
    monkeypatch.setattr(torchq.runs.experiment.Experiment, "play_block", interrupted)
    command_line(*given, tmp_path / "b", "--episodes", 60, library=SHORT)
    stopped = json.loads((tmp_path / "b" / "checkpoint" / "checkpoint.json").read_text())["episode"]
    assert 20 <= stopped < 30
    monkeypatch.undo()
    assert command_line("--resume", "--out", tmp_path / "b", library=SHORT)[0] == 0
    assert command_line(*given, tmp_path / "c", "--episodes", 60, library=SHORT)[0] == 0
    equal(tmp_path / "b", tmp_path / "c")


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_run_i_of_many_is_the_only_run_of_its_seed(engine):
    """Bit for bit fused, to rounding in batched kernels: draws from memory do not depend on neighbours."""
    given = {"library": library(episode_length=30), "engine": engine, "rank": 4, "episodes": 3, "dtype": "float64"}
    many = play(experiment("stlrq", "wireless", num_seeds=3, seed=5, **given), 2)
    alone = play(experiment("stlrq", "wireless", num_seeds=1, seed=6, **given), 2)
    tolerance = 0.0 if engine == "fused" else 1e-9
    pairs = [(many.replay[1:2], alone.replay)]
    pairs += [(ours[1:2], theirs) for ours, theirs in zip(many.learner.target, alone.learner.target, strict=True)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_tensorboard_shows_the_fill_and_what_the_target_expects(tmp_path):
    assert command_line(*SMALL, "--episodes", 4, "--out", tmp_path / "run", library=SHORT)[0] == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    fills = [event.value for event in events.Scalars("replay/fill")]
    assert fills[-1] == 1.0
    assert all(abs(event.value) < 1000 for event in events.Scalars("train/target_value"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "paper", "--replay-ratio", 1), "--replay-ratio: expected 0 with --preset paper (tasks take turns), got 1"),
        (("--replay-ratio", 0, "--replay-batch", 4), "--replay-batch: expected only with --replay-ratio of at least 1, got 0"),
        (("--replay-capacity", 0), "--replay-capacity: expected an integer of at least 1 and at most 2,147,483,648, got 0"),
        (("--replay-recent", 0), "--replay-recent: expected a number of above 0 and at most 1, got 0"),
        (("--target-rate", 1.5), "--target-rate: expected a number of at least 0 and at most 1, got 1.5"),
        (("--features", "cubic"), "--features: expected one of cells, linear, got 'cubic'"),
        (("--features", "linear", "--state-modes", "joint"), "--features: expected cells with --state-modes joint (one row for each cell), got linear"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(flags, message, tmp_path):
    code, _, err = command_line("--algo", "stlrq", "--env", "pendulum", *flags, "--out", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert message in err, err


def test_one_joint_mode_is_of_cells_unless_asked(tmp_path):
    assert experiment("stlrq", "pendulum", state_modes="joint", num_seeds=1).config.features == "cells"


def test_dimensions_of_a_family_that_are_not_as_expected_are_named():
    angle = envs.Dimension(-3.0, 3.0, 4)
    wrong = {
        "'spherical'": (angle, envs.Dimension(-8.0, 8.0, 4, "spherical")),
        "got 1": (angle,),
        "got 0": (),
        "expected an integer, got 4.0": (angle, envs.Dimension(-8.0, 8.0, 4.0)),
        "expected finite numbers, got -inf": (angle, envs.Dimension(-float("inf"), 8.0, 4)),
    }
    message = (
        "env: expected dimensions with low, high, points and a kind of continuous, periodic, quadratic, log, category"
    )
    jaxtyping.config.update("jaxtyping_disable", True)  # It would be the first to see some of them.
    try:
        for what, dimensions in wrong.items():
            odd = type("Odd", (envs.Pendulum,), {"dimensions": dimensions})
            with pytest.raises(ValueError, match=f"{message}, but Odd has others.*{what}"):
                experiment("stlrq", "pendulum", library={"pendulum": odd})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_states_that_become_nan_are_one_line(engine, tmp_path):
    """And index nothing outside the factors, from memory neither."""
    import families as users

    def step(self, tasks, state, action, uniforms):
        after, *rest = envs.Pendulum.step(self, tasks, state, action, uniforms)
        return after._replace(theta_dot=torch.where(after.elapsed > 3, torch.nan, after.theta_dot)), *rest

    short = {"pendulum": lambda: users.broken(step)(episode_length=30)}
    code, _, err = command_line(
        *SMALL, "--episodes", 4, "--engine", engine, "--out", tmp_path / "run", library=short
    )  # fmt: skip
    assert code == 2
    assert "became NaN or infinite between episodes 1 and 2" in err


def test_a_run_that_goes_on_draws_from_what_it_drew_from_whatever_memory_is_free(tmp_path, monkeypatch):
    """Little memory when it begins, and less, or more, when it goes on: the same bytes as one that never stopped."""
    given = (*SMALL[:-4], "--replay-batch", 2, "--replay-capacity", 1000, "--eval-every", 2, "--engine", "fused")
    monkeypatch.setattr(torchq.runs.memory, "too_large", lambda *ignored: {})
    monkeypatch.setattr(torchq.runs.memory, "available", lambda device: 2 * 20 * 8 * 35)
    for name, episodes in (("a", 20), ("b", 8)):
        code, out, err = command_line(*given, "--episodes", episodes, "--out", tmp_path / name, library=SHORT)
        assert code == 0, err
        assert "at most 20, not 1,000: that is what memory allows" in out + err
    for free, episodes in ((10_000, 14), (10**9, 20)):
        monkeypatch.setattr(torchq.runs.memory, "available", lambda device, free=free: free)
        assert command_line("--resume", "--episodes", episodes, "--out", tmp_path / "b", library=SHORT)[0] == 0
    equal(tmp_path / "a", tmp_path / "b")
