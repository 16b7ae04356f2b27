"""The same code on every device that the machine has, and on `meta`, where nothing can be read back."""

import math

import pytest
import torch
from problems import experiment, library, play
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchq import philox
from torchq.engines import graph, torch_settings
from torchq.engines.eager import Stepwise
from torchq.tree import flatten

GPUS = [pytest.param("cuda", marks=pytest.mark.gpu)]
SHORT = library(episode_length=50)


@pytest.mark.parametrize(
    ("algo", "env", "preset"),
    [("stlrq", "pendulum", "default"), ("lrq", "wireless", "default"), ("clrq", "wireless", "paper"),
     ("tabular", "gridworld", "default")],
)  # fmt: skip
def test_a_round_needs_nothing_from_the_device(algo, env, preset):
    """No host synchronisation: on `meta` tensors any read of a value would fail."""
    prepared = experiment(algo, env, preset, library=library(episode_length=5), device="meta", num_seeds=2)
    state = play(prepared, 1)
    assert state.statistics.reward.device.type == "meta"
    assert prepared.evaluate(state.learner, 1).shape == (2, 4)


@pytest.mark.parametrize("device", GPUS)
def test_integers_and_uniforms_are_those_of_the_cpu(device):
    def draw(where):
        seeds, steps, tasks, envs = (torch.arange(n, device=where) for n in (3, 50, 4, 5))
        return philox.random_bits(seeds + 2**40, steps, 3, tasks, envs, 7)

    here, there = draw("cpu"), draw(device).cpu()
    assert torch.equal(here, there)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(philox.uniform(here, dtype), philox.uniform(draw(device), dtype).cpu())


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_training_equals_that_on_the_cpu(device, preset):
    """200 steps in float64."""
    states = [
        play(experiment("stlrq", "wireless", preset, library=SHORT, device=where, dtype="float64", num_seeds=2), rounds)
        for where, rounds in (("cpu", 4 if preset == "default" else 1), (device, 4 if preset == "default" else 1))
    ]
    for ours, theirs in zip(states[1].learner.factors, states[0].learner.factors, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_nothing_is_as_large_as_a_table(preset):
    """A round of 50,000 tasks, without memory: no tensor holds a number for each state and action of each task."""
    num_tasks = 50_000 if preset == "default" else 20
    run = experiment(
        "stlrq", "pendulum", preset, num_tasks=num_tasks, num_seeds=1, num_envs=1, device="meta",
        library=library(episode_length=2), rank=8,
        **({"replay_batch": 1, "replay_capacity": 1} if preset == "default" else {}),
    )  # fmt: skip
    with Largest() as largest, torch.no_grad():
        run.evaluate(run.play(run.initial_state, 0)[1], 1)
    states, actions = math.prod(run.rollout.grid.sizes), run.rollout.env.num_actions
    transitions = 2 if preset == "default" else 1  # Of each task: its own and a stored one.
    assert largest.numel <= max(transitions * num_tasks * 8 * actions, 8 * 2 * 1000)
    assert largest.numel < states * actions * num_tasks / 10


def test_a_million_tasks_need_less_than_half_a_gigabyte_of_factors_and_moments():
    run = experiment("stlrq", "pendulum", num_tasks=1_000_000, num_seeds=1, device="meta", replay_ratio=0)
    tensors = flatten(run.initial_state.learner).values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) < 2**29


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_deterministic_runs_give_the_same_bytes_twice_on_the_gpu(engine, monkeypatch):
    """Joint state modes have 400 rows, which are summed by scatter."""
    monkeypatch.setattr(graph, "compiled", Stepwise)  # Shapes are checked in this process.
    options = {"device": "cuda", "state_modes": "joint", "num_envs": 512, "library": SHORT, "engine": engine}
    with torch_settings.deterministic(True, "cuda"):
        first, second = (play(experiment("stlrq", "pendulum", **options), 2).learner.factors for _ in range(2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
