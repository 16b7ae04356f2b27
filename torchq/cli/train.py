"""The command that trains: `train.py`, or `torchq train`."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from torchq import families
from torchq.cli import sweep as sweeps
from torchq.cli.commands import flag, run_command
from torchq.cli.flags import options
from torchq.cli.help import TrainCommand
from torchq.errors import UsageError, spell
from torchq.ranks import current, launched
from torchq.runs.launch import launch
from torchq.runs.plotting import named

_FEW = 64
"""Tasks whose curves are read again at the end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of train.py; returns the exit code."""
    return run_command(command("train.py"), argv)


def command(name: str) -> click.Command:
    """The command under a name."""
    help_text = "Train one learner on a family of tasks and leave a run folder with curves, picture and checkpoint."
    return TrainCommand(name, params=options(families.names()), callback=partial(_train, name), help=help_text)


def _train(
    name: str, out: Path | None, resume: bool, progress: bool | None, sweep: Sequence[str], **flags: Any
) -> None:
    given = {flag: value for flag, value in flags.items() if value not in (None, ())}
    said = "torchq evaluate" if name == "train" else "python evaluate.py"
    if sweep and launched():
        raise UsageError("`sweep`: expected none with torchrun; start its runs one by one")
    if sweep:
        _swept(said, sweeps.read(sweep, given, click.get_current_context()), given, out, resume, progress)
        return
    run = launch(given, out, resume=resume, progress=progress, tell=_tell)
    if current().index:
        return
    click.echo(_study_report(run.summary) if run.is_study else _table(run.summary))
    folder, above = (shlex.quote(str(path)) for path in (run.folder, run.folder.parent))
    click.echo(f"next: {said} {folder}, or tensorboard --logdir {above}")
    if not run.is_study and len(run.summary["final_return"]["median"]) <= _FEW and (fallen := run.metrics.fallen()):
        task, best, samples, last = fallen[0]
        others = f", as {len(fallen) - 1} others did," if len(fallen) > 1 else ""
        _tell(
            f"task {task} fell{others} from {best:.4g} at {samples:,} samples to {last:.4g}: a lower `target_rate` or "
            "`learning_rate`, or a finer grid, may hold it; the policy that is kept is the last", logging.WARNING
        )  # fmt: skip


def _swept(
    said: str, runs: Sequence[dict[str, Any]], given: dict[str, Any], out: Path | None, resume: bool,
    progress: bool | None,
) -> None:  # fmt: skip
    home, finished = sweeps.train(runs, given, out, resume=resume, progress=progress, tell=_tell)
    click.echo(sweeps.table(finished))
    click.echo(f"next: {said} {home}/* --report {home.parent / (home.name + '-report')}, "
               f"or tensorboard --logdir {home}")  # fmt: skip
    if len(finished) < len(runs):
        raise UsageError(f"`sweep`: {len(runs) - len(finished)} of {len(runs)} runs did not come to their end")


def _tell(text: str, level: int) -> None:
    click.echo(spell(text, flag), err=level >= logging.WARNING)


def _study_report(summary: dict[str, Any]) -> str:
    lines = [
        study_table(summary["by_samples"]),
        f"unstable {summary['unstable_share']:.1%}, failed {summary['failed_share']:.1%}, "
        f"{summary['wall_time_s']:.0f} s",
    ]
    kinds = [(kind, summary[kind]) for kind in ("failures", "findings") if summary[kind]]
    lines += [f"{len(found)} {kind} in summary.json; the first: {found[0]}" for kind, found in kinds]
    return "\n".join(lines)


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


def spread_over(over: dict[str, Any], summary: dict[str, Any], optimal: list[float] | None) -> list[str]:
    """What is said of many tasks: quantiles of their returns, and the worst and best of them."""
    tested = f"a sample of {len(summary['tested']):,} of {summary['num_tasks']:,}" if "tested" in summary else "all"
    quantiles = ", ".join(f"{float(share):.0%} {value:.1f}" for share, value in over["quantiles"].items())
    lines = [
        f"final return over {tested} tasks: mean {over['mean']:.1f}; {quantiles}",
        f"worst: {', '.join(map(str, over['worst']))}; best: {', '.join(map(str, over['best']))} (numbers of tasks)",
    ]
    if optimal:
        gap = np.array(optimal) - np.array(summary["final_return"]["median"])
        middle, high = np.quantile(gap, [0.5, 0.95])
        lines.append(f"below the optimum by {middle:.1f} in the median, by {high:.1f} at most in 95% of them")
    return lines


def _table(summary: dict[str, Any]) -> str:
    """Final returns, one line a task."""
    final, optimal = summary["final_return"], summary["optimal_return"]
    lines = [
        "final return: mean of each run's last 10 evaluations, then over runs",
        f"{'task':>4}  {'median':>9}  {'interquartile range':>21}  {'optimum':>9}",
    ]
    numbers = summary.get("tested", range(len(final["median"])))
    for task, (median, low, high) in enumerate(zip(final["median"], final["q25"], final["q75"], strict=True)):
        best = f"{optimal[task]:9.1f}" if optimal else "        -"
        words = named(summary["tasks"][task], summary.get("units", ()))
        lines.append(f"{numbers[task]:4d}  {median:9.1f}  [{low:9.1f},{high:9.1f}]  {best}  {words}")
    shown = lines if len(lines) <= 18 else [*lines[:18], f"… and {len(lines) - 18} more in summary.json"]
    if over := summary.get("over_tasks"):
        shown = [*spread_over(over, summary, optimal), *([] if "tested" in summary else shown[1:])]
    if apart := summary.get("held_out_return"):
        numbers = "{median:.1f}, interquartile range [{q25:.1f}, {q75:.1f}], worst {worst:.1f}".format(**apart)
        shown.append(f"{len(summary['held_out'])} tasks held out, all runs: median {numbers}")
    rate = f"{summary['transitions_per_s']:,.0f} transitions/s, {summary['wall_time_s']:.0f} s"
    return "\n".join([*shown, rate])
