"""Greedy test episodes, drawn apart from training so that looking never disturbs learning."""

from __future__ import annotations

import torch
from torch import Tensor

from torchq import philox
from torchq.engines.contract import Engine, EnvState, LearnerState
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


def evaluate(rollout: Rollout, engine: Engine, learner: LearnerState, evaluation: int, num_episodes: int) -> Tensor:
    """Undiscounted return of the greedy policy, mean over test episodes; shaped (seeds, tested tasks).

    Args:
        rollout: what is trained.
        engine: that plays.
        learner: whose greedy policy to test.
        evaluation: which evaluation this is; equal ones see equal random numbers.
        num_episodes: test episodes per seed and task.
    """
    env, batch = rollout.env, rollout.test_batch()
    first = evaluation * env.episode_length
    step = torch.full((1,), first, device=rollout.device)
    bits = rollout.bits(Purpose.EVALUATION_RESET, step, batch.task_index, num_episodes, env.num_reset_uniforms)[0]
    start = env.reset(batch.tasks, philox.uniform(bits, rollout.dtype))
    return engine.greedy_returns(learner, start, first).mean(-1)
