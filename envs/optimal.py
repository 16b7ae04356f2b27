"""Optimal returns by finite-horizon dynamic programming on fine grids: the line that a learning curve cannot cross.

    V_T = 0,   V_t(s) = maxₐ E[ r(s, a) + V_{t+1}(s′) ]                      (Bellman 1957; undiscounted)

with multilinear interpolation between grid points and the same finite actions that the learners have.
"""

from __future__ import annotations

import math
from collections import deque
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


def pendulum(env: Pendulum, task: PendulumTask, num_theta: int = 361, num_speed: int = 201) -> float:
    """Optimal return of a pendulum, on a grid of angles and speeds; its parameters are tensors shaped (1, 1)."""
    (value,) = deque(pendulum_values(env, task, num_theta, num_speed), maxlen=1)  # V₀
    start = env.reset(task, torch.linspace(0.05, 0.95, 10, device=value.device).view(1, 1, -1, 1))
    return between(value, pendulum_position(env, start).view(1, 1, -1, 2)).mean().item()


def pendulum_values(env: Pendulum, task: PendulumTask, num_theta: int = 361, num_speed: int = 201) -> Iterator[Tensor]:
    """V_T, V_{T−1}, …, V₀ of a pendulum, (angles, speeds)."""
    device = task.mass.device  # type: ignore[union-attr]
    theta_axis = torch.linspace(-math.pi, math.pi, num_theta, dtype=torch.float64, device=device)
    speed_axis = torch.linspace(-env.max_speed, env.max_speed, num_speed, dtype=torch.float64, device=device)
    axes = torch.meshgrid(theta_axis, speed_axis, indexing="ij")
    theta, speed = (x.reshape(1, 1, -1) for x in axes)
    rewards, positions = [], []
    for action in range(env.num_actions):
        state = PendulumState(theta, speed, torch.zeros_like(theta, dtype=torch.int32))
        following, reward, _, _ = env.step(task, state, torch.full_like(theta, action, dtype=torch.int64), theta)
        rewards.append(reward.view(axes[0].shape).float())
        positions.append(pendulum_position(env, following).view(*axes[0].shape, 2))
    reward, position = torch.cat(rewards), torch.cat(positions).unsqueeze(0)  # (actions · angles, speeds[, 2])
    value = torch.zeros(axes[0].shape, device=device)
    yield value
    for _ in range(env.episode_length):
        value = (reward + between(value, position)).view(env.num_actions, *value.shape).amax(0)
        yield value


def pendulum_position(env: Pendulum, state: PendulumState) -> Tensor:
    """Where states lie on the grid, as `grid_sample` counts: speed and angle, each from −1 to 1 at the edges."""
    return torch.stack((state.theta_dot / env.max_speed, state.theta / math.pi), dim=-1).float()


def between(value: Tensor, position: Tensor) -> Tensor:
    """Values between the points of a grid, (rows, columns), at positions (1, n, m, 2): bilinear, (n, m)."""
    sampled = torch.nn.functional.grid_sample(value[None, None], position, padding_mode="border", align_corners=True)
    return sampled[0, 0]


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
    (values,) = deque(wireless_values(env, task, num_gains, num_queue, num_battery), maxlen=1)  # t = 0
    start_queue = round(2.0 / env.capacity * (num_queue - 1))
    return values.amax(0)[:, 1, start_queue, -1].mean().item()


def wireless_values(
    env: Wireless, task: WirelessTask, num_gains: int = 12, num_queue: int = 21, num_battery: int = 41
) -> Iterator[Tensor]:
    """Values r + E V_{t+1} of each action, t = T − 1, …, 0, (actions, gains, occupied, queues, batteries)."""
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
        values = []
        for reward, to_battery, to_queue in backups:
            expected = following @ to_battery
            future = sum(weight * expected.gather(1, index) for index, weight in to_queue)
            values.append(reward + future.view_as(value))
        yield (stacked := torch.stack(values))
        value = stacked.amax(0)


def gridworld(env: Gridworld, task: GridworldTask) -> float:
    """Optimal return in a grid: minus the mean distance to the goal."""
    cells = torch.arange(env.size, dtype=torch.float64)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    distance = (row - task.goal_row).abs() + (column - task.goal_column).abs()
    return -distance.clamp(max=env.episode_length).sum().item() / (env.size**2 - 1)
