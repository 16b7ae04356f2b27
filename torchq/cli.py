"""The command line of train.py: flags, defaults from the table, and messages of one line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from torchq import engine
from torchq.checkpoint import write_atomically
from torchq.errors import UsageError
from torchq.flags import options
from torchq.presets import ALGOS, Config, from_json, resolve, to_json
from torchq.session import EnvironmentLibrary, prepare
from torchq.training import train
from torchq.versions import git_commit, versions

CONFIG = "config.json"


def run_command(command: click.Command, argv: Sequence[str] | None) -> int:
    """Run a click command; errors become one line on standard error and exit code 2."""
    try:
        return command.main(args=argv, standalone_mode=False) or 0
    except click.NoSuchOption as error:
        near = difflib.get_close_matches(error.option_name, [o for p in command.params for o in p.opts], n=1)
        message = f"{error.option_name}: no such flag" + (f"; did you mean {near[0]}?" if near else "; see --help")
    except click.MissingParameter as error:
        message = error.format_message()
    except click.BadParameter as error:
        flag = error.param.opts[0] if error.param else "arguments"
        message = f"{flag}: {error.message}"
    except click.ClickException as error:
        message = error.format_message()
    except UsageError as error:
        message = str(error)
    except (click.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)  # noqa: T201
        return 130
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return 2


def main(library: EnvironmentLibrary, argv: Sequence[str] | None = None) -> int:
    """Command line of train.py; returns the exit code."""

    def callback(out: Path | None, resume: bool, progress: bool | None, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        config, folder = _resumed(out, given) if resume else _new(out, given)
        session = prepare(dataclasses.replace(config, device=device_name(config.device)), library)
        config = session.config
        engine.limit_threads(session.work)
        _write_config(folder, config)
        size = f"{config.num_seeds} seeds, {len(session.task_list)} tasks, {config.num_envs} environments each"
        click.echo(f"{config.algo} on {config.env}: {size}; {config.device}, engine {config.engine} -> {folder}")
        if config.algo == "lrq" and config.protocol == "online":
            click.echo(f"LR-Q convention: {config.lrq_convention}")
        try:
            summary = train(session, library, folder, resume=resume, progress=progress)
        except KeyboardInterrupt:
            click.echo(f"\ninterrupted; go on with: --resume --out {folder}", err=True)
            raise SystemExit(130) from None
        click.echo(_table(summary))

    help_text = "Train one learner on a family of tasks and leave a run folder with curves, picture and checkpoint."
    command = click.Command("train.py", params=options(tuple(library.FAMILIES)), callback=callback, help=help_text)
    return run_command(command, argv)


def _write_config(folder: Path, config: Config) -> None:
    """Make the run folder and its config.json, or bring its number of episodes up to date."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        content = {**to_json(config), "versions": versions(), "git_commit": git_commit()}
        if path.exists():
            content = {**json.loads(path.read_bytes()), "episodes": config.episodes}
        write_atomically(path, json.dumps(content, indent=2).encode())
    except OSError as error:
        raise UsageError(f"--out: expected a folder that can be written, but {folder}: {error.strerror}") from error


def _new(out: Path | None, given: dict[str, Any]) -> tuple[Config, Path]:
    """Configuration and folder of a run that does not exist yet."""
    if "algo" not in given:
        raise UsageError(f"--algo: expected one of {', '.join(ALGOS)}, got nothing")
    config = resolve(given.pop("algo"), given.pop("env", "pendulum"), given.pop("preset", "default"), given)
    if out is None:
        names = (Path("runs") / f"{config.algo}-{config.env}-{number}" for number in range(1, 1 << 20))
        return config, next(path for path in names if not path.exists())
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: expected a folder, got the file {out}")
    if (out / CONFIG).exists():
        raise UsageError(f"--out: {out} already holds a run; continue it with --resume, or name another folder")
    if out.exists() and _occupied(out):
        raise UsageError(f"--out: expected a new or empty folder, but {out} holds other files; name another folder")
    return config, out


def _occupied(folder: Path) -> bool:
    """Whether a folder holds anything but what a killed start may leave."""
    return any(path.suffix != ".tmp" for path in folder.iterdir())


def _resumed(out: Path | None, given: dict[str, Any]) -> tuple[Config, Path]:
    """Configuration of the run in a folder, with which all flags given must agree."""
    if out is None:
        raise UsageError("--resume: expected --out with the folder of the run to continue")
    if not out.is_dir():
        raise UsageError(f"--resume: expected the folder of a run, but {out} does not exist")
    if not (out / CONFIG).exists():
        if _occupied(out):
            raise UsageError(f"--resume: {out} holds no run (no {CONFIG})")
        return _new(out, given)
    config = read_config(out)
    for name, value in given.items():
        stored = getattr(config, name)
        if name == "episodes" and value > stored:
            config = dataclasses.replace(config, episodes=value)
        elif value != stored and value != "auto":
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag}: expected {stored}, as in the run to continue, got {value}; leave it out")
    return config, out


def read_config(folder: Path) -> Config:
    """Configuration of the run in a folder.

    Raises:
        UsageError: if its config.json cannot be read.
    """
    path = folder / CONFIG
    try:
        return from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is corrupted or of another version ({error}); start a new run") from error


def device_name(device: str) -> str:
    """The device that "auto" stands for.

    Raises:
        UsageError: if a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("--device: expected a machine with a CUDA GPU for cuda, found none; use cpu or auto")
    return ("cuda" if available else "cpu") if device == "auto" else device


def _table(summary: dict[str, Any]) -> str:
    """Final returns, one line a task."""
    final, optimal = summary["final_return"], summary["optimal_return"]
    lines = [
        "final return: mean of each run's last 10 evaluations, then over runs",
        f"{'task':>4}  {'median':>9}  {'interquartile range':>21}  {'optimum':>9}",
    ]
    for task, (median, low, high) in enumerate(zip(final["median"], final["q25"], final["q75"], strict=True)):
        best = f"{optimal[task]:9.1f}" if optimal else "        -"
        lines.append(f"{task:4d}  {median:9.1f}  [{low:9.1f},{high:9.1f}]  {best}")
    shown = lines if len(lines) <= 18 else [*lines[:18], f"… and {len(lines) - 18} more in summary.json"]
    rate = f"{summary['transitions_per_s']:,.0f} transitions/s, {summary['wall_time_s']:.0f} s"
    return "\n".join([*shown, rate])
