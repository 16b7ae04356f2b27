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
from torchq.engines.compiled import compiled
from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState, UnavailableError
from torchq.engines.eager import Stepwise
from torchq.engines.rollout import Rollout
from torchq.philox import Purpose
from torchq.tree import flatten, unflatten

MAX_STEPS = 25
"""Steps of one graph at most: enough to hide its launch, few enough to capture in seconds."""


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
        """Write inputs, or some of them by name, into the buffers."""
        for name, tensor in flatten(inputs).items():
            self.buffers[name].copy_(tensor)

    def __call__(self) -> None:
        """Play once from where the buffers stand."""
        self._replay()

    def take(self, like: Any) -> Any:
        """Copies of some of the buffers, shaped like a tuple of tensors with names."""
        return unflatten(like, {name: self.buffers[name].clone() for name in flatten(like)})

    def _run(self) -> None:
        for name, tensor in flatten(self._body(unflatten(self._template, self.buffers))).items():
            if tensor is not self.buffers[name]:  # What is written in place is there already.
                self.buffers[name].copy_(tensor)


class _Training(NamedTuple):
    parameters: tuple[Tensor, ...]
    task_index: Tensor
    state: RunState
    step: Tensor
    rates: Rates


class _Trained(NamedTuple):
    state: RunState
    step: Tensor


class _Rated(NamedTuple):
    rates: Rates


class _Testing(NamedTuple):
    learner: LearnerState
    env: EnvState
    total: Tensor
    alive: Tensor
    step: Tensor


class _Tested(NamedTuple):
    env: EnvState
    total: Tensor
    alive: Tensor
    step: Tensor


class GraphEngine:
    """Whole episodes of a rollout as replays of one graph.

    Args:
        rollout: on a GPU.
        inner: whose steps are captured; it takes the first of them as a tensor. None: compiled ones, or eager ones
            where torch.compile does not work.
        name: of the engine.

    Raises:
        UnavailableError: if there is no GPU.
    """

    def __init__(self, rollout: Rollout, inner: Any = None, name: str = "graph") -> None:
        if rollout.device.type != "cuda" and inner is None:
            raise UnavailableError(f"CUDA graphs need a GPU, got {rollout.device.type}")
        self.name, self.rollout, self.inner = name, rollout, inner or _stepwise(rollout)
        self._replays: dict[Any, _Replay] = {}

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int) -> RunState:
        """Consecutive steps with their updates, as in `Engine`."""
        steps = len(rates.epsilon)
        block = _block(steps)
        step = torch.full((1,), first_step, device=self.rollout.device)
        inputs = _Training(
            tuple(vars(batch.tasks).values()), batch.task_index, state, step, Rates(*(rate[:block] for rate in rates))
        )

        def body(now: _Training) -> _Trained:
            playing = Batch(type(batch.tasks)(*now.parameters), now.task_index, batch.whole)
            return _Trained(self.inner.train(playing, now.state, now.rates, now.step), now.step + block)

        replay = self._replay(inputs, body, batch.whole)
        replay.load(inputs)
        for start in range(0, steps, block):
            replay.load(_Rated(Rates(*(rate[start : start + block] for rate in rates))))
            replay()
        return replay.take(_Trained(state, step)).state

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes, as in `Engine`."""
        if not isinstance(self.inner, Stepwise):
            own = self.rollout.test_rows is None  # Kernels take tasks by their places.
            return (self.inner if own else Stepwise(self.rollout)).greedy_returns(learner, env, first_step)
        rollout, device, shape = self.rollout, self.rollout.device, env.elapsed.shape
        length = rollout.env.episode_length
        block = _block(length)
        inputs = _Testing(
            learner, env, torch.zeros(shape, device=device, dtype=rollout.dtype),
            torch.ones(shape, device=device, dtype=torch.bool), torch.full((1,), first_step, device=device),
        )  # fmt: skip

        def body(now: _Testing) -> _Tested:
            state = (now.env, now.total, now.alive)
            steps, index = now.step + torch.arange(block, device=device), torch.arange(shape[1], device=device)
            bits = rollout.bits(Purpose.EVALUATION_STEP, steps, index, shape[2], rollout.env.num_step_uniforms)
            for uniforms in philox.uniform(bits, rollout.dtype):
                state = self.inner.greedy_step(rollout, now.learner, *state, uniforms)
            return _Tested(*state, now.step + block)

        replay = self._replay(inputs, body)
        replay.load(inputs)
        for _ in range(length // block):
            replay()
        return replay.buffers["total"].clone()

    def _replay(self, inputs: Any, body: Callable[[Any], Any], *parts: Any) -> _Replay:
        shapes = ((name, tuple(tensor.shape)) for name, tensor in flatten(inputs).items())
        key = (type(inputs), *parts, *shapes)
        if key not in self._replays:
            self._replays[key] = _Replay(inputs, body)
        return self._replays[key]


def _stepwise(rollout: Rollout) -> Stepwise:
    try:
        return compiled(rollout)
    except UnavailableError:
        return Stepwise(rollout)


def _block(steps: int) -> int:
    """The largest number of steps for one graph that divides all of them."""
    return next(size for size in range(min(MAX_STEPS, steps), 0, -1) if steps % size == 0)
