"""The tasks of a run: those that it trains on, those that are held out, and where they lie along the task modes."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq import philox
from torchq.config import Config
from torchq.errors import UsageError
from torchq.lowrank.modes import Kind, Mode
from torchq.lowrank.task_modes import Between, Levels, TaskModes

_ALL_TESTED, _SAMPLE = 1000, 256
"""Tasks up to which all are tested unless told otherwise, and how many of more."""
POINTS = 8
"""Along a parameter of which the family says nothing, at most."""
KINDS: dict[str, Kind] = {
    "continuous": "linear", "periodic": "periodic", "quadratic": "quadratic", "log": "log", "category": "cells",
}  # fmt: skip
"""The mode that interpolates a dimension, by what a family says the dimension is."""


class TaskSet(NamedTuple):
    """The tasks of a run."""

    tasks: list[Any]
    """Parameters of all: those that learn first."""
    num_trained: int
    """How many learn."""
    modes: TaskModes | None
    """A mode per parameter; None: a row per task."""
    sample: tuple[int, ...] | None = None
    """Numbers of those that are tested, in order; None: all are."""

    @property
    def tested(self) -> list[Any]:
        """Those that are tested: those that learn first."""
        return self.tasks if self.sample is None else [self.tasks[number] for number in self.sample]

    @property
    def numbers(self) -> Sequence[int]:
        """Their numbers."""
        return range(len(self.tasks)) if self.sample is None else self.sample

    @property
    def num_learnt(self) -> int:
        """How many of the tested tasks learn."""
        return bisect_left(self.numbers, self.num_trained)

    @property
    def trained(self) -> list[Any]:
        """Those that learn."""
        return self.tasks[: self.num_trained]

    @property
    def held_out(self) -> list[Any]:
        """Those that are tested only."""
        return self.tasks[self.num_trained :]

    def places(self, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Where all tasks lie along each task mode; () with a row per task."""
        return () if self.modes is None else places(self.modes, self.tasks, device, dtype)


def places(modes: TaskModes, tasks: list[Any], device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Where tasks lie along each task mode, (tasks,): int64 rows, or fractions between them in a type.

    What is a point but for rounding is one: a neighbour's row with a weight of 1e-16 would move by a whole Adam step.
    """
    found = modes.places(torch.tensor([values(task) for task in tasks], dtype=torch.float64))
    snapped = (torch.where((place - place.round()).abs() < 1e-6, place.round(), place) for place in found)
    return tuple(place.to(device, dtype if place.is_floating_point() else torch.int64) for place in snapped)


def names(task: Any) -> tuple[str, ...]:
    """Names of the parameters of a family's tasks."""
    return tuple(field.name for field in dataclasses.fields(task))


def values(task: Any) -> tuple[float, ...]:
    """Parameters of one task."""
    return tuple(float(getattr(task, name)) for name in names(task))


def shown(task: Any) -> str:
    """One task in the words of `task`: mass=0.3,length=0.7."""
    return ",".join(f"{name}={value:.4g}" for name, value in zip(names(task), values(task), strict=True))


def coordinates(env: Any, tasks: list[Any]) -> Tensor:
    """Parameters of tasks with the logarithm of those that count by orders of magnitude, (tasks, parameters)."""
    table = torch.tensor([values(task) for task in tasks], dtype=torch.float64)
    for column, said in enumerate(getattr(env, "parameters", ())):
        if said.kind == "log":
            table[:, column] = table[:, column].log()
    return table


def task_set(config: Config, env: Any) -> TaskSet:
    """The tasks that a configuration asks for.

    Raises:
        UsageError: if they cannot be split as asked, or have no modes of the kind asked for.
    """
    tasks = task_list(config, env)
    num_trained = len(tasks)
    if config.held_out:
        trained, held = _split([values(task) for task in tasks], config)
        tasks, num_trained = [tasks[number] for number in (*trained, *held)], len(trained)
    modes, tested = make_modes(config, env, tasks), _made(config.test_tasks, config, env)
    unknown = (
        [(task, modes.unknown(values(task))) for task in tested] if config.task_modes == "product" and modes else []
    )
    for task, parameters in unknown:
        if parameters:
            raise UsageError(f"`test_tasks`: expected values of the tasks that learn with `task_modes=product`, got "
                             f"others of {', '.join(parameters)} in {shown(task)}")  # fmt: skip
    found = [*tasks, *tested]
    return TaskSet(found, num_trained, modes, _sample(config, num_trained, len(found)))


def _sample(config: Config, num_trained: int, num_tasks: int) -> tuple[int, ...] | None:
    """Numbers of the tasks that are tested: of those that learn, and of the others; None: all."""
    parts = [range(num_trained), range(num_trained, num_tasks)]
    counts = [_num_sampled(config, len(part)) for part in parts]
    if counts == [len(part) for part in parts]:
        return None
    zero = torch.zeros(1, dtype=torch.int64)
    found = []
    for part, count in zip(parts, counts, strict=True):
        bits = philox.random_bits(zero, zero, philox.Purpose.TESTED, torch.tensor(part, dtype=torch.int64), zero, 1)
        found += sorted(part[place] for place in bits.flatten().argsort(stable=True)[:count].tolist())
    return tuple(found)


def _num_sampled(config: Config, count: int) -> int:
    """How many of so many tasks are tested."""
    if config.eval_tasks is None:
        return count if count <= _ALL_TESTED else _SAMPLE
    return min(count, config.eval_tasks)


def num_tested(config: Config) -> int:
    """Tasks that are tested, of a configuration that knows its number of tasks."""
    num_tasks = int(config.num_tasks or 1)
    held = _num_held_out(config, num_tasks) if config.held_out else 0
    return _num_sampled(config, num_tasks - held) + _num_sampled(config, held + len(config.test_tasks))


def _num_held_out(config: Config, num_tasks: int) -> int:
    return max(1, round(config.held_out * num_tasks))


def beyond(modes: TaskModes | None, tasks: list[Any]) -> list[str]:
    """A line about each task that lies where its modes have no points: it is taken at the nearest end."""
    found = [(shown(task), modes.unknown(values(task))) for task in tasks] if modes else []
    return [
        f"task {text} lies beyond what is trained on: extrapolates, with {', '.join(names)} taken at the nearest end"
        for text, names in found
        if names
    ]


def task_list(config: Config, env: Any) -> list[Any]:
    """All tasks in the order they were asked for in.

    Raises:
        UsageError: if `tasks` name other parameters than the family has.
    """
    if config.tasks:
        return _made(config.tasks, config, env)
    try:
        return list(env.sample_tasks(config.num_tasks))
    except ValueError as error:
        raise UsageError(f"`num_tasks`: {str(error).removeprefix('num_tasks: ')}") from error


def _made(tasks: tuple[dict[str, float], ...], config: Config, env: Any) -> list[Any]:
    kind = type(env.sample_tasks(1)[0])
    wanted = {field.name for field in dataclasses.fields(kind)}
    for task in tasks:
        if set(task) != wanted:
            came = f"got {', '.join(task) or 'none'}"
            raise UsageError(f"`tasks`: expected the parameters {', '.join(sorted(wanted))} of {config.env}, {came}")
    return [kind(**task) for task in tasks]


def _split(rows: list[tuple[float, ...]], config: Config) -> tuple[list[int], list[int]]:
    """Numbers of the tasks that learn and of those held out.

    They are drawn alike for every seed, the corners of a grid, beyond which nothing is known, last of all. A value of a
    parameter that several tasks share stays with one that learns.
    """
    wanted = _num_held_out(config, len(rows))
    at_first = [Counter(column) for column in zip(*rows, strict=True)]
    left = [count.copy() for count in at_first]
    ends = [{min(count), max(count)} for count in at_first]
    zero = torch.zeros(1, dtype=torch.int64)
    bits = philox.random_bits(zero, zero, philox.Purpose.HELD_OUT, torch.arange(len(rows)), zero, 1)
    held: list[int] = []
    drawn = bits.flatten().argsort().tolist()
    for number in sorted(drawn, key=lambda number: all(map(set.__contains__, ends, rows[number]))):
        counts = [(now[value], first[value]) for now, first, value in zip(left, at_first, rows[number], strict=True)]
        needed = any(now == 1 and (first > 1 or config.task_modes == "product") for now, first in counts)
        if needed or len(held) == wanted:
            continue
        held.append(number)
        for now, value in zip(left, rows[number], strict=True):
            now[value] -= 1
    if len(held) < wanted or wanted >= len(rows):
        raise UsageError(
            f"`held_out`: expected a share that leaves every value of a parameter to a task that learns, but of "
            f"{len(rows)} tasks only {min(len(held), len(rows) - 1)} can be held out, not {wanted}"
        )
    apart = set(held)
    return [number for number in range(len(rows)) if number not in apart], sorted(held)


def make_modes(config: Config, env: Any, tasks: list[Any]) -> TaskModes | None:
    """A mode for each parameter over the tasks' own range, or None for a row per task.

    Raises:
        UsageError: if the family's `parameters` are not as expected.
    """
    if config.task_modes == "table":
        return None
    columns = [tuple(sorted(set(column))) for column in zip(*map(values, tasks), strict=True)]
    if config.task_modes == "product":
        return TaskModes(names(tasks[0]), tuple(map(Levels, columns)))
    said = getattr(env, "parameters", None) or (None,) * len(columns)
    try:
        if len(said) != len(columns):
            raise ValueError(f"expected {len(columns)}, one for each of {', '.join(names(tasks[0]))}, got {len(said)}")
        modes = tuple(_mode(column, one) for column, one in zip(columns, said, strict=True))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"parameters with low, high, points and a kind of {', '.join(KINDS)}"
        raise UsageError(f"`env`: expected {expected}, but {type(env).__name__} has others ({error})") from error
    return TaskModes(names(tasks[0]), modes)


def _mode(column: tuple[float, ...], said: Any) -> Levels | Between:
    """The mode of one parameter by its values and what the family says of it: no more points than values."""
    if said is not None and said.kind == "category":
        return Levels(column)
    kind = "linear" if said is None else KINDS[said.kind]
    points = min(len(column), POINTS if said is None else said.points)
    if kind == "periodic":
        return Between(Mode(said.low, said.high, said.points, kind))
    return Between(Mode(column[0], column[-1], points, kind if points > 1 else "linear"))
