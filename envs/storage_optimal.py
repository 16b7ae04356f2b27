"""Optimal returns of batteries by dynamic programming, many at once.

    V_T = 0,   V_t(s, z) = maxₐ r(s, z, h, a) + Σ_z′ P(z, z′) V_{t+1}(s′, z′)      (Bellman 1957; undiscounted)

on a grid of charges and deviations, linear between charges. The deviation is a Markov chain on a grid that has the mean
and variance of the process in every step, exactly (Rouwenhorst, in Cooley, Frontiers of Business Cycle Research, 1995;
Kopecky and Suen, Review of Economic Dynamics 2010). Reward and next charge are those of the family's `step`; the next
charge depends neither on the hour nor on the price, so that a step back in time is one product of small matrices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import base

if TYPE_CHECKING:
    from .storage import Storage, StorageState, StorageTask

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
    at_once = max(1, CHUNK // (env.num_actions * charges * charges))
    found: list[float] = []
    for first in range(0, len(tasks), at_once):
        values, weights = solve(env, tasks[first : first + at_once], device, charges, deviations)
        found += (values[-1][:, charges // 2] @ weights).tolist()
    return found


def solve(
    env: Storage,
    tasks: list[StorageTask],
    device: torch.device | str,
    charges: int,
    deviations: int,
    keep: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Optimal values of some batteries by hours left, (tasks, charges, deviations) each, and how probable deviations
    are at the start; only the last unless all are to be kept.
    """  # noqa: D205
    axis, transition, start = (x.float().to(device) for x in chain(env.persistence, deviations))
    stacked = base.stack_tasks(tasks, device=device, dtype=torch.float32)
    going, prices = model(env, stacked, torch.linspace(0.0, 1.0, charges, device=device), axis)
    value = going.new_zeros(len(tasks), charges, deviations)
    values = [value]
    for step in reversed(range(env.episode_length)):
        ahead = going @ torch.cat((value @ transition.T, prices[step % 24]), dim=1)
        value = ahead.view(len(tasks), env.num_actions, charges, deviations).amax(1)
        values = [*values, value] if keep else [value]
    return values, start


def model(env: Storage, tasks: StorageTask, charge: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """A battery and its prices as matrices, from the family's `step`.

    Returns:
        For each task, action and charge, (tasks, actions · charges, charges + 2): the weights of the next charges, what
        a price of 1 adds to the reward, and the reward at a price of 0; and (24, tasks, 2, deviations): the prices of
        each hour, and ones.
    """
    from .storage import StorageState

    num_tasks, num_charges = len(tasks.hours), len(charge)  # type: ignore[arg-type]
    shape = (1, num_tasks, env.num_actions * num_charges)
    action = torch.arange(env.num_actions, device=charge.device).repeat_interleave(num_charges).expand(shape)
    start = charge.repeat(env.num_actions).expand(shape)
    midnight, noise = torch.zeros_like(action, dtype=torch.int32), charge.new_full((*shape, 2), 0.5)
    seen = []
    moving = dataclasses.replace(tasks, volatility=torch.ones_like(tasks.hours))  # type: ignore[arg-type]
    for place in (-1.0, 1.0):  # The reward is linear in the price.
        state = StorageState(start, torch.full_like(start, place), midnight)
        after, reward, _, _ = env.step(moving, state, action, noise)
        seen.append((env.price(moving, state.deviation, midnight)[0], reward[0]))
    (low, at_low), (high, at_high) = seen
    slope = (at_high - at_low) / (high - low)
    apart = after.charge[0].unsqueeze(-1) * (num_charges - 1) - torch.arange(num_charges, device=charge.device)
    weights = (1.0 - apart.abs()).clamp(min=0.0)
    columns = deviation.expand(1, num_tasks, -1)
    prices = [env.price(tasks, columns, torch.full_like(columns, hour))[0] for hour in range(24)]
    pairs = torch.stack([torch.stack((price, torch.ones_like(price)), dim=1) for price in prices])
    return torch.cat((weights, slope.unsqueeze(-1), (at_low - slope * low).unsqueeze(-1)), dim=-1), pairs


def policy(
    env: Storage, tasks: list[StorageTask], charges: int = 33, deviations: int = 11
) -> Callable[[StorageState], Tensor]:
    """What is best in a state, by the values ahead: bilinear between the points of the grid."""
    values, _ = solve(env, tasks, "cpu", charges, deviations, keep=True)
    axis, transition, _ = (x.float() for x in chain(env.persistence, deviations))
    stacked = base.stack_tasks(tasks, dtype=torch.float32)

    def act(state: StorageState) -> Tensor:
        left = env.episode_length - 1 - int(state.elapsed.flatten()[0])  # All episodes begin together.
        ahead = (values[left] @ transition.T).flatten(1)
        column, right = _between(state.deviation[0], float(axis[0]), float(axis[-1]), deviations)
        expected = []
        for action in range(env.num_actions):
            chosen = torch.full_like(state.elapsed, action, dtype=torch.int64)
            after, reward, _, _ = env.step(stacked, state, chosen, state.charge.new_full((*chosen.shape, 2), 0.5))
            row, above = _between(after.charge[0], 0.0, 1.0, charges)
            corner = row * deviations + column
            low = (1 - right) * ahead.gather(1, corner) + right * ahead.gather(1, corner + 1)
            corner = corner + deviations
            high = (1 - right) * ahead.gather(1, corner) + right * ahead.gather(1, corner + 1)
            expected.append(reward + (1 - above) * low + above * high)
        return torch.stack(expected).argmax(0)

    return act


def _between(x: Tensor, low: float, high: float, points: int) -> tuple[Tensor, Tensor]:
    """The point below on an even grid, and the weight of the one above."""
    place = ((x - low) / (high - low) * (points - 1)).clamp(0, points - 1)
    below = place.floor().long().clamp(max=points - 2)
    return below, place - below
