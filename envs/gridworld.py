"""A family of small mazes without walls that differ in their goal: action values known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class GridworldState(NamedTuple):
    """State of a batch of walkers."""

    row: Tensor
    """Row in [0, size), a whole number."""
    column: Tensor
    """Column in [0, size), a whole number."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class GridworldTask:
    """One goal cell, or many of them as tensors shaped (tasks, 1)."""

    goal_row: float | Tensor
    """Row of the goal in [0, size)."""
    goal_column: float | Tensor
    """Column of the goal in [0, size)."""


_MOST_FOR_OPTIMUM = 1000
"""Rows of a grid whose optimum is computed, cell by cell."""


@dataclass(frozen=True)
class Gridworld:
    """Walk to the goal, one cell a step.

    ## Observation
    (row, column), whole numbers in [0, size).

    ## Action
    Discrete: 0 up, 1 right, 2 down, 3 left; a step against the border stays.

    ## Reward
    −1 a step.

    ## Start
    Any cell but the goal, uniformly.

    ## End
    Terminates at the goal; truncated after `episode_length` steps.

    The optimal values are known: with d the number of steps from the next cell to the goal,
    Q*(s, a) = −(1 − γ^(d+1)) / (1 − γ).
    """

    size: int = 5
    episode_length: int = 50

    name = "gridworld"
    terminates = True
    num_actions = 4
    num_reset_uniforms = 1
    num_step_uniforms = 0

    @property
    def grid_low(self) -> tuple[float, ...]:
        """Lowest cell."""
        return (0.0, 0.0)

    @property
    def grid_high(self) -> tuple[float, ...]:
        """Highest cell."""
        return (self.size - 1.0, self.size - 1.0)

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Cells per dimension."""
        return (self.size, self.size)

    @property
    def dimensions(self) -> tuple[base.Dimension, ...]:
        """Cells are categories."""
        return (base.Dimension(0.0, self.size - 1.0, self.size, "category"),) * 2

    @property
    def parameters(self) -> tuple[base.Dimension, ...]:
        """Goals are cells."""
        return self.dimensions

    observation_names = ("row", "column")
    action_names = ("up", "right", "down", "left")
    observation_low = grid_low
    observation_high = grid_high

    def sample_tasks(self, num_tasks: int | None = None) -> list[GridworldTask]:
        """Goals in the four corners by default; more tasks go through all cells, corners first."""
        last = self.size - 1
        corners = [(0, 0), (0, last), (last, 0), (last, last)]
        cells = (divmod(number, self.size) for number in range(self.size**2))
        others = (cell for cell in cells if cell not in corners)
        goals = list(islice(chain(corners, others), num_tasks or 4))
        return [GridworldTask(*map(float, goals[i % len(goals)])) for i in range(num_tasks or 4)]

    def optimal_returns(self, tasks: list[GridworldTask], device: torch.device | str = "cpu") -> list[float] | None:
        """Expected undiscounted return of an optimal policy for each task, over one episode; None on a huge grid."""
        from . import optimal

        if self.size > _MOST_FOR_OPTIMUM:
            return None
        return [optimal.gridworld(self, task) for task in tasks]

    def optimal_policy(self, task: GridworldTask) -> base.Policy:
        """What an optimal policy does in one task: down or up first, then along."""
        from . import optimal_policies

        return optimal_policies.gridworld(task)

    def reset(self, tasks: GridworldTask, uniforms: Tensor) -> GridworldState:
        """Walkers on any cell but their goal, from uniforms shaped (seeds, tasks, envs, 1)."""
        dtype = base.dtype_of(tasks)
        goal = tasks.goal_row * self.size + tasks.goal_column
        cell = torch.floor(uniforms[..., 0].to(dtype) * (self.size**2 - 1))
        cell = torch.where(cell >= goal, cell + 1, cell)
        row = torch.floor(cell / self.size)
        return GridworldState(row, cell - row * self.size, torch.zeros_like(cell, dtype=torch.int32))

    def step(
        self, tasks: GridworldTask, state: GridworldState, action: Tensor, uniforms: Tensor
    ) -> tuple[GridworldState, Tensor, Tensor, Tensor]:
        """One move; uses no random numbers."""
        dtype = state.row.dtype
        down = (action == 2).to(dtype) - (action == 0).to(dtype)
        right = (action == 1).to(dtype) - (action == 3).to(dtype)
        row = (state.row + down).clamp(0, self.size - 1)
        column = (state.column + right).clamp(0, self.size - 1)
        terminated = (row == tasks.goal_row) & (column == tasks.goal_column)
        elapsed = state.elapsed + 1
        return (
            GridworldState(row, column, elapsed),
            torch.full_like(row, -1.0),
            terminated,
            (elapsed >= self.episode_length) & ~terminated,
        )

    def observe(self, state: GridworldState) -> Tensor:
        """(row, column), shaped (seeds, tasks, envs, 2)."""
        return torch.stack((state.row, state.column), dim=-1)

    def optimal_action_values(self, tasks: GridworldTask, gamma: float) -> Tensor:
        """Q* of every task, shaped (tasks, size, size, 4); the goal's own row is that of a walker put there."""
        dtype = base.dtype_of(tasks)
        cells = torch.arange(self.size, dtype=dtype)
        row, column = torch.meshgrid(cells, cells, indexing="ij")
        state = GridworldState(
            row.reshape(1, 1, -1, 1).expand(1, 1, -1, 4).flatten(2),
            column.reshape(1, 1, -1, 1).expand(1, 1, -1, 4).flatten(2),
            torch.zeros(1, 1, 4 * self.size**2, dtype=torch.int32),
        )
        action = torch.arange(4).repeat(self.size**2).view(1, 1, -1)
        landed = self.step(tasks, state, action, state.row.unsqueeze(-1))[0]
        distance = (landed.row - tasks.goal_row).abs() + (landed.column - tasks.goal_column).abs()
        values = -(1.0 - gamma ** (distance + 1)) / (1.0 - gamma)
        return values.reshape(-1, self.size, self.size, 4)
