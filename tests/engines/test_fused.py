"""The fused engine against eager steps on the same draws."""

import os
import subprocess
import sys

import pytest
import torch
from families import library
from problems import PLAIN, ROOT, experiment, play

from torchq import native
from torchq.engines.codegen import cpp
from torchq.engines.contract import UnavailableError
from torchq.engines.cpu.engine import CppEngine
from torchq.errors import UsageError
from torchq.native import num_threads
from torchq.tree import flatten

SHORT = library(episode_length=100)
CASES = {
    "paper": {"preset": "paper"},
    "four sweeps": {"preset": "paper", "env": "wireless", "algo": "lrq"},
    "shared": {"preset": "paper", "algo": "clrq"},
    "one task": {"preset": "paper", "num_tasks": 1},
    "paper, decaying rates": {"preset": "paper", "learning_rate_half_life": 50.0, "env": "wireless"},
    "paper, gradients near Adamax's floor": {"preset": "paper", "loss_scale": 1e-8},
    "paper, one state mode, weights": {
        "preset": "paper", "state_modes": "joint", "task_weights": (1.0, 2.0, 3.0, 0.5),
    },
    "paper, sgd": {"preset": "paper", "optimizer": "sgd", "learning_rate": 1e-3},
    "batched": PLAIN,
    "batched, many environments": {**PLAIN, "num_envs": 300, "env": "wireless"},
    "batched, many tasks": {**PLAIN, "num_tasks": 300, "num_envs": 2, "num_seeds": 1},
    "one run in parts": {**PLAIN, "num_tasks": 3, "num_envs": 700, "num_seeds": 1, "rank": 8},
    "own tensors": {**PLAIN, "algo": "lrq", "num_envs": 3},
    "interpolated, replay, target tensor": {"rank": 17},
    "wireless so, and weights": {"env": "wireless", "task_weights": (1.0, 2.0, 3.0, 0.5)},
    "a small memory, many updates": {
        "env": "wireless", "num_envs": 3, "replay_ratio": 5, "replay_capacity": 70, "replay_recent": 0.1,
    },
    "the recent of thousands": {"num_envs": 21, "replay_batch": 4, "replay_recent": 0.61, "num_tasks": 2},
    "own tensors with replay, in blocks": {"algo": "lrq", "update": "block"},
    "one tensor for all, adamax, without target": {"algo": "clrq", "optimizer": "adamax", "target_rate": None},
    "one run with replay in parts": {"num_seeds": 1, "num_tasks": 2, "num_envs": 40, "replay_batch": 400},
    "a mode for each parameter, tasks held out": {
        "task_modes": "linear", "num_tasks": 9, "held_out": 0.25, "task_weights": (1.0, 2.0, 3.0, 0.5, 1.0, 1.0, 2.0),
    },
    "a row for each value of a parameter, in parts": {
        "task_modes": "product", "num_seeds": 1, "num_envs": 40, "replay_batch": 400,
    },
    "four parameters, adamax, without target": {
        "env": "wireless", "task_modes": "linear", "num_tasks": 20, "optimizer": "adamax", "target_rate": None,
    },
    "one tensor for all, tasks held out": {"algo": "clrq", "num_tasks": 6, "held_out": 0.5},
    "logarithms between points": {"env": "log-wireless"},
    "cells with replay": {"features": "cells"},
    "interpolated, terminating, with replay": {
        "env": "user-car", "features": "linear", "replay_ratio": 3, "target_rate": 0.02, "optimizer": "adam",
    },
    "interpolated, without replay": {"replay_ratio": 0, "num_envs": 5},
    "paper, interpolated": {"preset": "paper", "features": "linear"},
    "joint modes, adam, normalised, weights": {
        **PLAIN, "state_modes": "joint", "optimizer": "adam", "normalised": True, "task_weights": (1.0, 2.0, 3.0, 0.5),
    },
    "sgd, blocks": {**PLAIN, "optimizer": "sgd", "update": "block", "learning_rate": 1e-3},
    "terminating": {"env": "gridworld", "num_envs": 5, "num_seeds": 3},
    "terminating, joint modes, many environments": {"env": "gridworld", "num_envs": 300, "state_modes": "joint"},
    "terminating, one environment": {"env": "gridworld", "algo": "lrq", "num_envs": 1, "update": "block"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def both(**options):
    options = {"algo": "stlrq", "env": "pendulum", "num_seeds": 2, "rank": 5, "library": SHORT, **options}
    return [experiment(**options, engine=name) for name in ("eager", "fused")]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_fused_equals_eager_to_rounding_over_200_steps(options):
    eager, program = both(**options, dtype="float64")
    rounds = 1 if "preset" in options else 2  # The paper's four tasks take turns of 100 steps.
    states = [play(run, rounds) for run in (eager, program)]
    for (name, theirs), ours in zip(flatten(states[0]).items(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    policies = [run.evaluate(run.rollout.learner.policy(states[0].learner), 1) for run in (eager, program)]
    torch.testing.assert_close(policies[1], policies[0], rtol=1e-9, atol=1e-9)


def test_programs_of_different_sizes_live_in_one_process():
    """A small program first: names shared between libraries once gave the larger one arrays of the smaller."""
    for rank in (3, 40):
        eager, program = both(preset="paper", num_seeds=1, num_tasks=1, rank=rank, library=library(episode_length=40))
        for ours, theirs in zip(play(program, 1).learner.factors, play(eager, 1).learner.factors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_single_precision_equals_eager_over_30_steps():
    eager, program = both(library=library(episode_length=30), num_envs=64, **PLAIN)
    for ours, theirs in zip(play(program, 1).learner.factors, play(eager, 1).learner.factors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "paper"},
        {**PLAIN, "num_tasks": 3, "num_envs": 700, "num_seeds": 1},
        {},
        {"num_tasks": 2, "num_envs": 40, "num_seeds": 1, "replay_batch": 400},
    ],
)
def test_results_do_not_depend_on_the_number_of_threads(options, monkeypatch):
    _, program = both(**options)
    states = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        states.append(flatten(play(program, 1)))
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items())


def test_a_run_does_not_depend_on_its_neighbours():
    """Bit for bit: a program knows of one run only."""
    together = play(both(num_seeds=4, preset="paper")[1], 1).learner.factors
    alone = play(both(num_seeds=1, seed=3, preset="paper")[1], 1).learner.factors
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours[0], theirs[3])


def test_training_leaves_its_arguments_alone():
    program = both()[1]
    before = {name: tensor.clone() for name, tensor in flatten(program.initial_state._replace(replay=())).items()}
    play(program, 1)
    for name, tensor in flatten(program.initial_state._replace(replay=())).items():
        assert torch.equal(tensor, before[name])


def test_nan_shows_in_the_statistics():
    program = both()[1]
    learner = program.initial_state.learner
    broken = (torch.full_like(learner.factors[0], torch.nan), *learner.factors[1:])
    state = program.initial_state._replace(learner=learner._replace(factors=broken))
    assert play(program, 1, state).statistics.squared_error.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algo": "tabular", "env": "pendulum"}, "it needs stlrq, lrq or clrq"),
    ],
)
def test_what_it_cannot_run_is_said(options, message):
    with pytest.raises(UsageError, match=rf"engine: fused does not work here \({message}\); use auto"):
        experiment(**options, engine="fused")


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler found; install g\+\+ or set CXX"):
        CppEngine(experiment("stlrq", "pendulum").rollout)


def test_a_failing_compiler_gives_its_first_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path))
    monkeypatch.setattr(cpp, "family", lambda program: "struct Family;")
    with pytest.raises(UnavailableError, match="error"):
        CppEngine(experiment("stlrq", "pendulum").rollout)
    assert not list(tmp_path.glob("*.so"))


def test_programs_are_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path))
    rollout = both()[0].rollout
    for _ in range(2):
        CppEngine(rollout)
    assert len(list(tmp_path.glob("*.so"))) == 1
    monkeypatch.setattr(native, "_compile", lambda *arguments: pytest.fail("compiled again"))
    CppEngine(rollout)


def test_the_same_random_words_as_torchqs():
    """Philox known answers are in test_philox; here 100 steps of exploration alone tell a wrong word at once."""
    eager, program = both(epsilon_end=1.0, num_envs=16, learning_rate=1e-12)
    torch.testing.assert_close(play(eager, 1).env.theta_dot, play(program, 1).env.theta_dot, atol=1e-3, rtol=1e-3)


def test_auto_takes_it_for_long_runs_and_says_so(tmp_path):
    script = "import sys; from torchq.cli.train import main; sys.exit(main())"
    flags = ["--algo", "stlrq", "--episodes", "100", "--num-seeds", "1", "--no-optimal", "--no-progress"]
    command = [sys.executable, "-c", script, *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "engine fused ->" in done.stdout, done.stderr


def test_a_compiler_that_does_not_take_every_flag_serves_too(monkeypatch, tmp_path):
    """As on ARM, or without OpenMP: what it refuses is left out, and the results stay the same."""
    refused = "-mprefer-vector-width=512", "-fopenmp"
    plain, wrapper = native.compiler(), tmp_path / "picky"
    cases = "|".join(refused)
    wrapper.write_text(
        f'#!/bin/sh\nfor flag; do case "$flag" in {cases}) echo "error: unknown $flag" >&2; exit 1;; esac; done\n'
        f'exec {plain} "$@"\n'
    )
    wrapper.chmod(0o755)
    expected = play(both()[1], 1).learner.factors
    monkeypatch.setenv("CXX", str(wrapper))
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path / "cache"))
    found = play(both()[1], 1).learner.factors
    assert list((tmp_path / "cache").glob("*.so"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_generated_program_lies_beside_the_library(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path))
    CppEngine(both()[0].rollout)
    (header,) = tmp_path.glob("*.h")
    assert header.with_suffix(".so").exists()
    assert "// Pendulum, generated from its torch functions." in header.read_text()


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("4,2", 4), ("", None), ("many", None), ("0", None)])
def test_threads_are_those_of_openmp_where_it_says_a_number(said, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert num_threads() == (threads or len(os.sched_getaffinity(0)))
