"""A family of damped pendulums with continuous torque, to be held upright.             [LMI, §IV]"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class DampedPendulumState(NamedTuple):
    """State of a batch of pendulums."""

    theta: Tensor
    """Angle θ from upright in rad, not wrapped."""
    omega: Tensor
    """Angular velocity ω in rad/s."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class DampedPendulumTask:
    """One pendulum, or many of them as tensors shaped (tasks, 1)."""

    mass: float | Tensor = 1.0
    """m in kg."""
    length: float | Tensor = 1.0
    """l in m."""
    damping: float | Tensor = 0.1
    """d in N·m·s/rad."""


@dataclass(frozen=True)
class DampedPendulum:
    """Pendulum with damping and process noise, discretised by forward Euler.

    ## Observation
    (θ, ω): angle from upright in rad, angular velocity in rad/s.

    ## Control
    Torque u in N·m, any real number.

    ## Dynamics, with Ts = 0.05 s and g = 9.81 m/s²                                       [LMI, eq. (19)]
        θ⁺ = θ + Ts ω + w₁,   ω⁺ = ω + Ts (g/l · sin θ − d/(m l²) · ω + u/(m l²)) + w₂,   w ~ N(0, 0.003²)

    ## Reward                                                                             [LMI, eq. (20)]
    −(θ² + 0.1 ω² + 0.001 u²) of the state before the step.

    ## Start
    θ uniform in ±π/3, ω uniform in ±1.

    ## End
    Never terminates; truncated after `episode_length` steps.
    """

    episode_length: int = 100
    gravity: float = 9.81
    dt: float = 0.05
    noise: float = 3e-3
    angle_weight: float = 1.0
    speed_weight: float = 0.1
    control_weight: float = 1e-3
    gamma: float = 0.97

    observation_names = ("angle, rad", "speed, rad/s")
    parameter_units = ("kg", "m", "N·m·s/rad")
    name = "damped-pendulum"
    terminates = False
    num_reset_uniforms = 2
    num_step_uniforms = 2
    start_high = (math.pi / 3, 1.0)
    exploration_high = (math.pi / 2, 3.0)
    unstable_state = 2.0 * math.pi

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[DampedPendulumTask]:
        """One task by default; more have m in [0.5, 1.5] kg, l in [0.7, 1.3] m, d in [0.05, 0.2] N·m·s/rad."""
        first = DampedPendulumTask()
        spread = base.spread((num_tasks or 1) - 1, (0.5, 0.7, 0.05), (1.5, 1.3, 0.2))
        return [first, *(DampedPendulumTask(*point) for point in spread)]

    @staticmethod
    def exploration_std(task: DampedPendulumTask) -> float:
        """Standard deviation of the exploring torque in N·m."""
        return 4.0

    def reset(self, tasks: DampedPendulumTask, uniforms: Tensor) -> DampedPendulumState:
        """Start from uniforms shaped (seeds, tasks, envs, 2)."""
        return self.place(self.start_high, uniforms)

    @staticmethod
    def place(high: tuple[float, float], uniforms: Tensor) -> DampedPendulumState:
        """States uniform in ±high."""
        theta, omega = ((2.0 * uniforms[..., i] - 1.0) * high[i] for i in range(2))
        return DampedPendulumState(theta, omega, torch.zeros_like(theta, dtype=torch.int32))

    def step(
        self, tasks: DampedPendulumTask, state: DampedPendulumState, control: Tensor, uniforms: Tensor
    ) -> tuple[DampedPendulumState, Tensor, Tensor, Tensor]:
        """One step under a torque in N·m; uniforms shaped (seeds, tasks, envs, 2) make the process noise."""
        theta, omega, elapsed = state
        reward = -(self.angle_weight * theta**2 + self.speed_weight * omega**2 + self.control_weight * control**2)
        inertia = tasks.mass * tasks.length**2
        acceleration = (
            self.gravity / tasks.length * torch.sin(theta) - tasks.damping / inertia * omega + control / inertia
        )
        first, second = base.normals(uniforms[..., 0], uniforms[..., 1])
        elapsed = elapsed + 1
        following = DampedPendulumState(
            theta + self.dt * omega + self.noise * first,
            omega + self.dt * acceleration + self.noise * second,
            elapsed,
        )
        return following, reward, base.never(reward), elapsed >= self.episode_length

    def observe(self, state: DampedPendulumState) -> Tensor:
        """(θ, ω), shaped (seeds, tasks, envs, 2)."""
        return torch.stack((state.theta, state.omega), dim=-1)

    @staticmethod
    def features(observation: Tensor) -> Tensor:
        """φ = (θ, ω, sin θ), whose last entry cancels gravity."""
        return torch.cat((observation, torch.sin(observation[..., :1])), dim=-1)

    @staticmethod
    def believed(task: DampedPendulumTask) -> DampedPendulumTask:
        """The parameters that the baseline is designed with: mass and length a fifth too small."""
        return DampedPendulumTask(0.8 * task.mass, 0.8 * task.length, task.damping)

    def cancelling(self, task: DampedPendulumTask, observation: Tensor) -> Tensor:
        """Control that cancels gravity, −m g l sin θ in N·m, (..., 1)."""
        return -task.mass * self.gravity * task.length * torch.sin(observation[..., :1])

    def linearised(self, task: DampedPendulumTask, *, gravity: bool = True) -> tuple[Tensor, Tensor]:
        """A and B of the dynamics around upright, with gravity or with it cancelled (feedback linearisation)."""
        inertia = task.mass * task.length**2
        pull = self.gravity / task.length if gravity else 0.0
        A = torch.tensor(
            [[1.0, self.dt], [self.dt * pull, 1.0 - self.dt * task.damping / inertia]], dtype=torch.float64
        )
        return A, torch.tensor([[0.0], [self.dt / inertia]], dtype=torch.float64)

    def reward_weights(self) -> tuple[Tensor, Tensor]:
        """Q and R of the reward −(xᵀQx + uᵀRu)."""
        Q = torch.diag(torch.tensor([self.angle_weight, self.speed_weight], dtype=torch.float64))
        return Q, torch.tensor([[self.control_weight]], dtype=torch.float64)
