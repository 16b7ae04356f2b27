"""Runs that several processes of torchrun share."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from problems import ROOT, command_line

import torchq
from torchq.checkpoint import load_checkpoint
from torchq.engines import shards
from torchq.runs.share import Cut

SMALL = ("--algo", "stlrq", "--eval-every", 1, "--num-tasks", 33, "--num-envs", 16, "--num-seeds", 1,
         "--episodes", 4, "--rank", 4, "--replay-ratio", 0, "--engine", "fused", "--no-optimal")  # fmt: skip
ALWAYS = ("--no-progress", "--device", "cpu")


def start(ranks, *arguments, options=(), **environment):
    """torchrun with so many ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *options,
               ROOT / "train.py", *ALWAYS, *arguments]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def shared(ranks, *arguments, **others):
    """What ranks print; they must come to their end."""
    process = start(ranks, *arguments, **others)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def refused(ranks, *arguments, **others):
    """The one line with which ranks end."""
    process = start(ranks, *arguments, **others)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1  # Of torchrun.
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert 'train.py", line' not in err
    assert len(lines) == 1 or "--max-restarts" in others.get("options", ()), err
    return lines[0]


def alone(*arguments):
    code, _, err = command_line(*ALWAYS, *arguments)
    assert code == 0, err


def content(folder):
    """Bytes of the metrics, and the tensors of the checkpoint."""
    algo = json.loads((folder / "config.json").read_text())["algo"]
    return (folder / "metrics.csv").read_bytes(), load_checkpoint(folder / "checkpoint", algo)[0]


def assert_same(folder, other):
    metrics, tensors = content(folder)
    expected, others = content(other)
    assert metrics == expected
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


LINEAR = ("--task-modes", "linear", "--held-out", 0.1)
REPLAY = ("--replay-ratio", 2, "--replay-capacity", 4000)


@pytest.mark.parametrize(
    ("counts", "more"),
    [
        ((2,), (*LINEAR, *REPLAY)),
        pytest.param((1, 2, 4), (), marks=pytest.mark.slow),
        pytest.param((8,), ("--num-tasks", 64), marks=pytest.mark.slow),
        pytest.param((2, 4), ("--num-seeds", 2, "--shard", "tasks", *REPLAY), marks=pytest.mark.slow),
        pytest.param((2,), ("--env", "wireless", "--update", "block", "--dtype", "float64"), marks=pytest.mark.slow),
        pytest.param((3,), ("--algo", "lrq", "--env", "wireless", "--num-tasks", 7), marks=pytest.mark.slow),
        pytest.param((2,), ("--algo", "clrq", "--env", "wireless"), marks=pytest.mark.slow),
        pytest.param((2,), ("--algo", "tabular", "--env", "gridworld", "--engine", "eager"), marks=pytest.mark.slow),
        pytest.param((2, 3), ("--num-seeds", 6, "--num-tasks", 4, "--env", "cartpole"), marks=pytest.mark.slow),
        pytest.param((2,), ("--num-seeds", 4, "--num-tasks", 4, "--env", "wireless", *REPLAY), marks=pytest.mark.slow),
        pytest.param((2,), ("--preset", "paper", "--num-seeds", 4, "--num-tasks", 4), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_learns_the_same_bytes(counts, more, tmp_path):
    given = [*SMALL, *more]
    if "tabular" in more or "paper" in more:
        given = [*given[: given.index("--num-envs")], *given[given.index("--num-seeds") :]]
        for flag in ("--rank", "--replay-ratio"):
            at = given.index(flag)
            del given[at : at + 2]
    alone(*given, "--out", tmp_path / "alone")
    for count in counts:
        out = shared(count, *given, "--out", tmp_path / str(count))
        assert count == 1 or f"shared by {count} ranks -> {tmp_path / str(count)}\n" in out
        assert_same(tmp_path / str(count), tmp_path / "alone")
    assert torchq.load(tmp_path / str(counts[-1])).policy.num_tasks >= 4


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    given = [*SMALL, *REPLAY]
    alone(*given, "--out", tmp_path / "alone")
    folder = ("--out", tmp_path / "shared", "--episodes")
    shared(2, *given, *folder, 2)
    names = {path.name.partition(".")[0] for path in (tmp_path / "shared" / "checkpoint").iterdir()}
    assert {"state-000000002-0of2", "state-000000002-1of2"} <= names
    alone("--resume", *folder, 3)
    names = {path.name.partition(".")[0] for path in (tmp_path / "shared" / "checkpoint").iterdir()}
    assert not any("of2" in name for name in names), names
    shared(4, "--resume", *folder, 4)
    assert_same(tmp_path / "shared", tmp_path / "alone")


REFUSED = {
    "too few tasks": (2, ("--algo", "stlrq", "--num-seeds", 1), "--num-tasks: expected tasks for 2 ranks"),
    "turns": (2, ("--algo", "stlrq", "--preset", "paper", "--num-seeds", 1), "whose tasks take turns; share at least"),
    "compiled": (2, (*SMALL, "--engine", "compile"), "--engine: expected auto, eager, graph on a GPU or fused"),
    "a study": (2, ("--algo", "lspi"), "--algo: lspi uses all processors by itself"),
    "a wrong flag": (2, ("--algo", "stlrq", "--rank", 0), "--rank: expected an integer of at least 1"),
    "seeds that are not there": (3, (*SMALL, "--shard", "seeds"), "--num-seeds: expected at least one for each of 3"),
    "nowhere to restart": (2, SMALL, "--out: expected a folder with restarts"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [name if name == "too few tasks" else pytest.param(name, marks=pytest.mark.slow) for name in REFUSED]
)
def test_what_cannot_be_shared_is_one_line(case, tmp_path):
    ranks, given, expected = REFUSED[case]
    options = ("--max-restarts", 1) if case == "nowhere to restart" else ()
    out = () if options else ("--out", tmp_path / "run")
    assert expected in refused(ranks, *given, *out, options=options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_rank_finds_ends_all_with_one_line(tmp_path):
    line = refused(2, *SMALL, "--optimizer", "sgd", "--learning-rate", 1e10, "--out", tmp_path / "run")
    assert "became NaN or infinite between episodes 1 and 1" in line
    assert "start again with a lower --learning-rate" in line


def workers(process):
    """The processes of the ranks."""
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def wait_for(path, process):
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"no {path}")


LONG = (*SMALL, "--episodes", 10**6)


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_rank_ends_all_and_is_named(which, tmp_path):
    process = start(2, *LONG, "--out", tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    os.kill(workers(process)[which], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        f"error: rank {which} of 2 cannot be reached: it ended, or has not answered for 300 s (TORCHQ_TIMEOUT)"
    ]


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_named_after_a_while(tmp_path):
    process = start(2, *LONG, "--out", tmp_path / "run", TORCHQ_TIMEOUT="4")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    stopped = workers(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(12)
    os.kill(stopped, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert "error: rank 1 of 2 cannot be reached: it ended, or has not answered for 4 s" in err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchrun", "one rank"])
def test_a_signal_keeps_what_all_ranks_have_learnt(to, tmp_path):
    process = start(2, *LONG, "--out", tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    time.sleep(1)
    os.kill(process.pid if to == "torchrun" else workers(process)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert f"interrupted; go on with: --resume --out {tmp_path / 'run'}\n" in err
    episode = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())["episode"]
    alone(*SMALL, "--episodes", episode, "--out", tmp_path / "alone")
    metrics, tensors = content(tmp_path / "run")
    expected, others = content(tmp_path / "alone")
    assert metrics == expected
    for name in (name for name in tensors if name.startswith("learner")):
        assert torch.equal(tensors[name], others[name]), name


@pytest.mark.slow
def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path):
    process = start(2, *LONG, "--out", tmp_path / "run", options=("--max-restarts", 2))
    wait_for(tmp_path / "run" / "checkpoint" / "checkpoint.json", process)
    os.kill(workers(process)[1], signal.SIGKILL)
    before = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())["episode"]
    for _ in range(600):
        if json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())["episode"] > before:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert f"resuming after episode {before} of" in out, err
    assert "interrupted; go on with" in err


@pytest.mark.parametrize(("num_tasks", "per_task"), [(1, 10**6), (4, 20), (33, 16), (1000, 4), (10**6, 1)])
def test_shards_are_a_power_of_two_of_almost_equal_size(num_tasks, per_task):
    count = shards.count(num_tasks, per_task)
    ends = shards.bounds(num_tasks, count)
    sizes = {end - first for first, end in pairwise(ends)}
    assert count in [2**power for power in range(7)]
    assert (ends[0], ends[-1]) == (0, num_tasks)
    assert max(sizes) == shards.largest(num_tasks, count) <= min(sizes) + 1
    assert count == 1 or min(sizes) * per_task >= 64


def test_what_two_parts_of_a_run_both_have():
    mine, theirs = Cut((0, 2), (10, 30), (0, 0)), Cut((1, 4), (20, 50), (0, 0))
    ours, other = mine.overlap(theirs)
    assert (ours.seeds, ours.tasks) == (slice(1, 2), slice(10, 20))
    assert (other.shape, other.seeds, other.tasks) == ((3, 30), slice(0, 1), slice(0, 10))
    assert mine.overlap(Cut((2, 3), (0, 50), (0, 0))) is None
