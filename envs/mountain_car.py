"""A family of cars in a valley that differ in force, gravity and hill: MountainCar-v0 of Gymnasium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class MountainCarState(NamedTuple):
    """State of a batch of cars."""

    position: Tensor
    """Position x, in [−1.2, 0.6]."""
    velocity: Tensor
    """Velocity v per step, in [−0.07, 0.07]."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class MountainCarTask:
    """One car and its hill, or many of them as tensors shaped (tasks, 1)."""

    force: float | Tensor = 0.001
    """f of the motor, per step²."""
    gravity: float | Tensor = 0.0025
    """g, per step²."""
    hill: float | Tensor = 3.0
    """h: the hill is sin(h x) high, up to a factor, so that its valley lies at x = −π/(2h)."""


@dataclass(frozen=True)
class MountainCar:
    """Rock a car that is too weak for its hill until it reaches the top: MountainCar-v0 of Gymnasium.

    ## Observation
    (x, v): position, [−1.2, 0.6]; velocity per step, [−0.07, 0.07]. Neither has units.

    ## Action
    Discrete: 0 drives to the left, 1 not at all, 2 to the right.

    ## Dynamics
        v′ = clip(v + (a − 1) f − g cos(h x), −0.07, 0.07),   x′ = clip(x + v′, −1.2, 0.6)

    and v′ = 0 at the wall x′ = −1.2 where it was negative.

    ## Reward
    −1 a step, the last one too.

    ## Start
    At rest, x uniform in [−0.6, −0.4).

    ## End
    Terminates where x′ ≥ 0.5 and v′ ≥ 0; truncated after `episode_length` steps.

    Tasks are spread over f in [0.0009, 0.0013], g in [0.002, 0.0028] and h in [2.8, 3.2], all of which can be done in
    time.

    Source: Moore, "Efficient memory-based learning for robot control", 1990; Sutton and Barto, "Reinforcement
    learning", 2018, example 10.1.
    """

    episode_length: int = 200
    min_position: float = -1.2
    max_position: float = 0.6
    max_speed: float = 0.07
    goal_position: float = 0.5
    goal_velocity: float = 0.0

    name = "mountain-car"
    terminates = True
    num_actions = 3
    num_reset_uniforms = 1
    num_step_uniforms = 0
    grid_low = (-1.2, -0.07)
    grid_high = (0.6, 0.07)
    grid_sizes = (40, 40)
    observation_names = ("position", "speed")
    action_names = ("left", "none", "right")
    dimensions = (base.Dimension(-1.2, 0.6, 32), base.Dimension(-0.07, 0.07, 32))
    parameters = (
        base.Dimension(0.0009, 0.0013, 4),
        base.Dimension(0.002, 0.0028, 4),
        base.Dimension(2.8, 3.2, 4),
    )
    observation_low = (-1.2, -0.07)
    observation_high = (0.6, 0.07)

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[MountainCarTask]:
        """Gymnasium's task and three more, or as many as asked for, spread over the family's range."""
        others = base.spread((num_tasks or 4) - 1, (0.0009, 0.002, 2.8), (0.0013, 0.0028, 3.2))
        return [MountainCarTask(), *(MountainCarTask(*point) for point in others)]

    def optimal_returns(self, tasks: list[MountainCarTask], device: torch.device | str = "cpu") -> list[float]:
        """Expected undiscounted return of an optimal policy for each task, over one episode."""
        from . import optimal_car

        return [optimal_car.mountain_car(self, base.stack_tasks([task], device=device)) for task in tasks]

    def optimal_policy(self, task: MountainCarTask) -> base.Policy:
        """What an optimal policy does in one task."""
        from . import optimal_policies

        return optimal_policies.mountain_car(self, base.stack_tasks([task]))

    def reset(self, tasks: MountainCarTask, uniforms: Tensor) -> MountainCarState:
        """Cars at rest near the valley, from uniforms shaped (seeds, tasks, envs, 1)."""
        position = 0.2 * uniforms[..., 0].to(base.dtype_of(tasks)) - 0.6
        return MountainCarState(position, torch.zeros_like(position), torch.zeros_like(position, dtype=torch.int32))

    def step(
        self, tasks: MountainCarTask, state: MountainCarState, action: Tensor, uniforms: Tensor
    ) -> tuple[MountainCarState, Tensor, Tensor, Tensor]:
        """One step; uses no random numbers."""
        position, velocity, elapsed = state
        motor = tasks.force * (action.to(position.dtype) - 1.0)
        velocity = velocity + motor - tasks.gravity * torch.cos(tasks.hill * position)
        velocity = velocity.clamp(-self.max_speed, self.max_speed)
        position = (position + velocity).clamp(self.min_position, self.max_position)
        velocity = torch.where((position <= self.min_position) & (velocity < 0.0), 0.0, velocity)
        terminated = (position >= self.goal_position) & (velocity >= self.goal_velocity)
        elapsed = elapsed + 1
        return (
            MountainCarState(position, velocity, elapsed),
            torch.full_like(position, -1.0),
            terminated,
            (elapsed >= self.episode_length) & ~terminated,
        )

    def observe(self, state: MountainCarState) -> Tensor:
        """(x, v), shaped (seeds, tasks, envs, 2)."""
        return torch.stack((state.position, state.velocity), dim=-1)
