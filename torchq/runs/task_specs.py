"""Tasks in words: mass=0.3,length=0.7, products of values and ranges, and files of tasks."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchq.errors import UsageError
from torchq.lowrank.modes import Mode
from torchq.runs.tasks import KINDS

_EXAMPLE = "such as mass=0.3,length=0.7 or mass=0.05:1:8,length=0.5;1 or a .json or .csv file"
Task = dict[str, float]
_NEXT_TASK = re.compile(r";(?=\s*[^\W\d][\w.]*\s*=)")
"""Between tasks; other semicolons are between values."""
_MOST = 1 << 24
"""Values of a range."""


def read_tasks(given: Any, env: Any, setting: str = "tasks") -> tuple[Task, ...]:
    """Parameters of tasks by name.

    Each item is one of
        "mass=0.3,length=0.7"            one task; more after a semicolon, "mass=0.3,length=0.7;mass=1,length=0.5"
        "mass=0.05:1:8,length=0.5;1"     a product: 8 values from 0.05 to 1, spaced as the family says, times two
        "tasks.json", "tasks.csv"        a list of objects, or a table with a line for each task
        {"mass": 0.3, "length": 0.7}     one task, or a parameters dataclass of the family

    Args:
        given: such an item, or several.
        env: the family.
        setting: what is given, for messages.

    Raises:
        UsageError: naming the item that is not as expected.
    """
    single = isinstance(given, str | Path | Mapping) or dataclasses.is_dataclass(given)
    if not single and not isinstance(given, list | tuple):
        raise UsageError(f"`{setting}`: expected tasks {_EXAMPLE}, got {given!r}")
    try:
        found = [task for item in ([given] if single else given) for task in _read(item, env)]
    except ValueError as error:
        raise UsageError(f"`{setting}`: {error}") from error
    if not found:
        raise UsageError(f"`{setting}`: expected tasks {_EXAMPLE}, got none")
    return tuple(found)


def _read(item: Any, env: Any) -> Iterable[Task]:
    names = [field.name for field in dataclasses.fields(env.sample_tasks(1)[0])]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = vars(item)
    if isinstance(item, Mapping):
        return [_checked(item, names, str(dict(item)), env)]
    text = str(item).strip().strip(";")
    if is_file(text):
        return [_checked(row, names, text, env) for row in _rows(Path(text))]
    return [task for part in _NEXT_TASK.split(text) for task in _product(part, names, env)]


def is_file(text: str) -> bool:
    """Whether words are the name of a file of tasks."""
    return Path(text).suffix.lower() in (".json", ".csv")


def _product(text: str, names: Sequence[str], env: Any) -> list[Task]:
    said = dict(zip(names, getattr(env, "parameters", ()), strict=False))
    axes = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace(".", "__")
        if not equals:
            raise ValueError(f"expected tasks {_EXAMPLE}, got {text!r}")
        _known(name, names)
        if name in axes:
            raise ValueError(f"expected each parameter once, got {name} twice in {text!r}")
        axes[name] = [number for piece in value.split(";") for number in _span(piece, said.get(name), text)]
    products = itertools.product(*axes.values())
    return [_checked(dict(zip(axes, point, strict=True)), names, text, env) for point in products]


def _span(piece: str, said: Any, text: str) -> list[float]:
    """One number, or count numbers from low to high."""
    try:
        parts = piece.split(":")
        if len(parts) == 1:
            return [float(piece)]
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
        if len(parts) > 3 or not 1 <= count <= _MOST:
            raise ValueError(f"count of {count}")
        kind = "linear" if said is None else KINDS[said.kind]
        mode = Mode(low, high, count, "linear" if kind == "cells" else kind)
    except (IndexError, KeyError, AttributeError, ValueError) as error:
        why = f" ({error})" if piece.count(":") == 2 else ""
        raise ValueError(f"expected a number or low:high:count, got {piece!r} in {text!r}{why}") from error
    return [round(value, 12) for value in mode.points(torch.float64).tolist()]


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        if path.suffix.lower() == ".csv":
            return read_table(path)
        rows = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"expected a file of tasks, but {path} does not exist") from error
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"expected a list of objects in {path}, one for each task")
    return rows


def read_table(path: Path) -> list[Mapping[str, Any]]:
    """Lines of a CSV file by its header; semicolons part columns where the header has no comma.

    Raises:
        ValueError: naming the line that has more or fewer cells than the header.
    """
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    mark = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise ValueError(f"line {number} has {len(row)} cells for {len(rows[0])} columns")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _checked(task: Mapping[str, Any], names: Sequence[str], text: str, env: Any) -> Task:
    """A task with a number for every parameter, of the kind that the family says."""
    task = {**_defaults(env), **{str(name).replace(".", "__"): value for name, value in task.items()}}
    for name in task:
        _known(name, names)
    if missing := [name for name in names if name not in task]:
        raise ValueError(f"expected a value of {', '.join(missing)} too, got {text}")
    try:
        found = {name: float(task[name]) for name in names}
    except (TypeError, ValueError, OverflowError) as error:
        where = f" of {text}" if is_file(text) else ""
        lists = "; a product of values is `vary`" if any(isinstance(one, list | tuple) for one in task.values()) else ""
        came = ",".join(f"{name}={task[name]}" for name in names)
        raise ValueError(f"expected numbers, got {came[:80]}{where}{lists}") from error
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"expected finite numbers, got {text}")
    for name, said in zip(names, getattr(env, "parameters", ()), strict=False):
        value = found[name]
        if (said.kind == "log" or said.low > 0.0) and not value > 0.0:
            raise ValueError(f"expected {name} above 0, got {value:g}")
        if said.kind == "category" and not (said.low <= value <= said.high and value == int(value)):
            raise ValueError(f"expected {name} of {said.low:g} to {said.high:g}, whole, got {value:g}")
    return found


def _defaults(env: Any) -> Task:
    """Parameters that a family's tasks have unless told otherwise."""
    fields = dataclasses.fields(env.sample_tasks(1)[0])
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _known(name: Any, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected the parameters {', '.join(names)}, got {name!r}{hint}")
