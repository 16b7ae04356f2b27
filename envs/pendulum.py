"""A family of pendulums that differ in mass and length: swing up and hold.          [TLR, §IV]"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class PendulumState(NamedTuple):
    """State of a batch of pendulums."""

    theta: Tensor
    """Angle θ from upright in rad, in [−π, π)."""
    theta_dot: Tensor
    """Angular velocity in rad/s, in [−8, 8]."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class PendulumTask:
    """One pendulum, or many of them as tensors shaped (tasks, 1)."""

    mass: float | Tensor
    """m in kg."""
    length: float | Tensor
    """l in m."""


PAPER_TASKS = (PendulumTask(0.01, 1.0), PendulumTask(0.1, 1.0), PendulumTask(0.5, 0.5), PendulumTask(1.0, 0.5))


@dataclass(frozen=True)
class Pendulum:
    """The inverted pendulum of Gymnasium, with a reward that weighs the torque more.

    ## Observation
    (θ, θ̇): angle from upright in rad, [−π, π]; angular velocity in rad/s, [−8, 8].

    ## Action
    Discrete: `num_actions` torques equally spaced in [−2, 2] N·m.

    ## Dynamics, with dt = 0.05 s and g = 10 m/s²
        θ̇′ = clip(θ̇ + (3g/(2l) · sin θ + 3u/(m l²)) · dt, −8, 8),   θ′ = wrap(θ + θ̇′ · dt)

    ## Reward
    −(θ² + 0.1 θ̇² + 0.1 u²) of the state before the step. Gymnasium's own weighs u² with 0.001.

    ## Start
    Hanging: θ = π, θ̇ uniform in [0, 0.1) rad/s.

    ## End
    Never terminates; truncated after `episode_length` steps.
    """

    num_actions: int = 10
    episode_length: int = 100
    gravity: float = 10.0
    dt: float = 0.05
    max_torque: float = 2.0
    max_speed: float = 8.0
    angle_weight: float = 1.0
    speed_weight: float = 0.1
    control_weight: float = 0.1

    name = "pendulum"
    terminates = False
    num_reset_uniforms = 1
    num_step_uniforms = 0
    grid_low = (-math.pi, -5.0)
    grid_high = (math.pi, 5.0)
    grid_sizes = (20, 20)
    dimensions = (base.Dimension(-math.pi, math.pi, 16, "periodic"), base.Dimension(-8.0, 8.0, 16))
    parameters = (base.Dimension(0.01, 1.0, 8, "log"), base.Dimension(0.5, 1.0, 5))
    observation_names = ("angle, rad", "speed, rad/s")
    parameter_units = ("kg", "m")
    observation_low = (-math.pi, -8.0)
    observation_high = (math.pi, 8.0)

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[PendulumTask]:
        """The paper's four tasks, the first of them, or more: m in [0.01, 1] kg (log scale), l in [0.5, 1] m."""
        if num_tasks is None or num_tasks <= len(PAPER_TASKS):
            return list(PAPER_TASKS[:num_tasks])
        return [
            PendulumTask(math.exp(log_mass), length)
            for log_mass, length in base.spread(num_tasks, (math.log(0.01), 0.5), (0.0, 1.0))
        ]

    @property
    def action_names(self) -> tuple[str, ...]:
        """The torques."""
        return tuple(f"{u:.2g} N·m" for u in self.torque(torch.arange(self.num_actions), torch.float64).tolist())

    def with_controls(self) -> Pendulum:
        """The same pendulums near upright with any torque, for the quadratic learners."""
        from .upright import UprightPendulum

        return UprightPendulum(**{field.name: getattr(self, field.name) for field in fields(Pendulum)})

    def torque(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Torque in N·m of each action."""
        return -self.max_torque + action.to(dtype) * (2.0 * self.max_torque / (self.num_actions - 1))

    @property
    def action_levels(self) -> list[list[float]]:
        """Torque in N·m of each action, for policies that are taken away."""
        return self.torque(torch.arange(self.num_actions), torch.float64).unsqueeze(-1).tolist()

    def optimal_returns(self, tasks: list[PendulumTask], device: torch.device | str = "cpu") -> list[float]:
        """Expected undiscounted return of an optimal policy for each task, over one episode."""
        from . import optimal

        return [optimal.pendulum(self, base.stack_tasks([task], device=device)) for task in tasks]

    def optimal_policy(self, task: PendulumTask) -> base.Policy:
        """What an optimal policy does in one task."""
        from . import optimal_policies

        return optimal_policies.pendulum(self, base.stack_tasks([task]))

    def reset(self, tasks: PendulumTask, uniforms: Tensor) -> PendulumState:
        """Hanging pendulums from uniforms shaped (seeds, tasks, envs, 1)."""
        theta_dot = 0.1 * uniforms[..., 0].to(base.dtype_of(tasks))
        return PendulumState(
            torch.full_like(theta_dot, math.pi), theta_dot, torch.zeros_like(theta_dot, dtype=torch.int32)
        )

    def step(
        self, tasks: PendulumTask, state: PendulumState, action: Tensor, uniforms: Tensor
    ) -> tuple[PendulumState, Tensor, Tensor, Tensor]:
        """One step of dt seconds; uses no random numbers."""
        theta, theta_dot, elapsed = state
        torque = self.torque(action, theta.dtype)
        # Weights first, as the published results round.
        reward = -(
            self.angle_weight * theta * theta
            + self.speed_weight * theta_dot * theta_dot
            + self.control_weight * torque * torque
        )
        acceleration = 1.5 * self.gravity / tasks.length * torch.sin(theta) + 3.0 * torque / (
            tasks.mass * tasks.length * tasks.length
        )
        theta_dot = (theta_dot + acceleration * self.dt).clamp(-self.max_speed, self.max_speed)
        theta = torch.remainder(theta + theta_dot * self.dt + math.pi, 2.0 * math.pi) - math.pi
        elapsed = elapsed + 1
        return PendulumState(theta, theta_dot, elapsed), reward, base.never(reward), elapsed >= self.episode_length

    def observe(self, state: PendulumState) -> Tensor:
        """(θ, θ̇), shaped (seeds, tasks, envs, 2)."""
        return torch.stack((state.theta, state.theta_dot), dim=-1)
