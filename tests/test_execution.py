"""Engines are tried for one step before they are trusted."""

import pytest
import torch
from problems import experiment

from torchq.engines import fused, select
from torchq.errors import UsageError

LONG = {"algo": "stlrq", "env": "pendulum", "episodes": 20_000, "num_seeds": 2}


def test_auto_takes_the_fused_engine_where_it_works():
    assert experiment(**LONG, engine="auto").config.engine == "fused"


def test_an_engine_that_computes_something_else_is_passed_over(monkeypatch):
    original = fused.FusedProgram.train

    def wrong(self, *given, **options):
        learner, env, statistics = original(self, *given, **options)
        return learner, env._replace(theta=env.theta + 0.01), statistics

    monkeypatch.setattr(fused.FusedProgram, "train", wrong)
    assert experiment(**LONG, preset="paper", engine="auto").config.engine == "compile"
    message = r"--engine: fused does not work here \(its first step differs from that of eager mode in 0.theta\)"
    with pytest.raises(UsageError, match=message):
        experiment(**LONG, preset="paper", engine="fused")


def test_an_engine_that_fails_is_passed_over(monkeypatch):
    def broken(self, *given, **options):
        raise RuntimeError("driver too old\nlong explanation")

    monkeypatch.setattr(fused.FusedProgram, "train", broken)
    with pytest.raises(UsageError, match=r"--engine: fused does not work here \(driver too old\); use auto"):
        experiment(**LONG, engine="fused")


def test_the_trial_leaves_the_state_alone():
    one, other = (experiment(**LONG, engine=name).initial_state for name in ("eager", "fused"))
    for ours, theirs in zip(other.learner.factors, one.learner.factors, strict=True):
        assert torch.equal(ours, theirs)


def test_large_batches_are_not_tried(monkeypatch):
    run = experiment(**LONG, engine="eager")
    monkeypatch.setattr(select, "_LARGEST_TRIAL", 10)
    never = select.Execution("never", lambda *given: pytest.fail("played"), lambda *given: pytest.fail("played"))
    assert select.disagreement(never, run.problem, run.tasks, run.initial_state, None) is None
