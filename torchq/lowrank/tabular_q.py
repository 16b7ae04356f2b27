"""Tabular Q-learning, a full table per task: the yardstick below the low-rank learners."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchq.lowrank import cp, td
from torchq.lowrank.transitions import Transition


class TabularState(NamedTuple):
    """One table per run and task."""

    table: Tensor
    """Q, shaped (seeds, tasks, states · actions), actions fastest."""
    num_updates: Tensor
    """Updates so far; int64 of shape ()."""


@dataclass(frozen=True)
class TabularQ:
    """Q-learning on a table for each task, started at zero.                             [Watkins and Dayan 1992]

        Q[s, a] ← Q[s, a] + η Σ δ   over the transitions of the batch that visit (s, a)

    Where a place lies between points, the value is that of multilinear interpolation between the 2ᴰ around it, and each
    of them moves by its weight.

    Args:
        state_sizes: points per state dimension; the table has their product of states.
        num_actions: number of actions.
        num_tasks: M.
    """

    state_sizes: tuple[int, ...]
    num_actions: int
    num_tasks: int

    @property
    def couples_tasks(self) -> bool:
        """Whether a sample of one task changes the values of another."""
        return False

    def init(self, seeds: Tensor, *, device: torch.device | str, dtype: torch.dtype) -> TabularState:
        """Zero tables."""
        size = math.prod(self.state_sizes) * self.num_actions
        table = torch.zeros(len(seeds), self.num_tasks, size, device=device, dtype=dtype)
        return TabularState(table, torch.zeros((), dtype=torch.int64, device=device))

    def action_values(self, state: TabularState, index: tuple[Tensor, ...], task: Tensor | None = None) -> Tensor:
        """Q(s, ·), shaped (seeds, tasks, envs, actions)."""
        if task is not None:
            raise ValueError("task: expected None, because tables learn side by side, got a task number")
        rows, weights = self._rows(index)  # (seeds, tasks, envs, active)
        actions = torch.arange(self.num_actions, device=state.table.device)
        cells = rows.unsqueeze(-2) * self.num_actions + actions.unsqueeze(-1)
        values = state.table.gather(-1, cells.flatten(2)).view(cells.shape)  # (seeds, tasks, envs, actions, active)
        return _weighted(values, weights.unsqueeze(-2))

    def lookup(self, state: TabularState, index: tuple[Tensor, ...], task: Tensor) -> Tensor:
        """Q(s, ·) of a flat batch, a task for each; index and task are (batch,), the values (seeds, batch, actions)."""
        rows, weights = self._rows(index)  # (batch, active)
        cells = rows.unsqueeze(-2) * self.num_actions + torch.arange(self.num_actions, device=task.device).unsqueeze(-1)
        return _weighted(state.table[:, task.view(-1, 1, 1), cells], weights.unsqueeze(-2))

    def update(
        self, state: TabularState, transition: Transition, learning_rate: Tensor, task: Tensor | None = None
    ) -> tuple[TabularState, Tensor]:
        """State after one batch of transitions, and δ before it.

        Raises:
            ValueError: if the batch is not shaped (seeds, tasks, envs), with the seeds and tasks of the state.
        """
        transition.check(len(state.table), self.num_tasks, len(self.state_sizes))
        rows, weights = self._rows(transition.state_index)
        cells = (rows * self.num_actions + transition.action.unsqueeze(-1)).flatten(2)
        next_values = self.action_values(state, transition.next_state_index, task)
        values = _weighted(state.table.gather(-1, cells).view(weights.shape), weights)
        error = td.td_error(values, transition.reward, transition.discount, next_values)
        table = state.table.scatter_add(-1, cells, (learning_rate * error.unsqueeze(-1) * weights).flatten(2))
        return TabularState(table, state.num_updates + 1), error

    def at_tasks(self, policy: TabularState, tasks: Tensor) -> TabularState:
        """The tables of some tasks, (tasks,)."""
        return TabularState(policy.table.index_select(1, tasks), policy.num_updates)

    def join(self, snapshots: list[TabularState]) -> TabularState:
        """A state whose table of task m is that of snapshots[m]."""
        return TabularState(torch.cat([snapshot.table for snapshot in snapshots], dim=1), snapshots[-1].num_updates)

    def policy(self, state: TabularState) -> TabularState:
        """What is tested and kept of a state: all of it."""
        return state

    def _rows(self, index: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Rows of the table that are active at each place, and their weights, (*batch, active)."""
        rows = torch.zeros_like(index[0], dtype=torch.int64).unsqueeze(-1)
        weights = torch.ones_like(rows, dtype=torch.float32)  # Those of places have the type of theirs.
        for place, size in zip(index, self.state_sizes, strict=True):
            if not place.is_floating_point():
                rows = rows * size + place.unsqueeze(-1)
                continue
            below, above, weight = cp.neighbours(place, size)
            both, shares = torch.stack((below, above), -1), torch.stack((1.0 - weight, weight), -1)
            rows = (rows.unsqueeze(-1) * size + both.unsqueeze(-2)).flatten(-2)
            weights = (weights.unsqueeze(-1) * shares.unsqueeze(-2)).flatten(-2)
        return rows, weights


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the last axis; a single value is its own."""
    return values.squeeze(-1) if values.shape[-1] == 1 else (values * weights).sum(-1)
