"""Guides: whose action is taken, when they let go, and every engine on the same choices."""

import dataclasses

import pytest
import torch
from problems import experiment, library, play

from torchq.engines import graph
from torchq.engines.eager import Stepwise
from torchq.lowrank.guide import guided, margin_after
from torchq.tree import flatten


def test_the_guide_is_left_where_another_action_is_better_by_more_than_the_margin():
    values = torch.tensor([[0.0, 5.0, 1.0], [0.0, 7.0, 1.0]])
    guide = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert guided(values, guide, torch.tensor(6.0)).argmax(-1).tolist() == [0, 1]
    assert guided(values, guide, torch.tensor(0.0)).equal(values)


def test_the_margin_shrinks_to_nothing():
    counts = torch.tensor([0, 50, 100, 900])
    assert [margin_after(count, 6.0, 100.0).item() for count in counts] == [6.0, 3.0, 0.0, 0.0]


def guided_run(algo="stlrq", preset="default", **options):
    """A run with a guide of random factors, gone from behaviour after 80 samples and from tests after 200."""
    settings = {"warm_start": "elsewhere", "guide_samples": 200.0, "guide_margin": 2.0, "num_seeds": 2, "rank": 5,
                "dtype": "float64", "library": library(episode_length=40), "eval_every": 1, "episodes": 4}  # fmt: skip
    run = experiment(algo, "pendulum", preset, **{**settings, **options})
    generator = torch.Generator().manual_seed(3)
    guide = run.initial_state.learner.guide
    factors = tuple(torch.randn(f.shape, generator=generator, dtype=torch.float64) for f in guide.factors)
    learner = run.initial_state.learner._replace(guide=guide._replace(factors=factors))
    return dataclasses.replace(run, initial_state=run.initial_state._replace(learner=learner))


CASES = [{}, {"algo": "lrq", "replay_ratio": 1}, {"num_envs": 3, "target_rate": None}, {"preset": "paper"},
         {"preset": "paper", "algo": "clrq"}, {"num_seeds": 1, "num_envs": 300}]  # fmt: skip


@pytest.mark.parametrize("options", CASES)
def test_the_fused_engine_follows_as_eager_steps_do(options):
    played = []
    for engine in ("eager", "fused"):
        run = guided_run(engine=engine, **options)
        played.append(run.play_block(run.initial_state, 0, 4))
    for (name, theirs), ours in zip(flatten(played[0][0]).items(), flatten(played[1][0]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for theirs, ours in zip(played[0][1], played[1][1], strict=True):
        torch.testing.assert_close(ours.returns, theirs.returns, rtol=1e-9, atol=1e-9)


def test_graphs_follow_too(monkeypatch):
    def play_again(body):
        body()
        return body

    monkeypatch.setattr(graph, "capture", play_again)
    eager = guided_run()
    other = dataclasses.replace(guided_run(), engine=graph.GraphEngine(eager.rollout, Stepwise(eager.rollout)))
    expected, state = play(eager, 2, eager.initial_state), play(other, 2, other.initial_state)
    for theirs, ours in zip(flatten(expected).values(), flatten(state).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_the_policy_is_the_guides_at_first_and_the_learners_at_last(engine):
    run = guided_run(engine=engine, guide_margin=1e6)
    learner = run.rollout.learner
    first = learner.policy(run.initial_state.learner)
    alone = first._replace(factors=first.guide.factors, guide=())
    assert torch.equal(run.evaluate(first, 1), run.evaluate(alone, 1))
    state, evaluations = run.play_block(run.initial_state, 0, 5)
    last = learner.policy(state.learner)
    assert last.guide.margin.item() == 0.0
    assert torch.equal(run.evaluate(last, 5), run.evaluate(last._replace(guide=()), 5))
    assert torch.equal(evaluations[0].returns, run.evaluate(first, 1))  # One episode in, it still is the guide's.
