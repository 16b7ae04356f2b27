"""Families of a user: torch alone, none of them in the package."""

import dataclasses
from typing import NamedTuple

import torch

import envs
from envs import base


class CarState(NamedTuple):
    position: torch.Tensor
    velocity: torch.Tensor
    elapsed: torch.Tensor


@dataclasses.dataclass(frozen=True)
class CarTask:
    gravity: float
    force: float


@dataclasses.dataclass(frozen=True)
class MountainCar:
    """Gymnasium's MountainCar-v0 with other gravity and force in each task, as a user writes it."""

    episode_length: int = 200
    name, terminates, num_actions, num_reset_uniforms, num_step_uniforms = "user-car", True, 3, 1, 0
    grid_low, grid_high, grid_sizes = (-1.2, -0.07), (0.6, 0.07), (25, 25)

    def sample_tasks(self, num_tasks=None):
        return [CarTask(*point) for point in base.spread(num_tasks or 4, (0.002, 0.001), (0.003, 0.0015))]

    def reset(self, tasks, uniforms):
        position = -0.6 + 0.2 * uniforms[..., 0]
        return CarState(position, torch.zeros_like(position), torch.zeros_like(position, dtype=torch.int32))

    def step(self, tasks, state, action, uniforms):
        velocity = state.velocity + (action - 1) * tasks.force - torch.cos(3 * state.position) * tasks.gravity
        velocity = velocity.clamp(-0.07, 0.07)
        position = (state.position + velocity).clamp(-1.2, 0.6)
        velocity = torch.where((position <= -1.2) & (velocity < 0), 0.0, velocity)
        elapsed, reached = state.elapsed + 1, position >= 0.5
        truncated = (elapsed >= self.episode_length) & ~reached
        return CarState(position, velocity, elapsed), -torch.ones_like(position), reached, truncated

    def observe(self, state):
        return torch.stack((state.position, state.velocity), dim=-1)


class WideState(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor
    steps: torch.Tensor
    flag: torch.Tensor
    elapsed: torch.Tensor


WideTask = dataclasses.make_dataclass("WideTask", [(name, float) for name in "uvwxyz"], frozen=True)


@dataclasses.dataclass(frozen=True)
class Wide:
    """Five dimensions, eight fields of four types, six parameters, six random numbers, and every kind of operator."""

    episode_length: int = 30
    name, terminates, num_actions, num_reset_uniforms, num_step_uniforms = "wide", True, 4, 5, 6
    grid_low, grid_high, grid_sizes = (-2.0,) * 5, (2.0,) * 5, (4, 3, 5, 1, 3)

    def sample_tasks(self, num_tasks=None):
        return [WideTask(*point) for point in base.spread(num_tasks or 3, (0.5,) * 6, (1.5,) * 6)]

    def reset(self, tasks, uniforms):
        a, b, c, d, e = (2 * uniforms - 1).unbind(-1)
        steps = torch.full_like(a, 3, dtype=torch.int64)
        return WideState(a, b, c, d * tasks.u, e, steps, a > b, torch.zeros_like(a, dtype=torch.int32))

    def step(self, tasks, state, action, uniforms):
        a, b, c, d, e, steps, flag, elapsed = state
        n = uniforms - 0.5
        push = action.to(a.dtype) / 3 - 0.5 + tasks.v * n[..., 0]
        a = torch.sin(a + push) * torch.exp(-(b**2)) + torch.tan(0.3 * c) + torch.remainder(d - push, 0.7)
        b = torch.atan2(b + 0.1, 1.1 + c.abs()) + torch.fmod(e, 0.6) - n[..., 1] * tasks.w
        c = torch.where(flag, torch.tanh(c + n[..., 2]), torch.sqrt(c**2 + 0.1)) + 0.01 * (steps % 5)
        d = (
            0.1 * (c.abs() + 0.5) ** 1.3
            + torch.log1p(d.abs())
            - torch.log2(1.5 + e**2)
            + tasks.x * torch.round(3 * n[..., 3]) / 3
        )
        e = torch.maximum(torch.minimum(e + d / tasks.y, b), c - 1) * (b.abs() + 0.1) ** 0.5 + torch.floor(
            2 * n[..., 4]
        )
        steps = torch.where(flag ^ (action > 1), steps + action, -steps)
        flag = ~flag | ((n[..., 5] > 0.2) & (a != b))
        a, b, c, d, e = (x.clamp(-2.0, 2.0) for x in (a, b, c, d, e))
        elapsed = elapsed + 1
        reward = -(a**2 + tasks.z * b.pow(3) + torch.sign(c) + torch.rsqrt(1 + d * d) + torch.sigmoid(e))
        done = (a > 1.9) & (c < 0)
        return WideState(a, b, c, d, e, steps, flag, elapsed), reward, done, (elapsed >= self.episode_length) & ~done

    def observe(self, state):
        return torch.stack((state.a, state.b, state.c, state.d, state.e), dim=-1)


@dataclasses.dataclass(frozen=True)
class Counted(envs.Gridworld):
    """Writes down the tasks whose optimum it is asked for."""

    asked = []  # noqa: RUF012

    def optimal_returns(self, tasks, device="cpu"):
        self.asked.extend(tasks)
        return super().optimal_returns(tasks, device)


class LogWireless(envs.Wireless):
    """The transmitters with a gain that counts by orders of magnitude."""

    name = "log-wireless"
    dimensions = (envs.Dimension(0.1, 20.0, 6, "log"), *envs.Wireless.dimensions[1:])


def library(**constants):
    """The package's families, which may be given other constants, and these three."""
    from problems import library as ours

    own = {family.name: lambda family=family: family(**constants) for family in (MountainCar, Wide, LogWireless)}
    return {**ours(**constants), **own}


def broken(step):
    """The pendulum with another `step(self, tasks, state, action, uniforms)`."""
    return type("Broken", (envs.Pendulum,), {"step": step})
