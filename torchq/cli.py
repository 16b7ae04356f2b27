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
from torchq.engine import ENGINES
from torchq.errors import UsageError
from torchq.optim import OPTIMIZERS
from torchq.presets import ALGOS, LRQ_CONVENTIONS, PRESETS, Config, from_json, resolve, to_json
from torchq.training import EnvironmentLibrary, prepare, train
from torchq.versions import git_commit, versions

CONFIG = "config.json"


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


class Number(click.ParamType):
    """A number of a range, open or closed below."""

    def __init__(self, kind: type, low: float, high: float = float("inf"), *, low_open: bool = False) -> None:
        self.kind, self.low, self.high, self.low_open = kind, low, high, low_open
        self.name = "integer" if kind is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or an error that says the range."""
        above = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        expected = f"expected {'an integer' if self.kind is int else 'a number'} of {above}"
        if self.high != float("inf"):
            expected += f" and at most {self.high:g}"
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f"{expected}, got {value!r}", param, ctx)
        if not self.low <= number <= self.high or (self.low_open and number == self.low):
            self.fail(f"{expected}, got {value}", param, ctx)
        return number


class Numbers(click.ParamType):
    """Non-negative numbers separated by commas."""

    name = "x,y,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        one = Number(float, 0.0)
        return tuple(one.convert(part, param, ctx) for part in str(value).split(","))


COUNT = Number(int, 1)
POSITIVE = Number(float, 0.0, low_open=True)
SHARE = Number(float, 0.0, 1.0)

_FLAGS: list[tuple[str, click.ParamType, str]] = [
    ("seed", Number(int, 0, 2**62), "Seed of the first run; the others follow it."),
    ("num-seeds", COUNT, "Independent runs trained side by side."),
    ("num-envs", COUNT, "Environments per run and task."),
    ("num-tasks", COUNT, "Tasks: the paper's up to 4, more are spread over the family's range."),
    ("episodes", COUNT, "Episodes per task and environment."),
    ("rank", COUNT, "Rank K of the Q-tensor."),
    ("learning-rate", POSITIVE, "Step size η at the start, per update."),
    ("learning-rate-half-life", POSITIVE, "Samples per task until η has halved (harmonic decay); unset: constant."),
    ("gamma", SHARE, "Discount γ per step."),
    ("epsilon-start", SHARE, "Exploration rate ε at the start."),
    ("epsilon-end", SHARE, "Floor of ε."),
    ("epsilon-decay", Number(float, 0.0, 1.0, low_open=True),
     "Factor of ε per sample of a task (preset paper: per transition of any task)."),
    ("optimizer", Name(tuple(OPTIMIZERS)), "Descent step on the factors."),
    ("update", Name(("joint", "block")), "Move all factors by one error, or one factor after the other."),
    ("init-scale", POSITIVE, "Standard deviation of the initial factors."),
    ("state-modes", Name(("per-dimension", "joint")), "One tensor mode per state dimension, or one for the state."),
    ("task-weights", Numbers(), "Weight λ of each task's loss; unset: all 1."),
    ("lrq-convention", Name(LRQ_CONVENTIONS), "How preset paper runs lrq."),
    ("eval-every", COUNT, "Episodes between evaluations."),
    ("eval-episodes", COUNT, "Greedy test episodes per evaluation, run and task."),
    ("dtype", Name(("float32", "float64")), "Floating-point type of learner and environments."),
    ("device", Name(("auto", "cpu", "cuda")), "Where to compute; auto: the GPU if there is one."),
    ("engine", Name(ENGINES), "How to execute a step; auto: compile for long runs, if there is a compiler."),
]  # fmt: skip


def _options(families: Sequence[str]) -> list[click.Parameter]:
    """All options; those in the table of presets have no default of their own."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    options = [
        click.Option(["--algo"], type=Name(ALGOS), help="Method to train. Required, but for --resume."),
        click.Option(["--env"], type=Name(families), help="Family of environments.  [default: pendulum]"),
        click.Option(["--preset"], type=Name(PRESETS), help="Column of the table of defaults.  [default: default]"),
    ]
    for flag, kind, text in _FLAGS:
        default = defaults[flag.replace("-", "_")]
        shown = "" if default is None or default == () else f"  [default: {default}, unless the preset says otherwise]"
        options.append(click.Option([f"--{flag}"], type=kind, help=text + shown))
    return [
        *options,
        click.Option(["--normalised/--no-normalised"], default=None,
                     help="Divide each step by the squared length of its direction (NLMS).  [default: no]"),
        click.Option(["--optimal/--no-optimal"], default=None,
                     help="Compute the optimum of each task.  [default: up to 16 tasks]"),
        click.Option(["--out"], type=click.Path(path_type=Path), help="Run folder.  [default: runs/ALGO-ENV-N]"),
        click.Option(["--resume"], is_flag=True, help="Go on with the run in --out, with its configuration."),
        click.Option(["--progress/--no-progress"], default=None, help="Progress bar.  [default: on a terminal]"),
    ]  # fmt: skip


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
        print("\ninterrupted; go on with --resume --out and the run's folder", file=sys.stderr)  # noqa: T201
        return 130
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return 2


def main(library: EnvironmentLibrary, argv: Sequence[str] | None = None) -> int:
    """Command line of train.py; returns the exit code."""

    def callback(out: Path | None, resume: bool, progress: bool | None, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        config, folder = _resumed(out, given) if resume else _new(out, given)
        config = _on_this_machine(config, library)
        session = prepare(config, library)
        engine.limit_threads(session.work)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIG).exists():
            content = {**to_json(config), "versions": versions(), "git_commit": git_commit()}
            write_atomically(folder / CONFIG, json.dumps(content, indent=2).encode())
        size = f"{config.num_seeds} seeds, {len(session.task_list)} tasks, {config.num_envs} environments each"
        click.echo(f"{config.algo} on {config.env}: {size}; {config.device}, engine {config.engine} -> {folder}")
        if config.algo == "lrq" and config.protocol == "online":
            click.echo(f"LR-Q convention: {config.lrq_convention}")
        summary = train(session, library, folder, resume=resume, progress=progress)
        click.echo(_table(summary))

    help_text = "Train one learner on a family of tasks and leave a run folder with curves, picture and checkpoint."
    command = click.Command("train.py", params=_options(tuple(library.FAMILIES)), callback=callback, help=help_text)
    return run_command(command, argv)


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
        if value != stored and value != "auto":
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


def _on_this_machine(config: Config, library: EnvironmentLibrary) -> Config:
    """The configuration with device and engine chosen."""
    device = device_name(config.device)
    turns = (config.num_tasks or 4) if config.protocol == "online" else 1
    num_steps = config.episodes * library.FAMILIES[config.env]().episode_length * turns
    chosen = engine.choose(config.engine, torch.device(device), num_steps)
    return dataclasses.replace(config, device=device, engine=chosen)


def _table(summary: dict[str, Any]) -> str:
    """Final returns, one line a task."""
    final, optimal = summary["final_return"], summary["optimal_return"]
    lines = [f"{'task':>4}  {'median':>9}  {'interquartile range':>21}  {'optimum':>9}"]
    for task, (median, low, high) in enumerate(zip(final["median"], final["q25"], final["q75"], strict=True)):
        best = f"{optimal[task]:9.1f}" if optimal else "        -"
        lines.append(f"{task:4d}  {median:9.1f}  [{low:9.1f},{high:9.1f}]  {best}")
    shown = lines if len(lines) <= 17 else [*lines[:17], f"… and {len(lines) - 17} more in summary.json"]
    rate = f"{summary['transitions_per_s']:,.0f} transitions/s, {summary['wall_time_s']:.0f} s"
    return "\n".join([*shown, rate])
