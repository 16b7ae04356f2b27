"""The two ways to play one round, an episode of every task: all tasks together, or the paper's turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.config import Config
from torchq.engines.rollout import Draws, Problem, Statistics
from torchq.lowrank.exploration import exponential_decay, harmonic_decay

_DRAWS_PER_BLOCK = 1 << 20


class RunState(NamedTuple):
    """All that changes during a run."""

    learner: Any
    env: Any
    statistics: Statistics


class Tables(NamedTuple):
    """Exploration and learning rates for consecutive steps, each of shape (steps,)."""

    epsilon: Tensor
    learning_rate: Tensor


def takes_turns(config: Config, problem: Problem) -> bool:
    """Whether one task plays at a time. Tasks that share nothing need no turns: side by side is the same chain."""
    return config.protocol == "online" and problem.learner.couples_tasks


def schedule(config: Config, problem: Problem, first_step: int, first_tick: int, ticks_per_step: int) -> Tables:
    """Rates for the steps of one episode.

    Args:
        config: hyper-parameters.
        problem: device and dtype.
        first_step: steps that each environment has taken before.
        first_tick: transitions that the exploration clock has counted before.
        ticks_per_step: transitions that it counts at each step.
    """
    steps = torch.arange(problem.env.episode_length, dtype=torch.float64, device=problem.seeds.device)
    ticks = first_tick + steps * ticks_per_step
    samples = (first_step + steps) * config.num_envs
    half_life = config.learning_rate_half_life or float("inf")
    return Tables(
        exponential_decay(ticks, config.epsilon_start, config.epsilon_end, config.epsilon_decay).to(problem.dtype),
        harmonic_decay(samples, config.learning_rate, half_life).to(problem.dtype),
    )


def block_draws(problem: Problem, steps: Tensor, tasks: Tensor) -> Iterator[Draws]:
    """Random numbers of consecutive steps, made for a block of them at a time."""
    words = 4 + problem.env.num_step_uniforms + problem.env.num_reset_uniforms
    per_step = len(problem.seeds) * len(tasks) * problem.num_envs * words
    for block in steps.split(max(1, _DRAWS_PER_BLOCK // per_step)):
        yield from (
            Draws(*step) for step in zip(*(field.unbind(0) for field in problem.draw(block, tasks)), strict=True)
        )


Advance = Callable[[Any, Any, Any, Statistics, Any, Tables, Tensor | None], tuple[Any, Any, Statistics]]
"""Consecutive steps: (tasks, learner state, environment state, statistics, first step, rates, task) to the three after.

The first step is a number or a tensor of shape (1,). `rates` has an entry for each step; `task` is None if the batch
holds all tasks in order, else the number of its only one, shape (1,)."""


def stepwise(problem: Problem, step: Callable[..., tuple[Any, Any, Statistics]]) -> Advance:
    """Step by step, with `Problem.step` or a compiled form of it."""

    def advance(
        tasks: Any, learner: Any, env: Any, statistics: Statistics, first: Any, rates: Tables, task: Tensor | None
    ) -> tuple[Any, Any, Statistics]:
        device = problem.seeds.device
        steps = first + torch.arange(len(rates.epsilon), device=device)
        numbers = torch.arange(statistics.reward.shape[1], device=device) if task is None else task
        for draws, epsilon, rate in zip(block_draws(problem, steps, numbers), *rates, strict=True):
            learner, env, statistics = step(tasks, learner, env, statistics, draws, epsilon, rate, task)
        return learner, env, statistics

    return advance


def batched_round(
    config: Config, problem: Problem, tasks: Any, state: RunState, episode: int, advance: Advance
) -> RunState:
    """One episode of every environment of every task, all stepping and updating together.

    Environments that never terminate end together and are reset here; others reset themselves, each at its own end.
    """
    device, length = problem.seeds.device, problem.env.episode_length
    num_tasks = state.statistics.reward.shape[1]
    numbers = torch.arange(num_tasks, device=device)
    first = episode * length
    ticks_per_step = config.num_envs * config.epsilon_clock(num_tasks)
    rates = schedule(config, problem, first, first * ticks_per_step, ticks_per_step)
    learner, env, statistics = state
    if not problem.env.terminates:
        env = problem.reset(tasks, torch.full((1,), first, device=device), numbers)
    return RunState(*advance(tasks, learner, env, statistics, first, rates, None))


def turns_round(
    config: Config,
    problem: Problem,
    select_tasks: Callable[[Any, Tensor], Any],
    tasks: Any,
    state: RunState,
    episode: int,
    advance: Advance,
) -> tuple[RunState, list[Any]]:
    """One episode of each task in turn, and what the learner knew of each task at the end of its turn."""
    device, length = problem.seeds.device, problem.env.episode_length
    num_tasks = state.statistics.reward.shape[1]
    numbers = torch.arange(num_tasks, device=device)
    fresh = problem.reset(tasks, torch.full((1,), episode * length, device=device), numbers)
    learner, env, statistics = state
    snapshots, columns = [], []
    for number in range(num_tasks):
        task = numbers[number : number + 1]
        own = select_tasks(tasks, task)
        seen = Statistics(*(total[:, number : number + 1] for total in statistics))
        rates = schedule(config, problem, episode * length, (episode * num_tasks + number) * length, 1)
        env = type(fresh)(*(field[:, number : number + 1] for field in fresh))
        learner, env, seen = advance(own, learner, env, seen, episode * length, rates, task)
        snapshots.append(problem.learner.snapshot(learner, number))
        columns.append(seen)
    statistics = Statistics(*(torch.cat(totals, dim=1) for totals in zip(*columns, strict=True)))
    return RunState(learner, env, statistics), snapshots
