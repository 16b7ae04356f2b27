import csv
import json
import random
import sys
import time

import numpy as np
import pytest
import torch
from problems import command_line, experiment, library, outcome, start_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
import torchq.runs.training
from torchq.checkpoint import load_checkpoint
from torchq.errors import DivergedError
from torchq.runs import positions
from torchq.runs.metrics import Metrics

SMALL = (
    "--env",
    "gridworld",
    "--num-seeds",
    2,
    "--episodes",
    6,
    "--no-optimal",
    "--engine",
    "eager",
    "--device",
    "cpu",
)


def run(folder, *arguments, algo="stlrq", environments=None):
    code, out, err = command_line("--algo", algo, *SMALL, "--out", folder, *arguments, library=environments)
    assert code == 0, err
    return out


def test_what_falls_apart_is_found_and_noise_is_not():
    steps = np.arange(1, 41)
    rising = -100.0 + 90.0 * (1 - np.exp(-steps / 5.0)) + np.random.default_rng(0).normal(size=40)
    falling = np.where(steps < 20, rising, -500.0)
    metrics = Metrics(steps, 100 * steps, np.stack([rising, falling], axis=1)[:, None].repeat(3, axis=1))
    ((task, best, samples, last),) = metrics.fallen()
    assert (task, last) == (1, -500.0)
    assert best > -15
    assert 500 < samples < 2000
    assert Metrics(steps[:4], steps[:4], metrics.returns[:4]).fallen() == []


def test_run_folder_holds_what_is_promised(tmp_path):
    folder = tmp_path / "run"
    out = run(folder, "--optimal", "--seed", 7, "--eval-every", 2)
    assert "optimum" in out
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoint"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["algo"], config["env"], config["rank"], config["engine"]) == ("stlrq", "gridworld", 10, "eager")
    assert {"torch", "torchq", "python"} <= set(config["versions"])
    assert "git_commit" in config
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["episode", "samples", "seed", "task", "return"]
    assert len(rows) == 3 * 2 * 4
    assert {row["seed"] for row in rows} == {"7", "8"}
    assert rows[-1]["samples"] == str(6 * 50 * 4)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["samples_per_task"] == 6 * 50 * 4
    assert summary["transitions"] == 6 * 50 * 4 * 4 * 2
    assert summary["optimal_return"] == pytest.approx([-100 / 24] * 4)
    returns = np.array([float(row["return"]) for row in rows]).reshape(3, 2, 4)
    assert summary["final_return"]["median"] == pytest.approx(np.median(returns.mean(0), axis=0).tolist())
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_tags_and_axis(tmp_path):
    run(tmp_path / "run", "--eval-every", 2)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {"rollout/ep_rew_mean", "rollout/exploration_rate", "time/fps", "train/td_error", "train/loss"}
    tags |= {"eval/mean_reward", "final/mean_reward"} | {f"eval/mean_reward/{task}" for task in range(4)}
    assert set(events.Tags()["scalars"]) == tags
    for tag in tags - {"final/mean_reward"}:
        assert [event.step for event in events.Scalars(tag)] == [400, 800, 1200]
    assert -50 <= events.Scalars("rollout/ep_rew_mean")[0].value < 0
    assert 0 < events.Scalars("rollout/exploration_rate")[-1].value < 1


@pytest.mark.parametrize(("algo", "preset"), [("stlrq", "default"), ("tabular", "default"), ("lrq", "paper")])
def test_the_same_command_twice_gives_the_same_bytes(tmp_path, algo, preset):
    arguments = ("--preset", preset) if preset == "default" else ("--preset", preset, "--env", "pendulum")
    short = library(episode_length=20)
    for name in "ab":
        run(tmp_path / name, *arguments, algo=algo, environments=short)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def finish(process):
    """Exit code, once the process has ended; its messages are shown if the test fails."""
    out, err = process.communicate(timeout=120)
    sys.stdout.write(out + err)
    return process.returncode


@pytest.mark.parametrize(
    "arguments",
    [
        ("--algo", "stlrq", "--env", "gridworld", "--episodes", 45, "--num-seeds", 2),
        ("--algo", "clrq", "--env", "pendulum", "--preset", "paper", "--episodes", 9, "--num-seeds", 2, "--rank", 4),
    ],
    ids=["batched", "online"],
)
def test_a_run_killed_at_random_moments_resumes_exactly(tmp_path, arguments):
    """SIGKILL a real process three times, then let it finish; metrics and checkpoint equal those of a quiet run."""
    arguments = (*arguments, "--no-optimal", "--engine", "eager", "--device", "cpu", "--eval-every", 3)
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    assert finish(start_process(*arguments, "--out", quiet)) == 0
    moments = random.Random(1)
    for _ in range(3):
        process = start_process(*arguments, "--out", killed, *(["--resume"] if killed.exists() else []))
        deadline = time.monotonic() + 60
        while not (killed / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 2.5))
        process.kill()
        finish(process)
    assert finish(start_process(*arguments, "--out", killed, "--resume")) == 0
    assert outcome(killed) == outcome(quiet)


def test_resume_cuts_rows_younger_than_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(torchq.runs.training, "CHECKPOINT_SECONDS", 0.0)
    run(tmp_path / "a")
    run(tmp_path / "b", "--episodes", 6)
    folder = tmp_path / "b"
    with (folder / "metrics.csv").open("a") as file:
        file.write("7,1400,0,0,-3\n7,14")
    code, _, err = command_line("--resume", "--out", folder)
    assert code == 0, err
    assert outcome(folder) == outcome(tmp_path / "a")


def test_resume_before_the_first_checkpoint_starts_anew(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b")
    folder = tmp_path / "b"
    for path in (folder / "checkpoint").iterdir():
        path.unlink()
    (folder / "checkpoint").rmdir()
    (folder / "summary.json").unlink()
    assert command_line("--resume", "--out", folder)[0] == 0
    assert outcome(folder) == outcome(tmp_path / "a")


class BrokenGridworld(envs.Gridworld):
    """Rewards of task 2 turn to NaN after 130 steps."""

    calls = 0

    def step(self, tasks, state, action, uniforms):
        state, reward, terminated, truncated = super().step(tasks, state, action, uniforms)
        BrokenGridworld.calls += 1
        if reward.shape[1] == 4 and BrokenGridworld.calls > 130:
            reward = reward.clone()
            reward[:, 2] = torch.nan
        return state, reward, terminated, truncated


def test_nan_rewards_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(torchq.runs.training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(BrokenGridworld, "calls", 0)
    broken = {"gridworld": BrokenGridworld}
    folder = tmp_path / "run"
    code, _, err = command_line("--algo", "stlrq", *SMALL, "--out", folder, library=broken)
    assert code == 2
    assert "the reward of task 2 (seed 0) became NaN or infinite between episodes 2 and 2" in err
    assert err.count("\n") == 1
    tensors, index = load_checkpoint(folder / "checkpoint", "stlrq")
    assert index["episode"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    assert "nan" not in (folder / "metrics.csv").read_text()


def test_divergence_is_reported(tmp_path):
    arguments = ("--optimizer", "sgd", "--learning-rate", 100, "--out", tmp_path / "run")
    code, _, err = command_line("--algo", "stlrq", *SMALL, *arguments)
    assert code == 2
    assert "became NaN or infinite between episodes 1 and 1" in err
    assert "there is no checkpoint yet: start again with a lower --learning-rate" in err
    assert not (tmp_path / "run" / "learning_curve.png").exists()


def test_a_run_that_diverged_goes_on_with_a_lower_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(torchq.runs.training, "CHECKPOINT_SECONDS", 0.0)
    folder, given = tmp_path / "run", ("--algo", "stlrq", *SMALL, "--optimizer", "sgd")
    assert command_line(*given, "--learning-rate", 0.001, "--out", folder)[0] == 0
    more = ("--resume", "--out", folder, "--episodes", 12, "--no-progress")
    code, _, err = command_line(*more, "--learning-rate", 1e30)
    assert code == 2
    assert f"the last good checkpoint is kept: go on with --resume --out {folder} and a lower --learning-rate" in err
    code, _, err = command_line(*more, "--learning-rate", 0.0005)
    assert code == 0, err
    assert json.loads((folder / "config.json").read_text())["learning_rate"] == 0.0005
    assert torchq.load(folder).metrics.episode[-1] == 12


def test_what_is_not_finite_at_a_checkpoint_is_named(tmp_path):
    prepared = experiment("stlrq", "gridworld", num_seeds=3, seed=5)
    state = prepared.initial_state
    factor = state.learner.factors[1].clone()
    factor[2, 0, 0, 0] = torch.nan
    broken = state._replace(learner=state.learner._replace(factors=(state.learner.factors[0], factor,
                                                                    *state.learner.factors[2:])))  # fmt: skip
    here = positions.beginning(prepared)._replace(state=broken, episode=4, read_episode=2)
    with pytest.raises(
        DivergedError, match=r"learner.factors.1 \(seed 7\) became NaN or infinite between episodes 3 and 4"
    ):
        positions.save(prepared, tmp_path, here, positions.log_of(prepared, tmp_path))


def test_many_tasks_train_without_an_optimum(tmp_path):
    folder = tmp_path / "many"
    code, out, err = command_line(
        "--algo", "stlrq", "--env", "pendulum", "--num-tasks", 40, "--num-seeds", 1, "--episodes", 1, "--eval-every", 1,
        "--engine", "eager", "--out", folder, library=library(episode_length=5),
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["optimal_return"] is None
    assert len(summary["tasks"]) == len(summary["final_return"]["median"]) == 40
    assert "more in summary.json" in out


def test_rounds_are_played_in_blocks_that_memory_and_checkpoints_allow(tmp_path, monkeypatch):
    """The same bytes whatever the blocks; more rounds at a time where they are quick."""
    counts, original = [], torchq.runs.experiment.Experiment.play_block

    def watched(self, state, first, count):
        counts.append(count)
        return original(self, state, first, count)

    monkeypatch.setattr(torchq.runs.experiment.Experiment, "play_block", watched)
    given = ("--episodes", 30, "--engine", "fused", "--eval-every", 2)
    seen = {}
    for name, setting, value in (
        ("free", "BLOCK_SECONDS", 100.0),
        ("one by one", "BLOCK_SECONDS", 0.0),
        ("kept", "CHECKPOINT_SECONDS", 0.0),
        ("small", "MAX_STARTS", 3 * 2 * 4 * 8),
    ):
        counts.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torchq.runs.training, setting, value)
            run(tmp_path / name, *given)
        seen[name] = list(counts)
    assert seen["free"] == [1, 4, 16, 9]
    assert seen["one by one"] == seen["kept"] == [1] * 30
    assert max(seen["small"]) == 3
    assert len({outcome(tmp_path / name)[:2] for name in seen}) == 1
