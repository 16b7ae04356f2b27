"""Greedy test episodes, drawn apart from training so that looking never disturbs learning."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from torchq.engines.contract import Batch, Engine, EnvState, LearnerState
from torchq.engines.rollout import Rollout
from torchq.philox import Purpose


def greedy_step(
    rollout: Rollout, learner: LearnerState, env_state: EnvState, total: Tensor, alive: Tensor, uniforms: Tensor
) -> tuple[EnvState, Tensor, Tensor]:
    """One greedy step; rewards count until the first episode of each environment ends."""
    values = rollout.learner.action_values(learner, rollout.index(env_state))
    tasks = rollout.test_batch().tasks
    env_state, reward, terminated, truncated = rollout.env.step(tasks, env_state, values.argmax(-1), uniforms)
    total = total + torch.where(alive, reward, 0.0)
    return env_state, total, alive & ~(terminated | truncated)


def starts(rollout: Rollout, engine: Engine, batch: Batch, purpose: Purpose, episode: int, num_envs: int) -> EnvState:
    """Environments at the start of an episode, before which each has played so many: by the engine, where it can."""
    if own := getattr(engine, "starts", None):
        states = own(batch, purpose, [episode], num_envs)
        return type(states)(*(field[0] for field in states))
    return rollout.reset(batch, episode * rollout.env.episode_length, purpose, num_envs)


def evaluate(rollout: Rollout, engine: Engine, learner: LearnerState, evaluation: int, num_episodes: int) -> Tensor:
    """Undiscounted return of the greedy policy, mean over test episodes; shaped (seeds, tested tasks).

    Args:
        rollout: what is trained.
        engine: that plays.
        learner: whose greedy policy to test.
        evaluation: which evaluation this is; equal ones see equal random numbers.
        num_episodes: test episodes per seed and task.
    """
    start = starts(rollout, engine, rollout.test_batch(), Purpose.EVALUATION_RESET, evaluation, num_episodes)
    return mean(engine.greedy_returns(rollout.tested(learner), start, evaluation * rollout.env.episode_length))


def mean(returns: Tensor) -> Tensor:
    """Over test episodes, one after the other: the order of a sum must not depend on how many tasks there are."""
    return reduce(torch.add, returns.unbind(-1)) / returns.shape[-1]
