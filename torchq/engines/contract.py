"""The contract of engines: what they are given, what they give back, and how they say that they cannot run."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from torchq.philox import Purpose

Tasks: TypeAlias = Any
"""A parameters dataclass whose fields are tensors shaped (tasks, 1)."""
EnvState: TypeAlias = Any
"""A NamedTuple of tensors shaped (seeds, tasks, envs), with a field `elapsed`."""
LearnerState: TypeAlias = Any
"""A NamedTuple of tensors, or of tuples of them."""


class Statistics(NamedTuple):
    """Sums over steps since the last reading, shaped (seeds, tasks); NaN and infinity stay in them."""

    reward: Tensor
    """Sum of rewards, mean over environments."""
    episodes: Tensor
    """Episodes ended, mean over environments."""
    absolute_error: Tensor
    """Sum of |δ|, mean over environments."""
    squared_error: Tensor
    """Sum of δ², mean over environments."""

    @classmethod
    def zeros(cls, num_seeds: int, num_tasks: int, device: Any, dtype: torch.dtype) -> Statistics:
        """Nothing seen yet."""
        return cls(*(torch.zeros(num_seeds, num_tasks, device=device, dtype=dtype) for _ in cls._fields))

    def plus(self, *news: Tensor) -> Statistics:
        """With what has been seen since, in the order of the fields."""
        return Statistics(*(old + new.to(old.dtype) for old, new in zip(self, news, strict=True)))


class RunState(NamedTuple):
    """All that changes during a run, or for the tasks of a batch."""

    learner: LearnerState
    env: EnvState
    statistics: Statistics
    replay: Any = ()
    """Stored transitions, see `torchq.lowrank.replay`: written in place, for nothing before a state's own is touched;
    () where nothing is stored."""


class Batch(NamedTuple):
    """The tasks that play together: all of them, or one whose turn it is."""

    tasks: Tasks
    """Their parameters."""
    task_index: Tensor
    """Which they are, (tasks,)."""
    whole: bool
    """Whether they are all tasks in order."""

    @property
    def task(self) -> Tensor | None:
        """The index of the only task, (1,), or None for all: what learners ask for."""
        return None if self.whole else self.task_index

    @property
    def parameters(self) -> Tensor:
        """Parameters in columns, (tasks, parameters)."""
        columns = [getattr(self.tasks, field.name).flatten() for field in dataclasses.fields(self.tasks)]
        return torch.stack(columns, dim=-1).contiguous()


class Rates(NamedTuple):
    """Exploration rate ε and learning rate η of consecutive steps, each of shape (steps,)."""

    epsilon: Tensor
    learning_rate: Tensor


class Block(NamedTuple):
    """Rounds to play one after the other: each an episode of every task, all together or in turns, and its test."""

    first_round: int
    """Rounds played before."""
    turns: int
    """Turns of a round: one for each task, or one of all together."""
    rates: Rates
    """Of all steps, (rounds, turns, steps)."""
    starts: EnvState | None
    """Environments at the start of each round, (rounds, seeds, tasks, envs); None: they go on where they are."""
    test: Tensor
    """Number of the test after each round, or −1, (rounds,)."""
    test_starts: EnvState
    """Environments at the start of each test, (tests, seeds, tested tasks, episodes)."""


class Played(NamedTuple):
    """What a block leaves."""

    learner: LearnerState
    env: EnvState
    statistics: Tensor
    """The fields of `Statistics` of each round, float64, (rounds, seeds, tasks, 4)."""
    returns: Tensor
    """Undiscounted returns of the tests, (tests, seeds, tested tasks, episodes)."""
    finite: Tensor
    """Whether everything learnt was finite at each test, (tests,)."""


class Evaluation(NamedTuple):
    """A test of the greedy policy."""

    episode: int
    """Rounds played by then."""
    returns: Tensor
    """Mean over test episodes, (seeds, tested tasks)."""
    statistics: Statistics
    """Since the evaluation before."""
    finite: Tensor
    """Whether everything learnt is finite, ()."""


class UnavailableError(Exception):
    """An engine cannot run here, or not this run: one line that says why. Engines raise it when they are built."""


@runtime_checkable
class BlockEngine(Protocol):
    """An engine that plays many rounds in one call, so that Python is not entered for each."""

    def play(self, block: Block, state: RunState) -> Played:
        """The rounds of a block; the state given stays as it was."""
        ...

    def starts(self, batch: Batch, purpose: Purpose, episodes: list[int], num_envs: int) -> EnvState:
        """Environments at the start of episodes, by how many came before, (episodes, seeds, tasks, envs)."""
        ...


class Engine(Protocol):
    """A way to execute the steps of one `Rollout`, of which it is built."""

    name: str
    """As the configuration calls it."""

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int) -> RunState:
        """Consecutive steps of the behaviour policy with their updates; the state given stays as it was.

        But for its replay memory, which the state returned goes on with; see `RunState.replay`.

        Args:
            batch: who plays.
            state: before; environments and statistics of the tasks in the batch.
            rates: of each step.
            first_step: how many steps each environment has taken before; random numbers follow from it.
        """
        ...

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Undiscounted returns of greedy episodes of all tested tasks, like the batch: (seeds, tasks, envs).

        Args:
            learner: whose greedy policy plays.
            env: at the start of the episodes.
            first_step: from which random numbers follow.
        """
        ...
