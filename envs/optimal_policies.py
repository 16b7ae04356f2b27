"""What optimal policies do, to be drawn beside what was learnt.

    aₜ = argmaxₐ E[ r(sₜ, a) + V_{t+1}(sₜ₊₁) ]

with the values of the dynamic programs of `optimal`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import optimal, optimal_car
from .base import Policy
from .gridworld import GridworldTask
from .mountain_car import MountainCar, MountainCarState, MountainCarTask
from .pendulum import Pendulum, PendulumState, PendulumTask
from .wireless import Wireless, WirelessTask

_PENDULUM_POINTS, _CAR_POINTS = (181, 101), (401, 301)
"""Fewer than for the optimum: values of all steps are kept."""


def pendulum(env: Pendulum, task: PendulumTask) -> Policy:
    """Of a pendulum; its parameters are tensors shaped (1, 1)."""
    values = list(optimal.pendulum_values(env, task, *_PENDULUM_POINTS))[::-1]  # V₀, …, V_T

    def act(observation: Tensor, step: int) -> Tensor:
        theta, speed = (x.double().view(1, 1, -1) for x in observation.unbind(-1))
        state = PendulumState(theta, speed, torch.zeros_like(theta, dtype=torch.int32))
        backups = []
        for action in range(env.num_actions):
            after, reward, _, _ = env.step(task, state, torch.full_like(theta, action, dtype=torch.int64), theta)
            position = optimal.pendulum_position(env, after).view(1, 1, -1, 2)
            backups.append(reward.view(-1).float() + optimal.between(values[step + 1], position).view(-1))
        return torch.stack(backups).argmax(0)

    return act


def mountain_car(env: MountainCar, task: MountainCarTask) -> Policy:
    """Of a car; its parameters are tensors shaped (1, 1)."""
    values = list(optimal_car.car_values(env, task, *_CAR_POINTS))[::-1]

    def act(observation: Tensor, step: int) -> Tensor:
        position, speed = (x.double().view(1, 1, -1) for x in observation.unbind(-1))
        state = MountainCarState(position, speed, torch.zeros_like(position, dtype=torch.int32))
        backups = []
        for action in range(env.num_actions):
            chosen = torch.full_like(position, action, dtype=torch.int64)
            after, _, terminated, _ = env.step(task, state, chosen, position)
            place = optimal_car.car_place(env, after).view(1, 1, -1, 2)
            going = (~terminated).view(-1).float()
            backups.append(going * optimal.between(values[step + 1], place).view(-1))
        return torch.stack(backups).argmax(0)

    return act


def gridworld(task: GridworldTask) -> Policy:
    """To the row of the goal first, then to its column."""

    def act(observation: Tensor, step: int) -> Tensor:
        row, column = observation.unbind(-1)
        vertical = torch.where(row > task.goal_row, 0, 2)
        return torch.where(row != task.goal_row, vertical, torch.where(column < task.goal_column, 1, 3))

    return act


def wireless(env: Wireless, task: WirelessTask) -> Policy:
    """Of a radio, as at the nearest point of the grid; its parameters are tensors shaped (1, 1)."""
    best = [values.argmax(0).to(torch.uint8) for values in optimal.wireless_values(env, task)][::-1]
    num_gains, _, num_queue, num_battery = best[0].shape

    def act(observation: Tensor, step: int) -> Tensor:
        gain, occupied, queue, battery = observation.double().unbind(-1)
        quantile = ((1.0 - torch.exp(-gain / env.snr)) * num_gains).long().clamp(max=num_gains - 1)
        rows = [(x / env.capacity * (n - 1)).round().long() for x, n in ((queue, num_queue), (battery, num_battery))]
        return best[step][quantile, occupied.long(), rows[0], rows[1]].long()

    return act
