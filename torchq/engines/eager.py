"""The eager engine: one step after the other in plain PyTorch. It runs everything, and all others are held to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchq import philox
from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState
from torchq.engines.evaluation import greedy_step
from torchq.engines.rollout import Draws, Rollout
from torchq.philox import Purpose

_DRAWS_PER_BLOCK = 1 << 20
_GREEDY_STEPS_PER_BLOCK = 50


class Stepwise:
    """`Rollout.step` and `greedy_step`, step by step.

    Args:
        rollout: any.
        name: of the engine.
        prepared: what is done to the two functions first, such as compiling them.
    """

    def __init__(
        self, rollout: Rollout, name: str = "eager", prepared: Callable[[Any], Callable[..., Any]] = lambda step: step
    ) -> None:
        self.name, self.rollout = name, rollout
        self.step, self.greedy_step = prepared(rollout.step), prepared(greedy_step)

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int | Tensor) -> RunState:
        """Consecutive steps with their updates, as in `Engine`; the first step may be a tensor of shape (1,)."""
        steps = first_step + torch.arange(len(rates.epsilon), device=self.rollout.device)
        num_slots = state.replay.shape[2] if self.rollout.replay else 0
        for drawn, epsilon, rate in zip(draws(self.rollout, steps, batch.task_index, num_slots), *rates, strict=True):
            state = self.step(batch, state, drawn, epsilon, rate)
        return state

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes, as in `Engine`."""
        rollout = self.rollout
        _, num_tasks, num_episodes = shape = env.elapsed.shape
        index = torch.arange(num_tasks, device=rollout.device)
        total = torch.zeros(shape, device=rollout.device, dtype=rollout.dtype)
        alive = torch.ones(shape, device=rollout.device, dtype=torch.bool)
        steps = torch.arange(first_step, first_step + rollout.env.episode_length, device=rollout.device)
        for block in steps.split(_GREEDY_STEPS_PER_BLOCK):
            bits = rollout.bits(Purpose.EVALUATION_STEP, block, index, num_episodes, rollout.env.num_step_uniforms)
            for uniforms in philox.uniform(bits, rollout.dtype):
                env, total, alive = self.greedy_step(rollout, learner, env, total, alive, uniforms)
        return total


def draws(rollout: Rollout, steps: Tensor, tasks: Tensor, num_slots: int) -> Iterator[Draws]:
    """Random numbers of consecutive steps, made for a block of them at a time."""
    words = rollout.num_envs * (4 + rollout.env.num_step_uniforms + rollout.env.num_reset_uniforms)
    if rollout.replay:
        words += rollout.replay.batch * (3 + rollout.replay.ratio)
    per_step = len(rollout.seeds) * len(tasks) * words
    for block in steps.split(max(1, _DRAWS_PER_BLOCK // per_step)):
        drawn = rollout.draw(block, tasks, num_slots)
        yield from (Draws(*step) for step in zip(*(field.unbind(0) for field in drawn), strict=True))
