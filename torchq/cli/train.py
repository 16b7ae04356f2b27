"""The command line of train.py: flags, defaults from the table, and messages of one line."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import click

from torchq.cli.flags import options
from torchq.config import QUADRATIC_ALGOS, Config
from torchq.engines import torch_settings
from torchq.errors import UsageError
from torchq.runs.experiment import EnvironmentLibrary, Experiment, prepare
from torchq.runs.folder import claim, new_config, resumed_config, write_config
from torchq.runs.monte_carlo import ControlLibrary, make_cases, run_study
from torchq.runs.training import load, train
from torchq.runs.warm_starts import quadratic_starts, start_low_rank


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
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
    except UnicodeEncodeError:
        message = "arguments: expected text that UTF-8 can encode; rename the folder"
    except (click.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        return 130
    line = "error: " + " ".join(message.split())
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return 2


class CommandLibrary(EnvironmentLibrary, ControlLibrary, Protocol):
    """What the command line asks of a package of environments."""


def main(library: CommandLibrary, argv: Sequence[str] | None = None) -> int:
    """Command line of train.py; returns the exit code."""

    def callback(out: Path | None, resume: bool, progress: bool | None, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        config = resumed_config(out, given) if resume else new_config(out, given)
        if config.algo in QUADRATIC_ALGOS:
            return _study(config, library, out, resume, progress)
        experiment = _prepare(config, library, resume, warm=not (resume and out and (out / "checkpoint").exists()))
        config = experiment.config
        with claim(out, config, resume=resume) as folder:
            start = load(experiment, folder) if resume else None
            write_config(folder, config)
            size = f"{config.num_seeds} seeds, {len(experiment.task_list)} tasks, num_envs {config.num_envs}"
            click.echo(f"{config.algo} on {config.env}: {size}; {config.device}, engine {config.engine} -> {folder}")
            for note in experiment.notes:
                click.echo(note)
            if config.algo == "lrq" and config.protocol == "online":
                click.echo(f"LR-Q convention: {config.lrq_convention}")
            if start and start.episode:
                click.echo(f"resuming after episode {start.episode} of {config.episodes}")
            with _interruptible(folder), torch_settings.deterministic(config.deterministic):
                summary = train(experiment, library, folder, start=start, progress=progress)
        click.echo(_table(summary))

    help_text = "Train one learner on a family of tasks and leave a run folder with curves, picture and checkpoint."
    command = click.Command(
        "train.py",
        params=options(tuple(dict.fromkeys((*library.FAMILIES, *library.CONTROL_FAMILIES)))),
        callback=callback,
        help=help_text,
    )
    return run_command(command, argv)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Answer Ctrl-C with the way to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on with: --resume --out {folder}", err=True)
        raise SystemExit(130) from None


def _study(config: Config, library: CommandLibrary, out: Path | None, resume: bool, progress: bool | None) -> None:
    """The case study of a quadratic learner, whose solvers run on the CPU."""
    if config.device == "cuda":
        raise UsageError(f"--device: expected cpu or auto with --algo {config.algo}, got cuda")
    if config.env not in library.CONTROL_FAMILIES:  # Flags are checked before; a config.json may be damaged.
        known = ", ".join(library.CONTROL_FAMILIES)
        raise UsageError(f"--env: expected one of {known} with --algo {config.algo}, got {config.env}")
    config = config.replace(device="cpu", gamma=library.CONTROL_FAMILIES[config.env]().gamma)
    cases = make_cases(config, library)
    for case in cases:
        if case.design.radius >= 1.0:
            click.echo(f"warning: the baseline of task {case.task_index} does not stabilise it (√γ·ρ(A_b) = "
                       f"{case.design.radius:.2f}): V_b is not finite, prefer lmi-qli", err=True)  # fmt: skip
    starts = quadratic_starts(config, cases, library) if config.warm_start else None
    with claim(out, config, resume=resume) as folder:
        write_config(folder, config)
        size = f"{config.num_seeds} runs, {len(cases)} tasks, sizes {config.sizes}"
        click.echo(f"{config.algo} on {config.env}: {size} -> {folder}")
        with _interruptible(folder):
            summary = run_study(config, cases, folder, starts=starts, resume=resume, progress=progress)
    click.echo(study_table(summary["by_samples"]))
    click.echo(f"unstable {summary['unstable_share']:.1%}, failed {summary['failed_share']:.1%}, "
               f"{summary['wall_time_s']:.0f} s")  # fmt: skip
    for kind in ("failures", "findings"):
        if summary[kind]:
            click.echo(f"{len(summary[kind])} {kind} in summary.json; the first: {summary[kind][0]}")


def study_table(entries: list[dict[str, Any]]) -> str:
    """Gap to FL+LQR per size, one line each."""
    lines = ["samples  median gap  [     q25,      q75]  unstable  failed  bounds apart"]
    for entry in entries:
        gap = {name: math.nan if value is None else value for name, value in entry["gap"].items()}
        lines.append(
            f"{entry['samples']:7d}  {gap['median']:10.4f}  [{gap['q25']:8.4f}, {gap['q75']:8.4f}]  "
            f"{entry['unstable_share']:8.1%}  {entry['failed_share']:6.1%}  {_apart(entry)}"
        )
    return "\n".join(lines)


def _apart(entry: dict[str, Any]) -> str:
    """Median difference of the upper and the lower bound of the cost, for lmi-ql."""
    gap = entry["bounds"]["gap"]
    return "           -" if gap is None else f"{gap:12.4f}"


def _prepare(config: Config, library: CommandLibrary, resume: bool, *, warm: bool) -> Experiment:
    """The experiment of a configuration, with CPU threads to suit it.

    Raises:
        UsageError: if it needs more memory than there is, or comes from a damaged config.json.
    """
    try:
        warm_start = partial(start_low_rank, library=library) if config.warm_start and warm else None
        experiment = prepare(config, library, warm_start)
    except (MemoryError, OverflowError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--num-seeds, --num-tasks, --num-envs, --rank: expected a run that fits in memory ({reason})"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if not resume:
            raise
        raise UsageError(f"--resume: the run's config.json is corrupted ({error!r}); start a new run") from error
    torch_settings.limit_threads(experiment.work)
    return experiment


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
