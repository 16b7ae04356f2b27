"""The two ways to play one round, an episode of every task: all tasks together, or the paper's turns."""

from __future__ import annotations

from typing import Any

import torch

from torchq.config import Config
from torchq.engines.contract import Engine, LearnerState, Rates, RunState, Statistics
from torchq.engines.evaluation import starts
from torchq.engines.external import noisy
from torchq.engines.rollout import Rollout
from torchq.lowrank import row_fit
from torchq.lowrank.exploration import exponential_decay, harmonic_decay
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.transitions import Transition
from torchq.philox import Purpose

_TRANSITIONS_OF_A_CALL = 50_000_000


def play_round(
    config: Config, rollout: Rollout, engine: Engine, state: RunState, episode: int
) -> tuple[RunState, LearnerState]:
    """One round: the state after an episode of every task, and the learner whose greedy policy is tested."""
    if not takes_turns(config, rollout):
        state = batched_round(config, rollout, engine, state, episode)
        return state, rollout.learner.policy(state.learner)
    state, snapshots = turns_round(config, rollout, engine, state, episode)
    return state, rollout.learner.join(snapshots)


def turn_rates(config: Config, rollout: Rollout, episode: int, turn: int) -> Rates:
    """Rates for the steps of one episode: of all tasks together, or of the task whose turn it is."""
    first = episode * rollout.env.episode_length
    if takes_turns(config, rollout):
        return schedule(config, rollout, first, first * rollout.num_tasks + turn * rollout.env.episode_length, 1)
    ticks_per_step = config.num_envs * config.epsilon_clock(rollout.num_tasks)
    return schedule(config, rollout, first, first * ticks_per_step, ticks_per_step)


def takes_turns(config: Config, rollout: Rollout) -> bool:
    """Whether one task plays at a time. Tasks that share nothing need no turns: side by side is the same chain."""
    return config.protocol == "online" and rollout.learner.couples_tasks


def schedule(config: Config, rollout: Rollout, first_step: int, first_tick: int, ticks_per_step: int) -> Rates:
    """Rates for the steps of one episode.

    Args:
        config: hyper-parameters.
        rollout: device and dtype.
        first_step: steps that each environment has taken before.
        first_tick: transitions that the exploration clock has counted before.
        ticks_per_step: transitions that it counts at each step.
    """
    steps = torch.arange(rollout.env.episode_length, dtype=torch.float64, device=rollout.device)
    before = config.samples_before
    ticks = before * config.epsilon_clock(rollout.num_tasks) + first_tick + steps * ticks_per_step
    samples = before + (first_step + steps) * config.num_envs
    half_life = config.learning_rate_half_life or float("inf")
    return Rates(
        exponential_decay(ticks, config.epsilon_start, config.epsilon_end, config.epsilon_decay).to(rollout.dtype),
        harmonic_decay(samples, 0.0 if fits(config) else config.learning_rate, half_life).to(rollout.dtype),
    )


def batched_round(config: Config, rollout: Rollout, engine: Engine, state: RunState, episode: int) -> RunState:
    """One episode of every environment of every task, all stepping and updating together.

    Environments that never terminate end together and are reset here; others reset themselves, each at its own end.
    """
    batch, first = rollout.batch(), episode * rollout.env.episode_length
    if not rollout.env.terminates:
        env = starts(rollout, engine, batch, Purpose.RESET, episode, rollout.num_envs)
        state = state._replace(env=env)
    rates, done = turn_rates(config, rollout, episode, 0), 0
    for part in zip(*(rate.split(steps_of_a_call(config, rollout)) for rate in rates), strict=True):
        state, done = engine.train(batch, state, Rates(*part), first + done), done + len(part[0])
    return _fitted(rollout, state, episode + 1) if fits(config) else state


def steps_of_a_call(config: Config, rollout: Rollout) -> int:
    """Steps after which Python has its turn, for signals: by the sizes of the whole run, whoever shares it."""
    again = config.replay_ratio * (config.num_envs + config.replay_batch) if config.replay_ratio else config.num_envs
    each = int(config.num_tasks or 1) * config.num_seeds * max(1, again)
    return min(rollout.env.episode_length, max(1, _TRANSITIONS_OF_A_CALL // each))


def fits(config: Config) -> bool:
    """Whether rows of tasks are fitted to all samples after each episode, and nothing learns in between."""
    return config.adapt_from is not None and config.fit == "least-squares"


def _fitted(rollout: Rollout, state: RunState, episodes: int) -> RunState:
    """The state with the rows of tasks fitted to all that is stored, after so many episodes."""
    env, learner = rollout.env, rollout.learner
    assert isinstance(learner, LowRankQ)
    assert rollout.replay is not None
    index = rollout.index(state.env)
    zero = torch.zeros_like(state.env.elapsed, dtype=rollout.dtype)
    like = Transition(index, zero.long(), zero, zero, index)
    fitted = row_fit.refit(
        learner, state.learner, state.replay, episodes, env.episode_length * rollout.num_envs, rollout.replay.capacity,
        like, noisy(env),
    )  # fmt: skip
    return state._replace(learner=fitted)


def turns_round(
    config: Config, rollout: Rollout, engine: Engine, state: RunState, episode: int
) -> tuple[RunState, list[LearnerState]]:
    """One episode of each task in turn, and what the learner knew of each task at the end of its turn."""
    length, num_tasks = rollout.env.episode_length, rollout.num_tasks
    first = episode * length
    fresh = starts(rollout, engine, rollout.batch(), Purpose.RESET, episode, rollout.num_envs)
    learner, env, statistics, _ = state
    snapshots, seen = [], []
    for task in range(num_tasks):
        rates = turn_rates(config, rollout, episode, task)
        turn = RunState(learner, _columns(fresh, task), _columns(statistics, task))
        learner, env, column, _ = engine.train(rollout.batch(task), turn, rates, first)
        own = torch.full((1,), task, device=rollout.device)
        snapshots.append(rollout.learner.at_tasks(rollout.learner.policy(learner), own))
        seen.append(column)
    statistics = Statistics(*(torch.cat(columns, dim=1) for columns in zip(*seen, strict=True)))
    return RunState(learner, env, statistics), snapshots


def _columns(fields: Any, task: int) -> Any:
    """What belongs to one task of a tuple of tensors shaped (seeds, tasks, …)."""
    return type(fields)(*(field[:, task : task + 1] for field in fields))
