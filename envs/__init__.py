"""Batched multi-task environments in torch; importing this package registers them with Gymnasium."""

from .base import Dimension, select_tasks, stack_tasks
from .damped_pendulum import DampedPendulum, DampedPendulumTask
from .gridworld import Gridworld, GridworldTask
from .gymnasium import register
from .linear_quadratic import LinearQuadratic, LinearQuadraticTask
from .pendulum import Pendulum, PendulumTask
from .storage import Storage, StorageTask
from .upright import UprightPendulum
from .wireless import Wireless, WirelessTask

register()

__all__ = [
    "DampedPendulum",
    "DampedPendulumTask",
    "Dimension",
    "Gridworld",
    "GridworldTask",
    "LinearQuadratic",
    "LinearQuadraticTask",
    "Pendulum",
    "PendulumTask",
    "Storage",
    "StorageTask",
    "UprightPendulum",
    "Wireless",
    "WirelessTask",
    "select_tasks",
    "stack_tasks",
]
