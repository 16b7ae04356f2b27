"""The graph engine: its buffers, by a capture that plays the steps again; its graphs where there is a GPU."""

import dataclasses

import pytest
import torch
from problems import experiment, library, play

from torchq.engines import evaluation, graph
from torchq.engines.eager import Stepwise
from torchq.errors import UsageError
from torchq.tree import flatten

SHORT = library(episode_length=60)
CASES = [
    ("stlrq", "pendulum", "default", {"rank": 4}), ("stlrq", "wireless", "paper", {"rank": 4}),
    ("lrq", "wireless", "paper", {"rank": 4}), ("tabular", "gridworld", "default", {}),
    ("stlrq", "wireless", "default", {"rank": 4, "task_weights": (1.0, 2.0, 3.0, 0.5)}),
    ("stlrq", "pendulum", "default", {"rank": 4, "task_modes": "linear", "num_tasks": 6, "held_out": 0.5}),
]  # fmt: skip


def replayed(algo, env, preset, device, **options):
    """Eager and graph experiments."""
    options = {"num_seeds": 2, "dtype": "float64", "library": SHORT, "device": device} | options
    eager = experiment(algo, env, preset, **options)
    engine = graph.GraphEngine(eager.rollout, Stepwise(eager.rollout))
    return eager, dataclasses.replace(experiment(algo, env, preset, **options), engine=engine)


@pytest.mark.parametrize(("algo", "env", "preset", "options"), CASES)
def test_replays_equal_eager_steps(algo, env, preset, options, monkeypatch):
    def play_again(body):
        body()  # As a capture would, so that leaving the state alone is tested too.
        return body

    monkeypatch.setattr(graph, "capture", play_again)
    eager, other = replayed(algo, env, preset, "cpu", **options)
    expected = play(eager, 2)
    state = play(other, 2)
    for (name, theirs), ours in zip(flatten(expected).items(), flatten(state).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    for number in (1, 2):
        policy = eager.rollout.learner.policy(expected.learner)
        found = [evaluation.evaluate(run.rollout, run.engine, policy, number, 3) for run in (eager, other)]
        torch.testing.assert_close(found[1], found[0])


def test_it_says_that_it_needs_a_gpu():
    with pytest.raises(UsageError, match=r"engine: graph does not work here \(CUDA graphs need a GPU, got cpu\)"):
        experiment(engine="graph")


@pytest.mark.parametrize("steps", [1, 7, 50, 100, 200, 53])
def test_graphs_divide_an_episode(steps):
    assert steps % graph._block(steps) == 0
    assert graph._block(100) == graph._block(200) == 25


@pytest.mark.gpu
@pytest.mark.parametrize(("algo", "env", "preset", "options"), CASES)
def test_graphs_equal_eager_steps_on_the_gpu(algo, env, preset, options, monkeypatch):
    monkeypatch.setattr(graph, "compiled", Stepwise)  # Shapes are checked in this process.
    options = {"num_seeds": 2, "dtype": "float64", "library": SHORT, "device": "cuda"} | options
    states = [play(experiment(algo, env, preset, **options, engine=name), 3) for name in ("eager", "graph")]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
