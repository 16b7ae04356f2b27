"""A family of carts that balance a pole, and differ in gravity, masses, length and force: CartPole-v1 of Gymnasium."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class CartPoleState(NamedTuple):
    """State of a batch of carts with poles."""

    position: Tensor
    """Position x of the cart in m."""
    velocity: Tensor
    """Velocity ẋ of the cart in m/s."""
    theta: Tensor
    """Angle θ of the pole from upright in rad."""
    theta_dot: Tensor
    """Angular velocity in rad/s."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class CartPoleTask:
    """One cart with its pole, or many of them as tensors shaped (tasks, 1)."""

    gravity: float | Tensor = 9.8
    """g in m/s²."""
    cart_mass: float | Tensor = 1.0
    """M in kg."""
    pole_mass: float | Tensor = 0.1
    """m in kg."""
    length: float | Tensor = 0.5
    """l in m: half of the pole."""
    force: float | Tensor = 10.0
    """F in N."""


@dataclass(frozen=True)
class CartPole:
    """Push a cart to the left or right so that its pole stays upright: CartPole-v1 of Gymnasium.

    ## Observation
    (x, ẋ, θ, θ̇): position of the cart in m, [−2.4, 2.4] until the end; its velocity in m/s; angle of the pole from
    upright in rad, [−0.209, 0.209] until the end; its angular velocity in rad/s. The velocities have no bounds; those
    of the Gymnasium view are wider than what a pole reaches before it has fallen.

    ## Action
    Discrete: 0 pushes with −F, 1 with F.

    ## Dynamics, with dt = 0.02 s, by Euler's method
        f  = (±F + m l θ̇² sin θ) / (M + m)
        θ̈  = (g sin θ − f cos θ) / (l (4/3 − m cos² θ / (M + m))),   ẍ = f − m l θ̈ cos θ / (M + m)
        x′ = x + ẋ dt,   ẋ′ = ẋ + ẍ dt,   θ′ = θ + θ̇ dt,   θ̇′ = θ̇ + θ̈ dt

    ## Reward
    1 a step, the last one too.

    ## Start
    All four uniform in [−0.05, 0.05).

    ## End
    Terminates where |x′| > 2.4 m or |θ′| > 12°; truncated after `episode_length` steps.

    Tasks are spread over g in [4.9, 14.7] m/s² and l in [0.4, 0.7] m, with masses and force as in Gymnasium. The family
    takes others too: `parameters` has a range for each.

    Source: Barto, Sutton, Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems",
    1983; equations as in Florian, "Correct equations for the dynamics of the cart-pole system", 2007, without friction.
    """

    episode_length: int = 500
    dt: float = 0.02
    max_position: float = 2.4
    max_angle: float = 12.0 * 2.0 * math.pi / 360.0

    name = "cartpole"
    terminates = True
    num_actions = 2
    num_reset_uniforms = 4
    num_step_uniforms = 0
    grid_low = (-2.4, -3.0, -0.21, -3.0)
    grid_high = (2.4, 3.0, 0.21, 3.0)
    grid_sizes = (10, 10, 20, 20)
    observation_names = ("position, m", "speed, m/s", "angle, rad", "angular speed, rad/s")
    parameter_units = ("m/s²", "kg", "kg", "m", "N")
    action_names = ("left", "right")
    dimensions = (
        base.Dimension(-2.4, 2.4, 8),
        base.Dimension(-3.0, 3.0, 8),
        base.Dimension(-0.21, 0.21, 10),
        base.Dimension(-3.0, 3.0, 10),
    )
    parameters = (
        base.Dimension(4.9, 14.7, 4),
        base.Dimension(0.5, 2.0, 4, "log"),
        base.Dimension(0.05, 0.5, 4, "log"),
        base.Dimension(0.4, 0.7, 4),
        base.Dimension(5.0, 20.0, 4, "log"),
    )
    observation_low = (-4.8, -20.0, -0.42, -20.0)
    observation_high = (4.8, 20.0, 0.42, 20.0)

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[CartPoleTask]:
        """Gymnasium's task and three more, or as many as asked for, with other gravity and length."""
        others = base.spread((num_tasks or 4) - 1, (4.9, 0.4), (14.7, 0.7))
        return [CartPoleTask(), *(CartPoleTask(gravity=gravity, length=length) for gravity, length in others)]

    def reset(self, tasks: CartPoleTask, uniforms: Tensor) -> CartPoleState:
        """Poles nearly upright, from uniforms shaped (seeds, tasks, envs, 4)."""
        position, velocity, theta, theta_dot = (0.1 * uniforms.to(base.dtype_of(tasks)) - 0.05).unbind(-1)
        return CartPoleState(position, velocity, theta, theta_dot, torch.zeros_like(position, dtype=torch.int32))

    def step(
        self, tasks: CartPoleTask, state: CartPoleState, action: Tensor, uniforms: Tensor
    ) -> tuple[CartPoleState, Tensor, Tensor, Tensor]:
        """One step of dt seconds; uses no random numbers."""
        position, velocity, theta, theta_dot, elapsed = state
        sine, cosine = torch.sin(theta), torch.cos(theta)
        total = tasks.cart_mass + tasks.pole_mass
        moment = tasks.pole_mass * tasks.length
        force = tasks.force * (2.0 * action.to(theta.dtype) - 1.0)
        push = (force + moment * theta_dot * theta_dot * sine) / total
        theta_acceleration = (tasks.gravity * sine - cosine * push) / (
            tasks.length * (4.0 / 3.0 - tasks.pole_mass * cosine * cosine / total)
        )
        acceleration = push - moment * theta_acceleration * cosine / total
        position, velocity = position + self.dt * velocity, velocity + self.dt * acceleration
        theta, theta_dot = theta + self.dt * theta_dot, theta_dot + self.dt * theta_acceleration
        terminated = (position.abs() > self.max_position) | (theta.abs() > self.max_angle)
        elapsed = elapsed + 1
        return (
            CartPoleState(position, velocity, theta, theta_dot, elapsed),
            torch.ones_like(position),
            terminated,
            (elapsed >= self.episode_length) & ~terminated,
        )

    def observe(self, state: CartPoleState) -> Tensor:
        """(x, ẋ, θ, θ̇), shaped (seeds, tasks, envs, 4)."""
        return torch.stack((state.position, state.velocity, state.theta, state.theta_dot), dim=-1)
