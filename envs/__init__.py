"""Batched multi-task environments in torch; importing this package registers them with Gymnasium."""

from .acrobot import Acrobot, AcrobotTask
from .base import Dimension, select_tasks, stack_tasks
from .cartpole import CartPole, CartPoleTask
from .check import FamilyError, check_family
from .damped_pendulum import DampedPendulum, DampedPendulumTask
from .gridworld import Gridworld, GridworldTask
from .gym_tasks import GymTasks
from .gymnasium import register
from .linear_quadratic import LinearQuadratic, LinearQuadraticTask
from .mountain_car import MountainCar, MountainCarTask
from .pendulum import Pendulum, PendulumTask
from .storage import Storage, StorageTask
from .upright import UprightPendulum
from .wireless import Wireless, WirelessTask

register()

__all__ = [
    "Acrobot",
    "AcrobotTask",
    "CartPole",
    "CartPoleTask",
    "DampedPendulum",
    "DampedPendulumTask",
    "Dimension",
    "FamilyError",
    "Gridworld",
    "GridworldTask",
    "GymTasks",
    "LinearQuadratic",
    "LinearQuadraticTask",
    "MountainCar",
    "MountainCarTask",
    "Pendulum",
    "PendulumTask",
    "Storage",
    "StorageTask",
    "UprightPendulum",
    "Wireless",
    "WirelessTask",
    "check_family",
    "select_tasks",
    "stack_tasks",
]
