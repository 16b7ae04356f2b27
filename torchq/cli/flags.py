"""The flags that train: those of the fields of `Config`, with defaults from the table, and few of their own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from torchq import config
from torchq.cli import listing, sweep
from torchq.cli.commands import flag
from torchq.cli.help import CHOSEN
from torchq.config import PRESETS
from torchq.config_fields import Range
from torchq.errors import spell
from torchq.methods import ALGOS
from torchq.presets import resolve, table


class Name(click.ParamType):
    """One of some names; anything else is answered with the nearest of them."""

    name = "name"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, as `--help` shows them."""
        return "{" + ",".join(self.names) + "}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, or an error that suggests the nearest."""
        if value not in self.names:
            near = difflib.get_close_matches(str(value), self.names, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fail(f"expected one of {', '.join(self.names)}, got {value!r}{hint}", param, ctx)
        return str(value)


class Family(Name):
    """The name of a family, or where one lies."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, as `--help` shows them."""
        return super().get_metavar(param, ctx).replace("}", ",module:Family,gym:ID}")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, or an error that suggests the nearest."""
        return str(value) if ":" in str(value) else super().convert(value, param, ctx)


class Folder(click.Path):
    """A path that says something: that of "" would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("expected the path of a folder, got ''", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.ParamType):
    """A number of a range."""

    def __init__(self, range: Range) -> None:
        self.range = range
        self.name = "integer" if range.kind is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or an error that says the range."""
        low, high = self.range.low, self.range.high
        try:
            number = self.range.kind(value)
        except ValueError:
            self.fail(f"expected {self.range}, got {value!r}", param, ctx)
        if number == math.inf or not low <= number <= high or (self.range.low_open and number == low):
            self.fail(f"expected {self.range}, got {value}", param, ctx)
        return number


class NumberOrAuto(Number):
    """A number of a range, or "auto"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, "auto", or an error that says the range."""
        return value if value == "auto" else super().convert(value, param, ctx)


class Numbers(click.ParamType):
    """Numbers of a range separated by commas; whole ones, which are sizes, increase."""

    def __init__(self, range: Range) -> None:
        self.range = range
        self.name = "n,n,..." if range.kind is int else "x,y,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        one = Number(self.range)
        numbers = tuple(one.convert(part, param, ctx) for part in str(value).split(","))
        if self.range.kind is int and list(numbers) != sorted(set(numbers)):
            self.fail(f"expected increasing sizes, got {value}", param, ctx)
        return numbers


def kind(name: str) -> click.ParamType:
    """How the command line reads a field."""
    shape = config.shape(name)
    if name == "rank" and shape.range:
        return NumberOrAuto(shape.range)
    if shape.names:
        return Name([known for known in shape.names if known != "meta"])  # A device without memory, for tests.
    if shape.range:
        return Numbers(shape.range) if shape.kind is tuple else Number(shape.range)
    return click.Path() if name in ("warm_start", "adapt_from", "data") else click.STRING


class Setting(click.Option):
    """The flag of a field of `Config`, shown with its default: that of a choice made beside `--help`, or all of them.

    Args:
        field: its name.
        text: its help text.
        families: of the table whose defaults are shown.
    """

    def __init__(self, field: str, text: str, families: Sequence[str]) -> None:
        self.field, self.families, is_bool = field, families, config.shape(field).kind is bool
        spelt = f"{flag(field)}/{flag(field, 'False')}" if is_bool else flag(field)
        given: dict[str, Any] = {"default": None} if is_bool else {"type": kind(field)}
        super().__init__([spelt], help=spell(text, flag), **given)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The line of `--help`; none where the choice has no such flag."""
        chosen, record = ctx.meta.get(CHOSEN), super().get_help_record(ctx)
        if record is None or (chosen and chosen.algo not in config.scope(self.field).algos):
            return None
        shown = _shown(getattr(chosen, self.field)) if chosen else _defaults(self.field, self.families)
        return record[0], f"{record[1]}  [default: {shown}]"


def _defaults(name: str, families: Sequence[str]) -> str:
    """Defaults of a flag in the table, as `--help` shows them."""
    values = {f"{env} {preset}": getattr(resolve("stlrq", env, preset, {}), name) for env, preset in table(families)}
    shown = {label: _shown(value) for label, value in values.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    groups: dict[str, list[str]] = {}
    for label, value in shown.items():
        groups.setdefault(value, []).append(label.removesuffix(" default"))
    return "; ".join(f"{value} ({', '.join(labels)})" for value, labels in groups.items())


def _shown(value: Any) -> str:
    if value in (None, ()):
        return "unset"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def options(families: Sequence[str]) -> list[click.Parameter]:
    """All options; those in the table of presets have no default of their own."""
    return [
        click.Option(["--algo"], type=Name(ALGOS), help="Method to train. Required, but for --resume."),
        click.Option(["--env"], type=Family(families),
                     help="Family of environments, your own as module:Family, or one of Gymnasium's as gym:ID.  "
                          "[default: pendulum; damped-pendulum for lmi-ql, lmi-qli and lspi]"),
        click.Option(["--preset"], type=Name(PRESETS),
                     help="paper: the authors' online protocol.  [default: default, the batched protocol]"),
        click.Option(["--task", "--tasks", "tasks"], multiple=True, metavar="TASKS",
                     help="Tasks by their parameters, mass=0.3,length=0.7; a product of values and ranges, "
                          "mass=0.05:1:8,length=0.5;1; or a .json or .csv file. Repeatable, or "
                          "mass=0.3,length=0.7;mass=1,length=0.5.  [default: --num-tasks]"),
        click.Option(["--test-task", "--test-tasks", "test_tasks"], multiple=True, metavar="TASKS",
                     help="Tasks to test but never train on, in the same words.  [default: none; see --held-out]"),
        click.Option(["--vary"], multiple=True, metavar="NAME=A,B,C",
                     help="Values of a parameter, a task for each; repeated, a task for each combination. Of an "
                          "environment of Gymnasium, a keyword argument or attribute."),
        click.Option(["--env-option"], multiple=True, metavar="NAME=VALUE",
                     help="A constant of the family, such as num_actions=20, or a keyword argument of Gymnasium's "
                          "environment. Repeatable."),
        click.Option(["--ranges"], multiple=True, metavar="NAME=LOW:HIGH",
                     help="Range of a dimension of the observation, by name or number, of an environment of Gymnasium."
                          "  [default: its bounds, or those of a short random run]"),
        *(Setting(name, text, families) for name, text in config.flags().items()),
        click.Option(["--config"], type=click.Path(path_type=Path), metavar="FILE.toml",
                     help="Settings from a file, or those of a run, by its folder; flags go before."),
        click.Option(["--out"], type=Folder(path_type=Path), help="Run folder.  [default: runs/ALGO-ENV-N]"),
        click.Option(["--resume"], is_flag=True,
                     help="Go on with the run in --out, with its configuration; more --episodes extend it."),
        click.Option(["--progress/--no-progress"], default=None,
                     help="Progress bar.  [default: on a terminal; elsewhere a line now and then]"),
        sweep.option(),
        listing.option(),
    ]  # fmt: skip
