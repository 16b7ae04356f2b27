"""Act, step, learn: one step of every environment of a batch, and the random numbers for many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchq import philox
from torchq.lowrank.exploration import epsilon_greedy
from torchq.lowrank.grid import Grid
from torchq.lowrank.learner import Learner
from torchq.lowrank.transitions import Transition
from torchq.philox import Purpose


class Environment(Protocol):
    """What the loop asks of an environment: pure functions on batches shaped (seeds, tasks, envs)."""

    name: str
    terminates: bool
    num_reset_uniforms: int
    num_step_uniforms: int

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        ...

    @property
    def episode_length(self) -> int:
        """Steps until an episode is truncated."""
        ...

    @property
    def grid_low(self) -> tuple[float, ...]:
        """Lowest grid point per observation dimension."""
        ...

    @property
    def grid_high(self) -> tuple[float, ...]:
        """Highest grid point per observation dimension."""
        ...

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Grid points per observation dimension."""
        ...

    def reset(self, tasks: Any, uniforms: Tensor) -> Any:
        """State at the start of an episode."""
        ...

    def step(self, tasks: Any, state: Any, action: Tensor, uniforms: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        """State, reward, terminated and truncated after one step."""
        ...

    def observe(self, state: Any) -> Tensor:
        """Observation, shaped (seeds, tasks, envs, dimensions)."""
        ...


class Draws(NamedTuple):
    """Random numbers of one step or, with a leading axis, of many; shapes (seeds, tasks, envs[, n])."""

    explore: Tensor
    random_action: Tensor
    step: Tensor
    autoreset: Tensor


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


@dataclass(frozen=True)
class Problem:
    """Everything that stays the same during a run.

    Args:
        env: the family of environments.
        grid: from observations to rows of the factors.
        learner: the method.
        gamma: discount γ in [0, 1].
        seeds: int64 seeds of the runs, (seeds,).
        num_envs: environments per run and task.
        dtype: floating-point type of environments and learner.
    """

    env: Environment
    grid: Grid
    learner: Learner
    gamma: float
    seeds: Tensor
    num_envs: int
    dtype: torch.dtype

    def bits(self, purpose: Purpose, steps: Tensor, tasks: Tensor, num_envs: int, count: int) -> Tensor:
        """Random words of this run's seeds on this run's device."""
        envs = torch.arange(num_envs, device=self.seeds.device)
        return philox.random_bits(self.seeds, steps, purpose, tasks, envs, count)

    def draw(self, steps: Tensor, tasks: Tensor) -> Draws:
        """Random numbers of training steps, with a leading axis of steps."""
        explore, action = self.bits(Purpose.EXPLORATION, steps, tasks, self.num_envs, 2).unbind(-1)
        step = self.bits(Purpose.STEP, steps, tasks, self.num_envs, self.env.num_step_uniforms)
        num_reset = self.env.num_reset_uniforms if self.env.terminates else 0
        autoreset = self.bits(Purpose.AUTORESET, steps, tasks, self.num_envs, num_reset)
        return Draws(
            philox.uniform(explore, self.dtype),
            philox.integers(action, self.env.num_actions),
            philox.uniform(step, self.dtype),
            philox.uniform(autoreset, self.dtype),
        )

    def reset(self, tasks: Any, step: Tensor, task_numbers: Tensor) -> Any:
        """Environments at the start of an episode, at step counter `step` of shape (1,)."""
        bits = self.bits(Purpose.RESET, step, task_numbers, self.num_envs, self.env.num_reset_uniforms)[0]
        return self.env.reset(tasks, philox.uniform(bits, self.dtype))

    def index(self, env_state: Any) -> tuple[Tensor, ...]:
        """Rows of the state modes."""
        return self.grid.index(self.env.observe(env_state))

    def step(
        self,
        tasks: Any,
        learner_state: Any,
        env_state: Any,
        statistics: Statistics,
        draws: Draws,
        epsilon: Tensor,
        learning_rate: Tensor,
        task: Tensor | None,
    ) -> tuple[Any, Any, Statistics]:
        """One step of the behaviour policy in every environment, and one update from all of them.

        Args:
            tasks: environment parameters of the tasks in the batch.
            learner_state: before.
            env_state: before.
            statistics: sums so far, of the tasks in the batch.
            draws: random numbers of this step.
            epsilon: exploration rate, shape ().
            learning_rate: η, shape ().
            task: None if the batch holds all tasks in order, else the number of its only task, shape (1,).

        Returns:
            Learner state, environment state and statistics after.
        """
        index = self.index(env_state)
        values = self.learner.action_values(learner_state, index, task)
        action = epsilon_greedy(values, epsilon, draws.explore, draws.random_action)
        env_state, reward, terminated, truncated = self.env.step(tasks, env_state, action, draws.step)
        discount = self.gamma * (~terminated).to(reward.dtype)
        transition = Transition(index, action, reward, discount, self.index(env_state))
        learner_state, error = self.learner.update(learner_state, transition, learning_rate, task)
        done = terminated | truncated
        statistics = Statistics(
            statistics.reward + reward.mean(-1),
            statistics.episodes + done.to(reward.dtype).mean(-1),
            statistics.absolute_error + error.abs().mean(-1),
            statistics.squared_error + (error * error).mean(-1),
        )
        if self.env.terminates:
            fresh = self.env.reset(tasks, draws.autoreset)
            env_state = type(env_state)(
                *(torch.where(done, new, old) for new, old in zip(fresh, env_state, strict=True))
            )
        return learner_state, env_state, statistics
