"""Batched multi-task environments in torch; importing this package registers them with Gymnasium."""

from collections.abc import Callable
from typing import Any

from envs.base import select_tasks, stack_tasks
from envs.damped_pendulum import DampedPendulum, DampedPendulumTask
from envs.gridworld import Gridworld, GridworldTask
from envs.gymnasium import register
from envs.linear_quadratic import LinearQuadratic, LinearQuadraticTask
from envs.optimal import optimal_returns
from envs.pendulum import Pendulum, PendulumTask
from envs.upright import UprightPendulum
from envs.wireless import Wireless, WirelessTask

FAMILIES: dict[str, Callable[[], Any]] = {env.name: env for env in (Pendulum, Wireless, Gridworld)}
CONTROL_FAMILIES: dict[str, Callable[[], Any]] = {
    env.name: env for env in (DampedPendulum, UprightPendulum, LinearQuadratic)
}
"""Families with continuous controls, for the quadratic learners; the pendulum is in both worlds."""

register()

__all__ = [
    "CONTROL_FAMILIES",
    "FAMILIES",
    "DampedPendulum",
    "DampedPendulumTask",
    "Gridworld",
    "GridworldTask",
    "LinearQuadratic",
    "LinearQuadraticTask",
    "Pendulum",
    "PendulumTask",
    "UprightPendulum",
    "Wireless",
    "WirelessTask",
    "optimal_returns",
    "select_tasks",
    "stack_tasks",
]
