"""The graph engine: many steps captured once as a CUDA graph and replayed, so that nothing is launched one by one.

All that changes lies in buffers that stay where they are: the state, the counter of the first step from which random
numbers follow, and the rates. A replay reads them, plays some steps, and writes the state back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq import philox
from torchq.engines.protocols import Advance, Tables
from torchq.engines.rollout import Problem, Statistics
from torchq.philox import Purpose
from torchq.tree import flatten, unflatten

MAX_STEPS = 25
"""Steps of one graph at most: enough to hide its launch, few enough to capture in seconds."""


def obstacle(device: torch.device) -> str | None:
    """What keeps the graph engine from running on a device, in one line; None if nothing does."""
    return None if device.type == "cuda" else f"CUDA graphs need a GPU, got {device.type}"


def capture(body: Callable[[], None]) -> Callable[[], None]:
    """A function that replays what `body` launches on the GPU, after the warm-up that capturing asks for."""
    before, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(2):
            body()
    before.wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            body()
    finally:
        torch.cuda.set_stream(before)  # A capture that fails leaves its own.
    return graph.replay


class _Replay:
    """A pure function on buffers of its own, captured on first use; outputs take the place of inputs of their name."""

    def __init__(self, template: Any, body: Callable[[Any], Any]) -> None:
        self._template, self._body = template, body
        self.buffers = {name: tensor.clone() for name, tensor in flatten(template).items()}
        self._replay = capture(self._run)

    def load(self, inputs: Any) -> None:
        """Write inputs into the buffers."""
        for name, tensor in flatten(inputs).items():
            self.buffers[name].copy_(tensor)

    def __call__(self) -> None:
        """Play once from where the buffers stand."""
        self._replay()

    def take(self, kind: Any, like: Any) -> Any:
        """Copies of some of the buffers, as a tuple of this kind shaped like another."""
        return unflatten(kind(*like), {name: tensor.clone() for name, tensor in self.buffers.items()})

    def _run(self) -> None:
        for name, tensor in flatten(self._body(unflatten(self._template, self.buffers))).items():
            self.buffers[name].copy_(tensor)


class _Training(NamedTuple):
    tasks: tuple[Tensor, ...]
    task: tuple[Tensor, ...]
    learner: Any
    env: Any
    statistics: Statistics
    step: Tensor
    epsilon: Tensor
    learning_rate: Tensor


class _Trained(NamedTuple):
    learner: Any
    env: Any
    statistics: Statistics
    step: Tensor


class _Testing(NamedTuple):
    tasks: tuple[Tensor, ...]
    learner: Any
    env: Any
    total: Tensor
    alive: Tensor
    step: Tensor


class _Tested(NamedTuple):
    env: Any
    total: Tensor
    alive: Tensor
    step: Tensor


class GraphProgram:
    """Whole episodes of a problem as replays of one graph: `train` and `greedy`, as in `protocols` and `evaluation`.

    Args:
        problem: on a GPU.
        advance: some steps, taking their first as a tensor.
        greedy_step: `evaluation.greedy_step` or a compiled form of it.
    """

    def __init__(self, problem: Problem, advance: Advance, greedy_step: Callable[..., Any]) -> None:
        self.problem, self._advance, self._greedy_step = problem, advance, greedy_step
        self._replays: dict[Any, _Replay] = {}

    def train(
        self, tasks: Any, learner: Any, env: Any, statistics: Statistics, first: int, rates: Tables, task: Tensor | None
    ) -> tuple[Any, Any, Statistics]:
        """Consecutive steps with their updates; arguments as in `protocols.Advance`."""
        block = _block(len(rates.epsilon))
        step = torch.full((1,), first, device=self.problem.seeds.device)
        inputs = _Training(
            tuple(vars(tasks).values()), () if task is None else (task,), learner, env, statistics, step,
            rates.epsilon[:block], rates.learning_rate[:block],
        )  # fmt: skip

        def body(now: _Training) -> _Trained:
            own, number = type(tasks)(*now.tasks), now.task[0] if now.task else None
            rates = Tables(now.epsilon, now.learning_rate)
            state = self._advance(own, now.learner, now.env, now.statistics, now.step, rates, number)
            return _Trained(*state, now.step + block)

        replay = self._replay(inputs, body)
        replay.load(inputs)
        for start in range(0, len(rates.epsilon), block):
            replay.buffers["epsilon"].copy_(rates.epsilon[start : start + block])
            replay.buffers["learning_rate"].copy_(rates.learning_rate[start : start + block])
            replay()
        after = replay.take(_Trained, (learner, env, statistics, step))
        return after.learner, after.env, after.statistics

    def greedy(self, tasks: Any, learner: Any, env: Any, first: int) -> Tensor:
        """Undiscounted returns of greedy episodes; arguments as in `evaluation.Greedy`."""
        problem, device = self.problem, self.problem.seeds.device
        length = problem.env.episode_length
        block, shape = _block(length), env.elapsed.shape
        total = torch.zeros(shape, device=device, dtype=problem.dtype)
        alive, step = torch.ones(shape, device=device, dtype=torch.bool), torch.full((1,), first, device=device)
        inputs = _Testing(tuple(vars(tasks).values()), learner, env, total, alive, step)

        def body(now: _Testing) -> _Tested:
            own, state = type(tasks)(*now.tasks), (now.env, now.total, now.alive)
            steps, numbers = now.step + torch.arange(block, device=device), torch.arange(shape[1], device=device)
            bits = problem.bits(Purpose.EVALUATION_STEP, steps, numbers, shape[2], problem.env.num_step_uniforms)
            for uniforms in philox.uniform(bits, problem.dtype):
                state = self._greedy_step(problem, own, now.learner, *state, uniforms)
            return _Tested(*state, now.step + block)

        replay = self._replay(inputs, body)
        replay.load(inputs)
        for _ in range(length // block):
            replay()
        return replay.buffers["total"].clone()

    def _replay(self, inputs: Any, body: Callable[[Any], Any]) -> _Replay:
        key = (type(inputs), *((name, tuple(tensor.shape)) for name, tensor in flatten(inputs).items()))
        if key not in self._replays:
            self._replays[key] = _Replay(inputs, body)
        return self._replays[key]


def _block(steps: int) -> int:
    """The largest number of steps for one graph that divides all of them."""
    return next(size for size in range(min(MAX_STEPS, steps), 0, -1) if steps % size == 0)
