"""Several runs by one command, one for each value of a flag: `--sweep rank=5,10,30`."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

from torchq.errors import Interrupted, TorchqError, UsageError
from torchq.runs.folder import CONFIG, make_numbered
from torchq.runs.launch import checked, launch
from torchq.runs.run import Run

_NOT_SWEPT = ("out", "resume", "progress", "config", "sweep", "help", "list", "tasks", "test_tasks", "vary",
              "env_option", "ranges")  # fmt: skip
_YES = {"yes": True, "true": True, "no": False, "false": False}
Settings = dict[str, Any]


def option() -> click.Option:
    """The flag."""
    return click.Option(["--sweep"], multiple=True, metavar="NAME=A,B,C",
                        help="Train one run after the other, with each of these values of a flag, in folders of their "
                             "own below --out; repeated, with each combination. algo=stlrq,lrq too.")  # fmt: skip


def read(words: Sequence[str], given: Mapping[str, Any], ctx: click.Context) -> list[Settings]:
    """The settings of each run, from words such as `rank=5,10,30`.

    Raises:
        UsageError: if a word names no flag that can be swept, one that is given too, or a value that it cannot have.
    """
    params = {param.name or "": param for param in ctx.command.params if param.name not in _NOT_SWEPT}
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, separator, text = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not separator or not text.strip():
            raise UsageError(f"`sweep`: expected NAME=A,B,C, such as rank=5,10,30, got {word!r}")
        if name not in params:
            near = difflib.get_close_matches(name, params, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise UsageError(f"`sweep`: expected a flag of one value, got {word.partition('=')[0]!r}{hint}")
        if name in given or name in axes:
            raise UsageError(f"`sweep`: expected values of {name.replace('_', '-')} in one place, got them in two")
        axes[name] = [_value(params[name], one.strip(), ctx) for one in text.split(",")]
        if len(set(axes[name])) < len(axes[name]):
            raise UsageError(f"`sweep`: expected values that differ, got {word!r}")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _value(param: click.Parameter, text: str, ctx: click.Context) -> Any:
    if isinstance(param, click.Option) and param.is_flag:
        if text not in _YES:
            raise UsageError(f"`sweep`: expected yes or no for {param.name}, got {text!r}")
        return _YES[text]
    try:
        return param.type.convert(text, param, ctx)
    except click.BadParameter as error:
        raise UsageError(f"`sweep`: {(param.name or '').replace('_', '-')}: {error.message}") from error


def named(settings: Settings) -> str:
    """What a run is called after: rank=5,gamma=0.9."""
    return ",".join(f"{name.replace('_', '-')}={str(value).replace('/', '-')}" for name, value in settings.items())


def train(
    runs: Sequence[Settings],
    given: Mapping[str, Any],
    out: Path | None,
    *,
    resume: bool,
    progress: bool | None,
    tell: Callable[[str, int], None],
) -> tuple[Path, list[Run]]:
    """Train all runs; returns the folder above theirs, and those that came to their end.

    All settings are looked at before the first begins. A run that fails is told of, and the next one begins.

    Raises:
        UsageError: if a setting is not as expected, or no run came to its end.
    """
    for settings in runs:
        checked({**given, **settings})
    home = out or make_numbered(Path("runs"), "sweep")
    finished: list[Run] = []
    for number, settings in enumerate(runs):
        folder = home / named(settings)
        tell(f"run {number + 1} of {len(runs)}: {named(settings)}", logging.INFO)
        going_on = resume and (folder / CONFIG).exists()
        if going_on and (found := Run(folder)).finished:
            finished.append(found)
            continue
        try:
            finished.append(launch({**given, **settings}, folder, resume=going_on, progress=progress, tell=tell))
        except Interrupted as error:
            raise Interrupted(f"interrupted; go on with: the same command, `resume=True` `out={home}`") from error
        except TorchqError as error:
            if isinstance(error, UsageError) and not finished and number == 0:
                raise
            tell(f"{folder}: {error}", logging.WARNING)
    if not finished:
        raise UsageError(f"`sweep`: none of {len(runs)} runs came to its end")
    return home, finished


def table(runs: Sequence[Run]) -> str:
    """The runs beside each other, the best first: median over runs of the mean over tasks."""
    rows = sorted(((_score(run), run) for run in runs), key=lambda row: row[0], reverse=True)
    width = max(len(run.folder.name) for run in runs)
    known = all(not run.is_study and run.summary["optimal_return"] for run in runs)
    what = "return minus optimum" if known else "return"
    lines = [f"{'':<{width}}  {what}, median over runs of the mean over tasks"]
    return "\n".join([*lines, *(f"{run.folder.name:<{width}}  {score:9.4g}" for score, run in rows)])


def _score(run: Run) -> float:
    """Return, or return minus the optimum where it is known; of a study the median gap of its largest size."""
    if run.is_study:
        return float(run.summary["by_samples"][-1]["gap"]["median"] or np.nan)
    optimal = run.summary["optimal_return"]
    return float(np.median(run.metrics.final_return().mean(1))) - (float(np.mean(optimal)) if optimal else 0.0)
