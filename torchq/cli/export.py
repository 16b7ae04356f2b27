"""The command that takes a policy away: `torchq export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from torchq import families
from torchq.errors import UsageError
from torchq.runs.export import FORMATS, exported, write
from torchq.runs.run import load


def command(name: str) -> click.Command:
    """The command under a name."""
    params = [
        click.Argument(["run"], type=click.Path(path_type=Path), metavar="RUN"),
        click.Argument(["out"], type=click.Path(path_type=Path), metavar="FILE"),
        click.Option(["--index"], type=click.IntRange(min=0), default=0, show_default=True,
                     help="Which of the runs side by side."),
    ]  # fmt: skip
    help_text = (
        f"Write the greedy policy of a run to a file: {', '.join(FORMATS)} for ONNX, a program of PyTorch, or arrays "
        "with a reader that needs NumPy alone. Observation and task in, number of the action out, or of a quadratic "
        "learner its control (.onnx and .pt2)."
    )
    return click.Command(name, params=params, callback=_export, help=help_text)


def _export(run: Path, out: Path, index: int) -> None:
    if out.exists():
        raise UsageError(f"`file`: {out} exists already; name another, nothing is overwritten")
    if not out.parent.is_dir():
        raise UsageError(f"`file`: expected a file in a folder that exists, but {out.parent} does not")
    found = load(run)
    if index >= found.config.num_seeds:
        raise UsageError(f"`index`: expected a number from 0 to {found.config.num_seeds - 1}, got {index}")
    levels = None if found.is_study else getattr(families.of(found.config), "action_levels", None)
    made = exported(replace(found, index=index).policy)
    written = write(made, out, levels)
    said = f"wrote {' and '.join(map(str, written))}: {made.signature}"
    click.echo(said if levels is None else f"{said}; what an action is to the environment is in its `levels`")
