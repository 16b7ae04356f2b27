"""Greedy test episodes, drawn apart from training so that looking never disturbs learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchq import philox
from torchq.engines.rollout import Problem
from torchq.philox import Purpose

STEPS_PER_BLOCK = 50


def greedy_step(
    problem: Problem, tasks: Any, learner_state: Any, env_state: Any, total: Tensor, alive: Tensor, uniforms: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """One greedy step; rewards count until the first episode of each environment ends."""
    values = problem.learner.action_values(learner_state, problem.index(env_state))
    env_state, reward, terminated, truncated = problem.env.step(tasks, env_state, values.argmax(-1), uniforms)
    total = total + torch.where(alive, reward, 0.0)
    return env_state, total, alive & ~(terminated | truncated)


Greedy = Callable[[Any, Any, Any, int], Tensor]
"""Greedy episodes: (tasks, learner state, environment state, first step) to undiscounted returns like the batch."""


def stepwise(problem: Problem, step: Callable[..., tuple[Any, Tensor, Tensor]] = greedy_step) -> Greedy:
    """Step by step, with `greedy_step` or a compiled form of it."""

    def play(tasks: Any, learner_state: Any, env_state: Any, first: int) -> Tensor:
        env, device = problem.env, problem.seeds.device
        _, num_tasks, num_episodes = shape = env_state.elapsed.shape
        numbers = torch.arange(num_tasks, device=device)
        total = torch.zeros(shape, device=device, dtype=problem.dtype)
        alive = torch.ones(shape, device=device, dtype=torch.bool)
        steps = torch.arange(first, first + env.episode_length, device=device)
        for block in steps.split(STEPS_PER_BLOCK):
            bits = problem.bits(Purpose.EVALUATION_STEP, block, numbers, num_episodes, env.num_step_uniforms)
            for uniforms in philox.uniform(bits, problem.dtype):
                env_state, total, alive = step(problem, tasks, learner_state, env_state, total, alive, uniforms)
        return total

    return play


def evaluate(
    problem: Problem, tasks: Any, learner_state: Any, number: int, num_episodes: int, play: Greedy | None = None
) -> Tensor:
    """Undiscounted return of the greedy policy, mean over test episodes; shaped (seeds, tasks).

    Args:
        problem: what is trained.
        tasks: environment parameters of all tasks.
        learner_state: whose greedy policy to test.
        number: number of this evaluation; equal numbers see equal random numbers.
        num_episodes: test episodes per seed and task.
        play: how; None is step by step.
    """
    env, device = problem.env, problem.seeds.device
    task_numbers = torch.arange(len(next(iter(vars(tasks).values()))), device=device)
    first = number * env.episode_length
    step = torch.full((1,), first, device=device)
    bits = problem.bits(Purpose.EVALUATION_RESET, step, task_numbers, num_episodes, env.num_reset_uniforms)[0]
    env_state = env.reset(tasks, philox.uniform(bits, problem.dtype))
    return (play or stepwise(problem))(tasks, learner_state, env_state, first).mean(-1)
