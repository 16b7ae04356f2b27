"""Optimal returns of batteries by dynamic programming, many at once.

    V_T = 0,   V_t(s, z) = maxₐ r(s, z, h, a) + Σ_z′ P(z, z′) V_{t+1}(s′, z′)      (Bellman 1957; undiscounted)

on a grid of charges and deviations, linear between charges. The deviation is a Markov chain on a grid that has the mean
and variance of the process in every step, exactly (Rouwenhorst, in Cooley, Frontiers of Business Cycle Research, 1995;
Kopecky and Suen, Review of Economic Dynamics 2010). Reward and next charge are those of the family's `step`; the next
charge depends neither on the hour nor on the price, so that a step back in time is one product of small matrices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import base

if TYPE_CHECKING:
    from .storage import Storage, StorageTask

CHUNK = 1 << 24
"""Numbers in the largest tensor, at most: memory does not grow with the number of tasks."""


def chain(persistence: float, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations, their transition matrix, and their stationary distribution."""
    p = (1.0 + persistence) / 2.0
    matrix = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64)
    for size in range(3, points + 1):
        grown = torch.zeros(size, size, dtype=torch.float64)
        for share, rows, columns in ((p, 0, 0), (1 - p, 0, 1), (1 - p, 1, 0), (p, 1, 1)):
            grown[rows : rows + size - 1, columns : columns + size - 1] += share * matrix
        grown[1:-1] /= 2.0
        matrix = grown
    weights = torch.tensor([math.comb(points - 1, k) for k in range(points)], dtype=torch.float64) / 2.0 ** (points - 1)
    end = math.sqrt(points - 1.0)
    return torch.linspace(-end, end, points, dtype=torch.float64), matrix, weights


def returns(
    env: Storage, tasks: list[StorageTask], device: torch.device | str = "cpu", charges: int = 33, deviations: int = 11
) -> list[float]:
    """Optimal return of each battery.

    Args:
        env: the family.
        tasks: parameters of each, as numbers.
        device: where to compute.
        charges: points of the charge, odd, so that the start is one.
        deviations: points of the price.
    """
    at_once = max(1, CHUNK // (24 * env.num_actions * charges * deviations))
    found: list[float] = []
    for first in range(0, len(tasks), at_once):
        found += _solve(env, tasks[first : first + at_once], device, charges, deviations).tolist()
    return found


def _solve(
    env: Storage, tasks: list[StorageTask], device: torch.device | str, charges: int, deviations: int
) -> Tensor:
    """Optimal returns of some batteries, (tasks,)."""
    axis, transition, start = (x.float().to(device) for x in chain(env.persistence, deviations))
    rewards, weights = model(env, tasks, torch.linspace(0.0, 1.0, charges, device=device), axis)
    value = rewards.new_zeros(len(tasks), charges, deviations)
    for step in reversed(range(env.episode_length)):
        ahead = torch.baddbmm(rewards[step % 24].flatten(1, 2), weights.flatten(1, 2), value @ transition.T)
        value = ahead.view(len(tasks), env.num_actions, charges, deviations).amax(1)
    return value[:, charges // 2] @ start


def model(env: Storage, tasks: list[StorageTask], charge: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (24, tasks, actions, charges, deviations), and where charges go, (tasks, actions, charges, charges)."""
    from .storage import StorageState

    stacked = base.stack_tasks(tasks, device=charge.device, dtype=torch.float32)
    shape = (len(tasks), env.num_actions, len(charge), len(deviation))
    action = torch.arange(env.num_actions, device=charge.device)
    parts = (action[:, None, None], charge[:, None], deviation)
    action, start, price = (part.expand(shape[1:]).reshape(1, 1, -1).expand(1, len(tasks), -1) for part in parts)
    rewards = charge.new_empty(24, *shape)
    for hour in range(24):
        state = StorageState(start, price, torch.full_like(action, hour, dtype=torch.int32))
        after, reward, _, _ = env.step(stacked, state, action, charge.new_full((*start.shape, 2), 0.5))
        rewards[hour] = reward.view(shape)
    place = after.charge.view(shape)[..., 0] * (len(charge) - 1)
    weights = (1.0 - (place.unsqueeze(-1) - torch.arange(len(charge), device=charge.device)).abs()).clamp(min=0.0)
    return rewards, weights
