"""Greedy episodes step by step, one of each task, to be drawn or filmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq import families, philox
from torchq.engines.external import ExternalEnvironment
from torchq.philox import Purpose

Act = Callable[[Tensor, int], Tensor]
"""From observations (tasks, dimensions) and the steps gone to numbers of actions (tasks,)."""


class Episode(NamedTuple):
    """One episode of one task."""

    observations: np.ndarray
    """(steps + 1, dimensions); the last follows the last action."""
    actions: np.ndarray
    """(steps,)."""
    rewards: np.ndarray
    """(steps,)."""


def play(env: Any, tasks: Sequence[Any], act: Act, seed: int = 0) -> list[Episode]:
    """One episode of each task, until it ends.

    Args:
        env: the family.
        tasks: parameters of each, as numbers.
        act: the policy.
        seed: equal ones have the same start and the same noise, whatever the policy does.
    """
    steps = _external_steps if isinstance(env, ExternalEnvironment) else _steps
    seen, actions, rewards, alive = [], [], [], np.ones(len(tasks), dtype=bool)
    lengths = np.zeros(len(tasks), dtype=int)
    for observation, action, reward, ends in steps(env, tasks, act, seed):
        seen.append(observation)
        if action is None:
            continue
        actions.append(action)
        rewards.append(reward)
        lengths += alive
        alive &= ~ends
        if not alive.any():
            break
    columns = (np.stack(seen), np.stack(actions), np.stack(rewards))
    return [
        Episode(columns[0][: length + 1, task], columns[1][:length, task], columns[2][:length, task])
        for task, length in enumerate(lengths)
    ]


def _steps(env: Any, tasks: Sequence[Any], act: Act, seed: int) -> Any:
    """The observation at the start, then after each step with the action, the reward, and whether the episode ends."""
    batch = families.stack_tasks(tasks, dtype=torch.float64)
    numbers, seeds = torch.arange(len(tasks)), torch.tensor([seed])

    def uniforms(purpose: Purpose, step: int, count: int) -> Tensor:
        bits = philox.random_bits(seeds, torch.tensor([step]), purpose, numbers, torch.zeros(1).long(), count)
        return philox.uniform(bits[0], torch.float64)

    state = env.reset(batch, uniforms(Purpose.EVALUATION_RESET, 0, env.num_reset_uniforms))
    yield env.observe(state)[0, :, 0].numpy(), None, None, None
    for step in range(env.episode_length):
        action = act(env.observe(state)[0, :, 0], step)
        drawn = uniforms(Purpose.EVALUATION_STEP, step, env.num_step_uniforms)
        state, reward, terminated, truncated = env.step(batch, state, action.view(1, -1, 1), drawn)
        ends = (terminated | truncated)[0, :, 0]
        yield env.observe(state)[0, :, 0].numpy(), action.numpy(), reward[0, :, 0].numpy(), ends.numpy()


def _external_steps(env: Any, tasks: Sequence[Any], act: Act, seed: int) -> Any:
    """The same with environments that are opened."""
    simulators, everyone = env.open(tasks, 1, 1), np.ones(len(tasks), dtype=bool)
    try:
        observation = simulators.reset(np.full(len(tasks), seed), everyone)
        yield observation.copy(), None, None, None
        going = everyone.copy()
        for step in range(env.episode_length):
            action = act(torch.from_numpy(observation.astype(np.float64)), step).numpy()
            axes = np.stack(np.unravel_index(action, env.action_sizes), axis=-1)
            simulators.start(axes, going)
            observation, reward, terminated, truncated = simulators.finish()
            ends = np.asarray(terminated + truncated) > 0
            going &= ~ends
            yield observation.copy(), action, np.array(reward), ends
    finally:
        simulators.close()
