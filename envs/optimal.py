"""Optimal returns by finite-horizon dynamic programming on fine grids: the line that a learning curve cannot cross.

    V_T = 0,   V_t(s) = maxₐ E[ r(s, a) + V_{t+1}(s′) ]                      (Bellman 1957; undiscounted)

with multilinear interpolation between grid points and the same finite actions that the learners have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from .gridworld import Gridworld, GridworldTask
from .pendulum import Pendulum, PendulumState, PendulumTask
from .wireless import Wireless, WirelessState, WirelessTask


def _interpolation(x: Tensor, low: float, high: float, size: int) -> tuple[Tensor, Tensor]:
    """Left neighbour and weight of the right one for linear interpolation on `size` points from low to high."""
    position = ((x - low) / (high - low) * (size - 1)).clamp(0, size - 1)
    left = position.floor().long().clamp(0, max(size - 2, 0))
    return left, (position - left).to(torch.float32)


def _corners(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], num_second: int
) -> list[tuple[Tensor, Tensor]]:
    """Flat index and weight of the four grid points around each position in the plane."""
    (i, u), (j, v) = first, second
    return [((i + a) * num_second + (j + b), (u if a else 1 - u) * (v if b else 1 - v)) for a in (0, 1) for b in (0, 1)]


def _interpolate(values: Tensor, corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Weighted sum of the four corners, values flat in the last dimension."""
    result = values[..., corners[0][0]] * corners[0][1]
    for index, weight in corners[1:]:
        result += values[..., index] * weight
    return result


def pendulum(env: Pendulum, task: PendulumTask, num_theta: int = 361, num_speed: int = 201) -> float:
    """Optimal return of a pendulum, on a grid of angles and speeds; its parameters are tensors shaped (1, 1)."""
    device = task.mass.device  # type: ignore[union-attr]
    theta_axis = torch.linspace(-math.pi, math.pi, num_theta, dtype=torch.float64, device=device)
    speed_axis = torch.linspace(-env.max_speed, env.max_speed, num_speed, dtype=torch.float64, device=device)
    theta, speed = (x.reshape(1, 1, -1) for x in torch.meshgrid(theta_axis, speed_axis, indexing="ij"))
    backups = []
    for action in range(env.num_actions):
        state = PendulumState(theta, speed, torch.zeros_like(theta, dtype=torch.int32))
        following, reward, _, _ = env.step(task, state, torch.full_like(theta, action, dtype=torch.int64), theta)
        corners = _corners(
            _interpolation(following.theta.flatten(), -math.pi, math.pi, num_theta),
            _interpolation(following.theta_dot.flatten(), -env.max_speed, env.max_speed, num_speed),
            num_speed,
        )
        backups.append((reward.flatten().float(), corners))
    value = torch.zeros(num_theta * num_speed, device=device)
    for _ in range(env.episode_length):
        candidates = [reward + _interpolate(value, corners) for reward, corners in backups]
        value = torch.stack(candidates).amax(0)
    start = env.reset(task, torch.linspace(0.05, 0.95, 10, device=device).view(1, 1, -1, 1))
    corners = _corners(
        _interpolation(start.theta.flatten(), -math.pi, math.pi, num_theta),
        _interpolation(start.theta_dot.flatten(), -env.max_speed, env.max_speed, num_speed),
        num_speed,
    )
    return _interpolate(value, corners).mean().item()


def _gain_chain(env: Wireless, num_gains: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean gain of each quantile bin of the stationary distribution, and the transition matrix between the bins.

    The gain |h|² is stationary exponential with mean snr; given g, the next gain is σ²χ′²₂(μg/σ²) (noncentral) with
    σ² = (1−μ)·snr/2 and μ the memory.
    """
    from scipy.stats import ncx2

    samples_per_bin = 8
    edges = -env.snr * torch.log1p(-torch.linspace(0, 1, num_gains + 1, dtype=torch.float64))
    middle = (torch.arange(num_gains * samples_per_bin, dtype=torch.float64) + 0.5) / (num_gains * samples_per_bin)
    gains = -env.snr * torch.log1p(-middle)
    variance = (1.0 - env.memory) * env.snr / 2.0
    cumulative = torch.as_tensor(
        ncx2.cdf(edges.numpy()[None, :] / variance, 2, env.memory * gains.numpy()[:, None] / variance)
    )
    transition = cumulative.diff(dim=1).view(num_gains, samples_per_bin, num_gains).mean(1)
    upper = torch.exp(-edges / env.snr) * (edges + env.snr)
    upper[-1] = 0.0
    mean = (upper[:-1] - upper[1:]) * num_gains
    return mean.to(device), transition.float().to(device)


def _outcomes(task: WirelessTask) -> Iterator[tuple[tuple[float, float], bool, bool]]:
    """Whether there is a harvest and an arrival, and how probable the one and the other are."""
    p_harvest, p_arrival = task.harvest_probability.item(), task.arrival_probability.item()  # type: ignore[union-attr]
    for harvested, arrived in product((False, True), repeat=2):
        yield (p_harvest if harvested else 1 - p_harvest, p_arrival if arrived else 1 - p_arrival), harvested, arrived


def wireless(
    env: Wireless, task: WirelessTask, num_gains: int = 12, num_queue: int = 21, num_battery: int = 41
) -> float:
    """Optimal return of a radio, on a grid of channel, queue and battery; its parameters are tensors shaped (1, 1)."""
    device = task.harvest.device  # type: ignore[union-attr]
    gains, transition = _gain_chain(env, num_gains, device)
    queue_axis = torch.linspace(0, env.capacity, num_queue, dtype=torch.float64, device=device)
    battery_axis = torch.linspace(0, env.capacity, num_battery, dtype=torch.float64, device=device)
    occupied_axis = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    axes = torch.meshgrid(gains, occupied_axis, queue_axis, battery_axis, indexing="ij")
    gain, occupied, queue, battery = (axis.reshape(1, 1, -1) for axis in axes)
    none = torch.zeros_like(gain)
    state = WirelessState(gain.sqrt(), none, occupied, queue, battery, none.int())
    backups = []
    for action in range(env.num_actions):
        reward = torch.zeros(axes[0].shape, dtype=torch.float64, device=device)
        to_battery = torch.zeros(num_battery, num_battery, device=device)
        to_queue = []
        for probability, harvested, arrived in _outcomes(task):
            # Fading and occupancy move alike whatever is done: `transition` and `p` below are for them.
            uniforms = torch.stack([none, none, none, none + (not harvested), none + (not arrived)], dim=-1)
            after, gained, _, _ = env.step(task, state, none.long() + action, uniforms)
            reward += probability[0] * probability[1] * gained.view(axes[0].shape)
            if not arrived:  # What happens to the battery is the same with and without an arrival.
                next_battery = after.battery.view(axes[0].shape)[0, 0, 0]
                left, weight = _interpolation(next_battery, 0.0, env.capacity, num_battery)
                for index, share in ((left, 1 - weight), (left + 1, weight)):
                    to_battery.scatter_add_(1, index[:, None], probability[0] * share[:, None])
            if not harvested:
                next_queue = after.queue.view(axes[0].shape).flatten(1, 2)
                left, weight = _interpolation(next_queue, 0.0, env.capacity, num_queue)
                to_queue += [(left, probability[1] * (1 - weight)), (left + 1, probability[1] * weight)]
        backups.append((reward.float(), to_battery.mT, to_queue))
    p = env.occupied_probability
    value = torch.zeros(num_gains, 2, num_queue, num_battery, device=device)
    for _ in range(env.episode_length):
        following = torch.tensordot(transition, (1 - p) * value[:, 0] + p * value[:, 1], dims=1)
        value = torch.full_like(value, -math.inf)
        for reward, to_battery, to_queue in backups:
            expected = following @ to_battery
            future = sum(weight * expected.gather(1, index) for index, weight in to_queue)
            value = torch.maximum(value, reward + future.view_as(value))
    start_queue = round(2.0 / env.capacity * (num_queue - 1))
    return value[:, 1, start_queue, -1].mean().item()


def gridworld(env: Gridworld, task: GridworldTask) -> float:
    """Optimal return in a grid: minus the mean distance to the goal."""
    cells = torch.arange(env.size, dtype=torch.float64)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    distance = (row - task.goal_row).abs() + (column - task.goal_column).abs()
    return -distance.clamp(max=env.episode_length).sum().item() / (env.size**2 - 1)
