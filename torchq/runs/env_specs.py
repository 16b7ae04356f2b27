"""A family in words: constants as key=value, tasks that differ in some parameters, ranges of observations."""

from __future__ import annotations

import ast
import dataclasses
import json
import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchq import families
from torchq.errors import UsageError
from torchq.runs.task_specs import is_file, read_table


def read_options(given: Any) -> dict[str, Any]:
    """Constants of a family from words such as num_actions=20, or a mapping.

    Values are numbers, true, false, lists and the like as Python or JSON write them, else text.

    Raises:
        UsageError: naming the words that are not as expected.
    """
    if isinstance(given, Mapping):
        return {str(name): _located(_jsonable(name, value)) for name, value in given.items()}
    return dict(_pair(word) for word in _several(given))


def _located(value: Any) -> Any:
    """A value, with the whole path of a file: a run goes on in another folder too."""
    path = Path(value) if isinstance(value, str) else None
    return str(path.resolve()) if path is not None and path.suffix and path.is_file() else value


def _pair(word: Any) -> tuple[str, Any]:
    name, equals, text = str(word).partition("=")
    if not equals or not name.strip().isidentifier():
        raise UsageError(f"`env_option`: expected words such as num_actions=20, got {word!r}")
    return name.strip(), _located(_value(text.strip()))


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return _jsonable("value", read(text))
        except (ValueError, SyntaxError):
            continue
    return text


def _jsonable(name: Any, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"`env_option`: expected numbers, text or lists of {name}, got {value!r}") from error


def read_ranges(given: Any) -> dict[str, list[float]]:
    """Ranges of observations by dimension from words such as 1=-3:3,velocity=0:2, or a mapping to pairs.

    Raises:
        UsageError: naming the words that are not as expected.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), ends) for name, ends in given.items()]
    else:
        words = [part for word in _several(given) for part in str(word).split(",")]
        pairs = [(word.partition("=")[0].strip(), word.partition("=")[2].split(":")) for word in words]
        if twice := [name for number, (name, _) in enumerate(pairs) if name in [other for other, _ in pairs[:number]]]:
            raise UsageError(f"`ranges`: expected each dimension once, got {twice[0]} twice")
    try:
        found = {name: [float(low), float(high)] for name, (low, high) in pairs}
    except (TypeError, ValueError) as error:
        raise UsageError(f"`ranges`: expected words such as 1=-3:3,velocity=0:2, got {given!r}") from error
    if wrong := [name for name, (low, high) in found.items() if not (name and -math.inf < low < high < math.inf)]:
        raise UsageError(f"`ranges`: expected low < high of each dimension, got {found[wrong[0]]} of {wrong[0]!r}")
    return found


def read_vary(given: Any) -> str:
    """Values of parameters as one product of tasks, in the words of `tasks`: length=0.25;0.5,gravity=9.8;12.

    Raises:
        UsageError: naming the words that are not as expected.
    """
    if isinstance(given, Mapping):
        parts = [f"{name}={';'.join(map(str, _several(values)))}" for name, values in given.items()]
    else:
        parts = [str(word).replace(" ", "").replace(",", ";") for word in _several(given)]
    for part in parts:
        name, _, text = part.partition("=")
        if not re.fullmatch(r"[^=;]+=[^=]+", part) or not all(map(_is_span, text.split(";"))):
            raise UsageError(f"`vary`: expected words such as length=0.25,0.5,1.0, got {part.replace(';', ',')!r}")
        if len(set(text.split(";"))) < len(text.split(";")) or sum(other.startswith(f"{name}=") for other in parts) > 1:
            raise UsageError(f"`vary`: expected each parameter and value once, got {name} or a value of it twice")
    return ",".join(parts)


def _is_span(text: str) -> bool:
    """Whether a word is a number, or low:high:count."""
    try:
        return all(map(math.isfinite, map(float, text.split(":")))) and text.count(":") in (0, 2)
    except ValueError:
        return False


def names_in(given: Any) -> tuple[str, ...]:
    """Names of the parameters in the words, mappings or files of `tasks`, as the first of them says."""
    item = given if isinstance(given, str | Path | Mapping) else given[0]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = vars(item)
    if isinstance(item, Mapping):
        return tuple(map(str, item))
    path = Path(str(item).strip())
    if is_file(str(path)):
        try:
            return tuple((read_table(path) if path.suffix.lower() == ".csv" else json.loads(path.read_bytes()))[0])
        except FileNotFoundError as error:
            raise UsageError(f"`tasks`: expected a file of tasks, but {path} does not exist") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"`tasks`: {path} cannot be read as tasks ({error})") from error
    first = re.split(r";(?=\s*[^\W\d][\w.]*\s*=)", str(item))[0]
    return tuple(part.partition("=")[0].strip() for part in first.split(","))


def family_for(name: str, options: Mapping[str, Any], words: Sequence[Any]) -> Any:
    """The family that tasks in words are read for: where it is made of its tasks, one with the parameters they name."""
    if not families.is_made(name) or not words:
        return families.make(name, options)
    names = [name.replace(".", "__") for name in names_in(words[0])]
    return Parameters(names)


class Parameters:
    """Names of parameters in the place of a family that is made of its tasks."""

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        wrong = [name for name in names if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_")]
        if wrong or len(set(names)) < len(names) or not names:
            raise UsageError(f"`tasks`: expected parameters such as length=0.5, got {', '.join(names) or 'none'}")
        self.kind = dataclasses.make_dataclass("Task", [(name, float) for name in names])

    def sample_tasks(self, num_tasks: int) -> list[Any]:
        """Tasks with these parameters, all 0."""
        return [self.kind(**{field.name: 0.0 for field in dataclasses.fields(self.kind)})] * num_tasks


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]
