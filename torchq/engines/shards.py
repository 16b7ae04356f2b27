"""Shards: ranges of tasks whose gradients are summed by themselves and then added in a fixed order.

A run's shards follow from its sizes alone, and every process owns some whole ones, so that what is learnt is the same,
byte for byte, however many processes share the tasks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

MOST = 64
_LEAST_TRANSITIONS = 128
"""Of a shard in an update."""


class TaskShare(NamedTuple):
    """The tasks of one process."""

    names: Tensor
    """Numbers in the whole run of the tasks that are tested, those that learn first, (tested tasks,): random numbers
    follow from them."""
    bounds: tuple[int, ...]
    """First tasks of its shards, and the end of the last, counted from its own first task."""
    largest: int
    """Tasks of the largest shard of the whole run."""


def count(num_tasks: int, per_task: int) -> int:
    """Shards of a run: a power of two, that each may hold work worth a process.

    Args:
        num_tasks: that learn.
        per_task: transitions of a task in an update.
    """
    shards, most = 1, min(MOST, num_tasks, num_tasks * per_task // _LEAST_TRANSITIONS)
    while 2 * shards <= most:
        shards *= 2
    return shards


def bounds(num_tasks: int, shards: int) -> tuple[int, ...]:
    """First tasks of the shards, and the end of the last: as equal as can be."""
    return tuple(num_tasks * shard // shards for shard in range(shards + 1))


def largest(num_tasks: int, shards: int) -> int:
    """Tasks of the largest shard."""
    return max(end - first for first, end in pairwise(bounds(num_tasks, shards)))
