"""A family of two links with a motor in the elbow that differ in lengths and masses: Acrobot-v1 of Gymnasium."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class AcrobotState(NamedTuple):
    """State of a batch of acrobots."""

    theta_1: Tensor
    """Angle θ₁ of the first link from hanging in rad, in [−π, π)."""
    theta_2: Tensor
    """Angle θ₂ of the second link from the first in rad, in [−π, π)."""
    theta_dot_1: Tensor
    """Angular velocity of θ₁ in rad/s, in [−4π, 4π]."""
    theta_dot_2: Tensor
    """Angular velocity of θ₂ in rad/s, in [−9π, 9π]."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class AcrobotTask:
    """One acrobot, or many of them as tensors shaped (tasks, 1)."""

    length_1: float | Tensor = 1.0
    """l₁ in m."""
    length_2: float | Tensor = 1.0
    """l₂ in m."""
    mass_1: float | Tensor = 1.0
    """m₁ in kg."""
    mass_2: float | Tensor = 1.0
    """m₂ in kg."""


@dataclass(frozen=True)
class Acrobot:
    """Swing the end of two links above a line by a motor between them: Acrobot-v1 of Gymnasium.

    ## Observation
    (θ₁, θ₂, θ̇₁, θ̇₂): angle of the first link from hanging and of the second from the first in rad, [−π, π]; their
    velocities in rad/s, [−4π, 4π] and [−9π, 9π]. Gymnasium's own has sines and cosines in the place of angles.

    ## Action
    Discrete: a torque τ of −1, 0 or 1 N·m on the joint between the links.

    ## Dynamics, by one step of fourth-order Runge and Kutta of dt = 0.2 s, with g = 9.8 m/s²
        d₁ = m₁ c₁² + m₂ (l₁² + c₂² + 2 l₁ c₂ cos θ₂) + 2 I,   d₂ = m₂ (c₂² + l₁ c₂ cos θ₂) + I
        φ₂ = m₂ c₂ g sin(θ₁ + θ₂)
        φ₁ = −m₂ l₁ c₂ (θ̇₂² + 2 θ̇₁ θ̇₂) sin θ₂ + (m₁ c₁ + m₂ l₁) g sin θ₁ + φ₂
        θ̈₂ = (τ + d₂/d₁ φ₁ − m₂ l₁ c₂ θ̇₁² sin θ₂ − φ₂) / (m₂ c₂² + I − d₂²/d₁),   θ̈₁ = −(d₂ θ̈₂ + φ₁) / d₁

    then angles are wrapped and velocities clipped. From the lengths follow the centres of mass, in the middle of the
    links: c₁ = l₁/2, c₂ = l₂/2; the moments of inertia are I = 1 kg·m² whatever the link, as Gymnasium has them.

    ## Reward
    −1 a step, 0 for the one that reaches the line.

    ## Start
    All four uniform in [−0.1, 0.1).

    ## End
    Terminates where −cos θ₁ − cos(θ₁ + θ₂) > 1, which is Gymnasium's line whatever the lengths: a link of length 1
    above the first joint where both are 1 m long; truncated after `episode_length` steps.

    Tasks are spread over lengths and masses in [0.8, 1.2].

    Source: Sutton, "Generalization in reinforcement learning: successful examples using sparse coarse coding", 1996;
    Sutton and Barto, "Reinforcement learning", 1998, whose equations these are.
    """

    episode_length: int = 500
    dt: float = 0.2
    gravity: float = 9.8
    inertia: float = 1.0
    max_torque: float = 1.0
    max_speed_1: float = 4.0 * math.pi
    max_speed_2: float = 9.0 * math.pi

    name = "acrobot"
    terminates = True
    num_actions = 3
    num_reset_uniforms = 4
    num_step_uniforms = 0
    grid_low = (-math.pi, -math.pi, -6.0, -10.0)
    grid_high = (math.pi, math.pi, 6.0, 10.0)
    grid_sizes = (12, 12, 12, 12)
    observation_names = ("first angle, rad", "second angle, rad", "first speed, rad/s", "second speed, rad/s")
    parameter_units = ("m", "m", "kg", "kg")
    dimensions = (
        base.Dimension(-math.pi, math.pi, 16, "periodic"),
        base.Dimension(-math.pi, math.pi, 16, "periodic"),
        base.Dimension(-8.0, 8.0, 14),
        base.Dimension(-12.0, 12.0, 14),
    )
    parameters = (base.Dimension(0.8, 1.2, 4),) * 4
    observation_low = (-math.pi, -math.pi, -4.0 * math.pi, -9.0 * math.pi)
    observation_high = (math.pi, math.pi, 4.0 * math.pi, 9.0 * math.pi)

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[AcrobotTask]:
        """Gymnasium's task and three more, or as many as asked for, spread over the family's range."""
        others = base.spread((num_tasks or 4) - 1, (0.8,) * 4, (1.2,) * 4)
        return [AcrobotTask(), *(AcrobotTask(*point) for point in others)]

    def reset(self, tasks: AcrobotTask, uniforms: Tensor) -> AcrobotState:
        """Links nearly hanging, from uniforms shaped (seeds, tasks, envs, 4)."""
        theta_1, theta_2, first, second = (0.2 * uniforms.to(base.dtype_of(tasks)) - 0.1).unbind(-1)
        return AcrobotState(theta_1, theta_2, first, second, torch.zeros_like(theta_1, dtype=torch.int32))

    def accelerations(self, tasks: AcrobotTask, angles: tuple[Tensor, ...], torque: Tensor) -> tuple[Tensor, Tensor]:
        """(θ̈₁, θ̈₂) at (θ₁, θ₂, θ̇₁, θ̇₂)."""
        theta_1, theta_2, first, second = angles
        middle_1, middle_2 = 0.5 * tasks.length_1, 0.5 * tasks.length_2
        sine, cosine = torch.sin(theta_2), torch.cos(theta_2)
        coupling = tasks.mass_2 * tasks.length_1 * middle_2
        own_2 = tasks.mass_2 * middle_2 * middle_2 + self.inertia
        own_1 = tasks.mass_1 * middle_1 * middle_1 + tasks.mass_2 * tasks.length_1 * tasks.length_1 + self.inertia
        d1 = own_1 + own_2 + 2.0 * coupling * cosine
        d2 = own_2 + coupling * cosine
        phi_2 = tasks.mass_2 * middle_2 * self.gravity * torch.sin(theta_1 + theta_2)
        hanging = (tasks.mass_1 * middle_1 + tasks.mass_2 * tasks.length_1) * self.gravity
        phi_1 = hanging * torch.sin(theta_1) - coupling * (second + 2.0 * first) * second * sine + phi_2
        share = d2 / d1
        second_acceleration = (torque + share * phi_1 - coupling * first * first * sine - phi_2) / (own_2 - share * d2)
        return -(d2 * second_acceleration + phi_1) / d1, second_acceleration

    def step(
        self, tasks: AcrobotTask, state: AcrobotState, action: Tensor, uniforms: Tensor
    ) -> tuple[AcrobotState, Tensor, Tensor, Tensor]:
        """One step of dt seconds; uses no random numbers."""
        torque = self.max_torque * (action.to(state.theta_1.dtype) - 1.0)
        start = state[:4]
        slopes: list[tuple[Tensor, ...]] = []
        for share in (0.0, 0.5 * self.dt, 0.5 * self.dt, self.dt):
            at = tuple(x + share * slope for x, slope in zip(start, slopes[-1], strict=True)) if slopes else start
            slopes.append((at[2], at[3], *self.accelerations(tasks, at, torque)))
        theta_1, theta_2, first, second = (
            x + self.dt / 6.0 * (a + 2.0 * b + 2.0 * c + d) for x, a, b, c, d in zip(start, *slopes, strict=True)
        )
        theta_1 = torch.remainder(theta_1 + math.pi, 2.0 * math.pi) - math.pi
        theta_2 = torch.remainder(theta_2 + math.pi, 2.0 * math.pi) - math.pi
        first = first.clamp(-self.max_speed_1, self.max_speed_1)
        second = second.clamp(-self.max_speed_2, self.max_speed_2)
        terminated = -torch.cos(theta_1) - torch.cos(theta_1 + theta_2) > 1.0
        elapsed = state.elapsed + 1
        return (
            AcrobotState(theta_1, theta_2, first, second, elapsed),
            terminated.to(theta_1.dtype) - 1.0,
            terminated,
            (elapsed >= self.episode_length) & ~terminated,
        )

    def observe(self, state: AcrobotState) -> Tensor:
        """(θ₁, θ₂, θ̇₁, θ̇₂), shaped (seeds, tasks, envs, 4)."""
        return torch.stack((state.theta_1, state.theta_2, state.theta_dot_1, state.theta_dot_2), dim=-1)
