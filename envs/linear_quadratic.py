"""A family of linear systems with quadratic costs, whose best Q-functions Riccati's equation gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class LinearQuadraticState(NamedTuple):
    """State of a batch of systems."""

    x1: Tensor
    x2: Tensor
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class LinearQuadraticTask:
    """One system x⁺ = Ax + Bu with two states and one control, or many of them as tensors shaped (tasks, 1)."""

    a11: float | Tensor
    a12: float | Tensor
    a21: float | Tensor
    a22: float | Tensor
    b1: float | Tensor
    b2: float | Tensor


@dataclass(frozen=True)
class LinearQuadratic:
    """Unstable linear systems without noise.

    ## Observation
    x = (x₁, x₂).

    ## Control
    u, any real number.

    ## Dynamics
        x⁺ = Ax + Bu,   A with spectral radius 1.1

    ## Reward
    −(xᵀx + 0.1 u²) of the state before the step.

    ## Start
    x uniform in ±1.

    ## End
    Never terminates; truncated after `episode_length` steps.
    """

    episode_length: int = 50
    control_weight: float = 0.1
    gamma: float = 0.95

    name = "linear-quadratic"
    terminates = False
    num_reset_uniforms = 2
    num_step_uniforms = 2
    noise = 0.0
    start_high = (1.0, 1.0)
    exploration_high = (1.0, 1.0)
    unstable_state = 100.0

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[LinearQuadraticTask]:
        """Four tasks by default: entries of A spread in ±1, then scaled; B on the half circle."""
        tasks = []
        for a11, a12, a21, a22, angle in base.spread(num_tasks or 4, (-1.0,) * 4 + (0.0,), (1.0,) * 4 + (math.pi,)):
            radius = (
                torch.linalg.eigvals(torch.tensor([[a11, a12], [a21, a22]], dtype=torch.float64)).abs().max().item()
            )
            scale = 1.1 / radius
            A = (scale * a11, scale * a12, scale * a21, scale * a22)
            tasks.append(LinearQuadraticTask(*A, math.cos(angle), math.sin(angle)))
        return tasks

    @staticmethod
    def exploration_std(task: LinearQuadraticTask) -> float:
        """Standard deviation of the exploring control."""
        return 1.0

    def reset(self, tasks: LinearQuadraticTask, uniforms: Tensor) -> LinearQuadraticState:
        """Start from uniforms shaped (seeds, tasks, envs, 2)."""
        return self.place(self.start_high, uniforms)

    @staticmethod
    def place(high: tuple[float, float], uniforms: Tensor) -> LinearQuadraticState:
        """States uniform in ±high."""
        x1, x2 = ((2.0 * uniforms[..., i] - 1.0) * high[i] for i in range(2))
        return LinearQuadraticState(x1, x2, torch.zeros_like(x1, dtype=torch.int32))

    def step(
        self, tasks: LinearQuadraticTask, state: LinearQuadraticState, control: Tensor, uniforms: Tensor
    ) -> tuple[LinearQuadraticState, Tensor, Tensor, Tensor]:
        """One step; uses no random numbers."""
        x1, x2, elapsed = state
        reward = -(x1**2 + x2**2 + self.control_weight * control**2)
        elapsed = elapsed + 1
        following = LinearQuadraticState(
            tasks.a11 * x1 + tasks.a12 * x2 + tasks.b1 * control,
            tasks.a21 * x1 + tasks.a22 * x2 + tasks.b2 * control,
            elapsed,
        )
        return following, reward, base.never(reward), elapsed >= self.episode_length

    def observe(self, state: LinearQuadraticState) -> Tensor:
        """x, (seeds, tasks, envs, 2)."""
        return torch.stack((state.x1, state.x2), dim=-1)

    @staticmethod
    def features(observation: Tensor) -> Tensor:
        """φ = x."""
        return observation

    @staticmethod
    def believed(task: LinearQuadraticTask) -> LinearQuadraticTask:
        """The parameters that the baseline is designed with: the off-diagonal of A a tenth too large."""
        return LinearQuadraticTask(task.a11, 1.1 * task.a12, 1.1 * task.a21, task.a22, task.b1, task.b2)

    @staticmethod
    def cancelling(task: LinearQuadraticTask, observation: Tensor) -> Tensor:
        """Zero: there is no nonlinearity."""
        return torch.zeros_like(observation[..., :1])

    @staticmethod
    def linearised(task: LinearQuadraticTask, *, gravity: bool = True) -> tuple[Tensor, Tensor]:
        """A and B."""
        A = torch.tensor([[task.a11, task.a12], [task.a21, task.a22]], dtype=torch.float64)
        return A, torch.tensor([[task.b1], [task.b2]], dtype=torch.float64)

    def reward_weights(self) -> tuple[Tensor, Tensor]:
        """Q and R of the reward −(xᵀQx + uᵀRu)."""
        return torch.eye(2, dtype=torch.float64), torch.tensor([[self.control_weight]], dtype=torch.float64)
