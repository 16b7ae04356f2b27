"""Families of environments by name: those that packages register, any other as `module:Family`, and `gym:ID`.

A package registers a family as an entry point of the group `torchq.environments`:

    [project.entry-points."torchq.environments"]
    my-family = "my_package.my_module:MyFamily"

and what makes families out of something else, which its name is followed by, in `torchq.environment_makers`: it takes
what follows the colon, the parameters of the tasks, and options.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from torchq.errors import UsageError

GROUP, MAKERS, PICTURES = "torchq.environments", "torchq.environment_makers", "torchq.environment_pictures"


def names() -> tuple[str, ...]:
    """Names of all registered families, in order."""
    return tuple(sorted(_registered()))


def loaded(name: str) -> Any:
    """What a registered name stands for, not made yet.

    Raises:
        UsageError: if there is none, or it cannot be imported.
    """
    return _loaded(name, GROUP)


def of(config: Any) -> Any:
    """The family of a configuration, with its constants, made of its tasks where it has no others."""
    return make(config.env, config.env_option, config.tasks)


def picture(family: Any, observation: Sequence[float], task: Any, size: int) -> Any:
    """One environment by its observation, (size, size, 3), uint8, as what registers in `PICTURES` draws it."""
    return _loaded("sketch", PICTURES)(family, observation, task, size)


def is_made(name: str) -> bool:
    """Whether a family of that name is made out of its tasks, as `gym:ID` is."""
    return name.partition(":")[0] in _registered(MAKERS)


def make(name: str, options: Mapping[str, Any] | None = None, tasks: Sequence[Mapping[str, float]] = ()) -> Any:
    """The family of a name, of `module:Family`, which is looked for in the current folder too, or of `gym:ID`.

    Args:
        name: of the family.
        options: its constants; None leaves them as they are.
        tasks: parameters of each, for a family that is made out of them.

    Raises:
        UsageError: if there is none, or it cannot be imported or made.
    """
    options = options or {}
    if is_made(name):
        kind, _, rest = name.partition(":")
        _look_here()
        try:
            return _loaded(kind, MAKERS)(rest, tasks, **options)
        except (TypeError, ValueError) as error:
            raise UsageError(_blamed(f"`env`: {error}")) from error
    found = _by_path(name) if ":" in name else _loaded(name, GROUP)
    if not callable(found):
        if options:
            came = ", ".join(options)
            raise UsageError(f"`env_option`: expected none with {name}, which is made already, got {came}")
        return found
    if unknown := [option for option in options if option not in inspect.signature(found).parameters]:
        constants = list(inspect.signature(found).parameters)
        near = difflib.get_close_matches(unknown[0], constants, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        came = f"got {unknown[0]!r}{hint}"
        raise UsageError(f"`env_option`: {name} has the constants {', '.join(constants) or 'none'}, {came}")
    try:
        return _checked(found(**options), options)
    except UsageError:
        raise
    except Exception as error:  # Whatever a user's class raises.
        argument, what = ("env_option", "with these") if options else ("env", "without arguments")
        raise UsageError(f"`{argument}`: {name} cannot be made {what} ({_shown(error)})") from error


def _checked(family: Any, options: Mapping[str, Any]) -> Any:
    """A family whose counts that were given are counts, and whose numbers are numbers."""
    kind = type(family)
    for name, value in options.items():
        usual = getattr(kind, name, None)
        if isinstance(usual, int | float) and not (isinstance(value, int | float) and math.isfinite(value)):
            raise UsageError(f"`env_option`: expected a number for {name}, such as {usual}, got {value!r}")
    for name, least in (("num_actions", 2), ("episode_length", 1)):
        value = options.get(name, least)
        if not isinstance(value, int) or value < least:
            raise UsageError(f"`env_option`: expected {name} to be a whole number of at least {least}, got {value!r}")
    return family


def _blamed(text: str) -> str:
    """An error of a maker, naming the setting that it is about rather than the family."""
    found = re.match(r"`env`: (ranges|num_tasks): ", text)
    return text if found is None else f"`{found[1]}`: {text[found.end() :]}"


def with_controls(family: Any) -> Any:
    """The same family with continuous controls, which quadratic learners need: itself, or what it says it is."""
    other = hasattr(family, "with_controls") and not hasattr(family, "features")
    return family.with_controls() if other else family


def check(family: Any, contract: Sequence[str], kind: str, algo: str) -> None:
    """See that a family has what a learner asks of it.

    Args:
        family: an environment.
        contract: names of the methods and attributes.
        kind: what a family that has them is called.
        algo: the method.

    Raises:
        UsageError: naming what is missing.
    """
    if missing := [name for name in contract if not hasattr(family, name)]:
        came = f"{type(family).__name__} has no {', '.join(missing)}"
        raise UsageError(f"`env`: expected a family with {kind} for `algo={algo}`, but {came}")


def stack_tasks(tasks: Sequence[Any], *, device: torch.device | str = "cpu", dtype: torch.dtype) -> Any:
    """One parameters dataclass with fields shaped (tasks, 1) from one dataclass of numbers per task."""
    fields = {
        field.name: torch.tensor([[getattr(task, field.name)] for task in tasks], device=device, dtype=dtype)
        for field in dataclasses.fields(tasks[0])
    }
    return type(tasks[0])(**fields)


def _registered(group: str = GROUP) -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=group)}


def _loaded(name: str, group: str) -> Any:
    known = _registered(group)
    if name not in known:
        if not known:
            raise UsageError("`env`: no families are registered; install torchq again (pip install torchq)")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"`env`: expected one of {', '.join(names())}, module:Family or gym:ID, got {name!r}{hint}")
    entry = known[name]
    try:
        return _visible(entry).load()
    except Exception as error:  # Whatever importing raises.
        raise UsageError(f"`env`: {name} ({entry.value}) cannot be imported ({_shown(error)})") from error


def _visible(entry: metadata.EntryPoint) -> metadata.EntryPoint:
    """The entry point, of torchq's own families under another name where a folder or package hides theirs.

    They lie in a package `envs` beside torchq, and many a project has a folder of that name.
    """
    package, _, rest = entry.module.partition(".")
    home = Path(__file__).resolve().parents[1] / package / "__init__.py"
    if entry.dist is None or entry.dist.name != "torchq" or not home.exists() or _origin(package) == home:
        return entry
    alias = f"torchq_{package}"
    if alias not in sys.modules:
        spec = util.spec_from_file_location(alias, home, submodule_search_locations=[str(home.parent)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[alias] = util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[alias])
    module = f"{alias}.{rest}" if rest else alias
    return metadata.EntryPoint(entry.name, f"{module}:{entry.attr}", entry.group)


def _origin(package: str) -> Path | None:
    """The file that importing a package runs, or has run."""
    spec = getattr(sys.modules[package], "__spec__", None) if package in sys.modules else util.find_spec(package)
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _by_path(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    _look_here()
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise UsageError(f"`env`: expected module:Family, but {name} needs {error.name}, which is not found") from error
    except Exception as error:  # Whatever importing raises.
        raise UsageError(f"`env`: {name} cannot be imported ({_shown(error)})") from error
    return found


def _look_here() -> None:
    """Import from the current folder too."""
    here = str(Path.cwd())
    if here not in sys.path:  # Commands do not look there by themselves; after all else, so that nothing is hidden.
        sys.path.append(here)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
