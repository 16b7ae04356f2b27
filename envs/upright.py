"""The pendulum family near its upright position with continuous torque, for the quadratic learners.    [TLR, §IV]"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .pendulum import Pendulum, PendulumState, PendulumTask


@dataclass(frozen=True)
class UprightPendulum(Pendulum):
    """The tasks, dynamics and reward of `Pendulum`, to be held upright by any torque in ±`max_torque`.

    ## Observation
    (θ, θ̇): angle from upright in rad, angular velocity in rad/s, without noise.

    ## Control
    Torque u in N·m; what exceeds ±2 N·m is cut off.

    ## Start
    θ uniform in ±0.3 rad, θ̇ uniform in ±0.5 rad/s. Data are collected in ±0.5 rad, ±1.5 rad/s.

    ## End
    Never terminates; truncated after `episode_length` steps.
    """

    gamma: float = 0.99

    num_reset_uniforms = 2
    noise = 0.0
    start_high = (0.3, 0.5)
    exploration_high = (0.5, 1.5)
    unstable_state = math.pi

    @staticmethod
    def exploration_std(task: PendulumTask) -> float:
        """Standard deviation of the exploring torque in N·m: one that accelerates by 10 rad/s²."""
        return 10.0 * _inertia(task)

    def torque(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """The torque itself, within its limits."""
        return action.to(dtype).clamp(-self.max_torque, self.max_torque)

    def reset(self, tasks: PendulumTask, uniforms: Tensor) -> PendulumState:
        """Start from uniforms shaped (seeds, tasks, envs, 2)."""
        return self.place(self.start_high, uniforms)

    @staticmethod
    def place(high: tuple[float, float], uniforms: Tensor) -> PendulumState:
        """States uniform in ±high."""
        theta, theta_dot = ((2.0 * uniforms[..., i] - 1.0) * high[i] for i in range(2))
        return PendulumState(theta, theta_dot, torch.zeros_like(theta, dtype=torch.int32))

    @staticmethod
    def features(observation: Tensor) -> Tensor:
        """φ = (θ, θ̇, sin θ), whose last entry cancels gravity."""
        return torch.cat((observation, torch.sin(observation[..., :1])), dim=-1)

    @staticmethod
    def believed(task: PendulumTask) -> PendulumTask:
        """The parameters that the baseline is designed with: mass and length a fifth too small."""
        return PendulumTask(0.8 * task.mass, 0.8 * task.length)

    def cancelling(self, task: PendulumTask, observation: Tensor) -> Tensor:
        """Control that cancels gravity, −½ m g l sin θ in N·m, (..., 1)."""
        return -0.5 * task.mass * self.gravity * task.length * torch.sin(observation[..., :1])

    def linearised(self, task: PendulumTask, *, gravity: bool = True) -> tuple[Tensor, Tensor]:
        """A and B of the dynamics around upright, with gravity or with it cancelled (feedback linearisation)."""
        pull = self.dt * 1.5 * self.gravity / task.length if gravity else 0.0
        push = self.dt / _inertia(task)
        A = torch.tensor([[1.0 + self.dt * pull, self.dt], [pull, 1.0]], dtype=torch.float64)
        return A, torch.tensor([[self.dt * push], [push]], dtype=torch.float64)

    def reward_weights(self) -> tuple[Tensor, Tensor]:
        """Q and R of the reward −(xᵀQx + uᵀRu)."""
        Q = torch.diag(torch.tensor([self.angle_weight, self.speed_weight], dtype=torch.float64))
        return Q, torch.tensor([[self.control_weight]], dtype=torch.float64)


def _inertia(task: PendulumTask) -> float:
    """Moment of inertia m l²/3 of a rod about its end, in kg·m²."""
    return float(task.mass * task.length**2 / 3.0)
