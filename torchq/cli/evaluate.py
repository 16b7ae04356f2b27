"""The command that compares runs: `evaluate.py`, or `torchq evaluate`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from torchq.cli.commands import run_command
from torchq.cli.flags import Folder, kind
from torchq.cli.train import study_table
from torchq.errors import UsageError
from torchq.report.video import films
from torchq.runs.labels import labels
from torchq.runs.metrics import QUANTILES, Metrics
from torchq.runs.plotting import Curve, named, plot_learning_curves
from torchq.runs.run import Run, load
from torchq.runs.study_results import by_samples, plot_study

_MANY, _FIRST = 64, 16
"""Tasks from which on only the first are listed."""


class Shown(NamedTuple):
    """A run with what is shown of it."""

    run: Run
    metrics: Metrics
    optimal: list[float] | None
    """Optimal return of each task, if the run has computed it."""
    tasks: Sequence[Any] = ()
    """Parameters of each task, as far as the run's files say them."""
    units: Sequence[str] = ()
    """Of the parameters."""


def read(run: Run, samples: int | None) -> Shown:
    """What is shown of a run, as it stood after some samples per task; None shows all of it."""
    if run.finished:
        said = run.summary
        return Shown(run, until(run, samples), said["optimal_return"], said.get("tasks", ()), said.get("units", ()))
    return Shown(run, until(run, samples), None, () if run.config.held_out else run.config.tasks)


def describe(shown: Shown, final: np.ndarray) -> dict[str, Any]:
    """Numbers of one run, as `--json` prints them; `final` is (seeds, tasks)."""
    low, median, high = np.percentile(final, [25, 50, 75], axis=0)
    gap = (median - np.array(shown.optimal)).tolist() if shown.optimal else None
    config = shown.run.config
    return {
        "run": str(shown.run.folder),
        "algo": config.algo,
        "env": config.env,
        "preset": config.preset,
        **({"lrq_convention": config.lrq_convention} if config.algo == "lrq" else {}),
        "finished": shown.run.finished,
        "num_seeds": config.num_seeds,
        "samples_per_task": int(shown.metrics.samples[-1]),
        "final_return": {"median": median.tolist(), "q25": low.tolist(), "q75": high.tolist()},
        "optimal_return": shown.optimal,
        "gap": gap,
        **({"tested": list(shown.run.tasks.numbers)} if shown.run.tasks.sample is not None else {}),
        "tasks": list(shown.tasks),
        "units": list(shown.units),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `describe` as text: per run and task the median [quartiles], optimum and gap."""
    width = max(len(row["run"]) for row in rows)
    lines = [f"{'run':<{width}}  task     median  [     q25,      q75]    optimum        gap"]
    for row in rows:
        final, numbers = row["final_return"], row.get("tested", range(len(row["final_return"]["median"])))
        for task, (median, low, high) in enumerate(zip(final["median"], final["q25"], final["q75"], strict=True)):
            known = row["optimal_return"] is not None
            best = f"{row['optimal_return'][task]:9.1f}  {row['gap'][task]:9.1f}" if known else "        -          -"
            words = f"  {named(row['tasks'][task], row['units'])}" if len(row["tasks"]) == len(final["median"]) else ""
            unfinished = "" if row["finished"] else f"  (unfinished: {row['samples_per_task']} samples)"
            which = f"{row['run']:<{width}}  {numbers[task]:4d}"
            lines.append(f"{which}  {median:9.1f}  [{low:8.1f}, {high:8.1f}]  {best}{words}{unfinished}")
            if len(final["median"]) > _MANY and task + 1 == _FIRST:
                lines.append(f"{row['run']:<{width}}  … and {len(final['median']) - _FIRST:,} more; --json has all")
                lines.append(
                    f"{row['run']:<{width}}  {_over(median_of=final['median'], optimal=row['optimal_return'])}"
                )
                break
    conventions = [f"{row['run']}: LR-Q convention {row['lrq_convention']}" for row in rows if "lrq_convention" in row]
    return "\n".join(lines + conventions)


def _over(median_of: Sequence[float], optimal: Sequence[float] | None) -> str:
    """The spread of many tasks in one line."""
    found = zip(QUANTILES, np.quantile(median_of, QUANTILES), strict=True)
    text = "over tasks: " + ", ".join(f"{share:.0%} {value:.1f}" for share, value in found)
    return text + (f"; gap {np.median(np.subtract(median_of, optimal)):.1f}" if optimal else "")


def pictures(runs: Sequence[Shown], names: Sequence[str], folder: Path) -> list[Path]:
    """One picture for each family and set of tasks among the runs; returns their paths."""
    groups: dict[str, list[tuple[Shown, str]]] = {}
    kinds: list[Any] = []
    for shown, label in zip(runs, names, strict=True):
        config = shown.run.config
        which = (config.env, config.num_tasks, config.tasks, config.test_tasks, config.held_out, config.task_modes)
        kind = which if config.held_out else (*which[:4], 0.0, "")  # Held-out tasks are the last.
        kinds += [kind] if kind not in kinds else []
        name = f"{config.env.replace(':', '-')}-{shown.metrics.returns.shape[2]}-tasks"
        alike = [other for other in kinds if other[:1] == kind[:1] and _count(other) == _count(kind)]
        groups.setdefault(name if alike[0] == kind else f"{name}-{alike.index(kind) + 1}", []).append((shown, label))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, group in groups.items():
        path = folder / ("learning_curves.png" if len(groups) == 1 else f"learning_curves-{name}.png")
        first = group[0][0]
        optimal = next((shown.optimal for shown, _ in group if shown.optimal), None)
        curves = [Curve(label, shown.metrics) for shown, label in group]
        finished = next((shown.run.summary for shown, _ in group if shown.run.finished), {})
        plot_learning_curves(curves, path, optimal, first.run.config.env, finished.get("held_out", ()), first.tasks,
                             first.units)  # fmt: skip
        paths.append(path)
    return paths


def _count(kind: Any) -> int:
    return int(kind[1] or 1) + len(kind[3])


def until(run: Run, samples: int | None) -> Metrics:
    """Curves of a run as it stood after some samples per task; None leaves them whole.

    Raises:
        UsageError: if there is no evaluation by then.
    """
    if samples is None:
        return run.metrics
    keep = run.metrics.samples <= samples
    if not keep.any():
        first = run.metrics.samples[0]
        raise UsageError(f"`samples`: expected at least {first}, the first evaluation of {run.folder}, got {samples}")
    return Metrics(*(column[keep] for column in run.metrics))


def _studies(runs: Sequence[Run], names: Sequence[str], out: Path) -> tuple[list[dict[str, Any]], Path]:
    """Tables and one picture of studies.

    Raises:
        UsageError: if one holds nothing yet.
    """
    for run in runs:
        if not run.rows:
            raise UsageError(f"`folder`: {run.folder} holds no finished run yet")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.png"
    plot_study({name: run.rows for name, run in zip(names, runs, strict=True)}, path)
    return [{"run": str(run.folder), "by_samples": by_samples(run.rows)} for run in runs], path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of evaluate.py; returns the exit code."""
    return run_command(command("evaluate.py"), argv)


def command(name: str) -> click.Command:
    """The command under a name."""
    params = [
        click.Argument(["runs"], nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN..."),
        click.Option(["--episodes"], type=kind("episodes"),
                     help="Play N new greedy episodes from the checkpoint of each run.  "
                          "[default: the mean of the last 10 evaluations]"),
        click.Option(["--samples"], type=kind("episodes"),
                     help="Look at the runs as they stood after N samples per task."),
        click.Option(["--device"], type=kind("device"), default="auto", show_default=True,
                     help="Where to play them."),
        click.Option(["--out"], type=Folder(path_type=Path, file_okay=False),
                     help="Folder of the pictures.  [default: that of --report, else report]"),
        click.Option(["--report"], type=Folder(path_type=Path, file_okay=False), metavar="DIR",
                     help="Write a page about the runs to DIR/index.html, which needs nothing else to be seen: "
                          "intervals, values and policies, episodes, tasks and factors."),
        click.Option(["--video"], is_flag=False, flag_value="gif", type=click.Choice(["gif", "mp4"]),
                     help="Film a greedy episode of each task, as gif or, with ffmpeg, as mp4.  [--video alone: gif]"),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of a table."),
    ]  # fmt: skip
    help_text = "Compare runs: per task the final return, its quartiles, the optimum and the gap; and a picture."
    return click.Command(name, params=params, callback=_evaluate, help=help_text)


def _evaluate(
    runs: tuple[Path, ...],
    episodes: int | None,
    samples: int | None,
    device: str,
    out: Path | None,
    as_json: bool,
    report: Path | None,
    video: str | None,
) -> None:
    found = [load(folder) for folder in runs]
    names = dict(zip(map(id, found), labels(found), strict=True))
    studies, curves = [run for run in found if run.is_study], [run for run in found if not run.is_study]
    if studies and (episodes, samples) != (None, None):
        which = "episodes" if episodes is not None else "samples"
        raise UsageError(f"`{which}`: expected only with low-rank and tabular runs, got the study {studies[0].folder}")
    if report is not None and samples is not None:
        raise UsageError("`samples`: expected none with `report`, which shows what was learnt in the end")
    out = out or report or Path("report")
    shown = [read(run, samples) for run in curves]
    rows = [
        describe(one, one.metrics.final_return() if episodes is None else one.run.evaluate(episodes, device))
        for one in shown
    ]
    files = {"pictures": pictures(shown, [names[id(run)] for run in curves], out) if shown else []}
    tables: list[dict[str, Any]] = []
    if studies:
        tables, path = _studies(studies, [names[id(run)] for run in studies], out)
        files["pictures"].append(path)
    if report is not None:
        files["report"] = [_page(report, found, list(names.values()))]
    if video is not None:
        files["videos"] = films(curves, report or out, video)
    if as_json:
        written = {what: list(map(str, paths)) for what, paths in files.items()}
        click.echo(json.dumps({"runs": rows + tables, **written}, indent=2))
        return
    if rows:
        click.echo(table(rows) + "\n" + _meaning(shown, episodes))
    if rows and studies:
        click.echo("studies of quadratic learners have no learning curve; by the size of the data set:")
    for entry in tables:
        click.echo(f"{entry['run']}: return minus FL+LQR's\n{study_table(entry['by_samples'])}")
    for what, paths in files.items():
        click.echo(f"{what}: {', '.join(map(str, paths))}")


def _page(folder: Path, runs: Sequence[Run], names: Sequence[str]) -> Path:
    from torchq.report import page

    said = " ".join(map(shlex.quote, [*map(str, (run.folder for run in runs)), "--report", str(folder)]))
    return page.write(folder, runs, names, f"torchq evaluate {said}")


def _meaning(shown: Sequence[Shown], episodes: int | None) -> str:
    """What the numbers in the table are."""
    if episodes is not None:
        return f"returns: mean of {episodes} new episodes of each run, then over runs"
    ends = {tuple(one.metrics.samples[-10:][[0, -1]].tolist()) for one in shown}
    where = "" if len(ends) > 1 else ", at {:,} to {:,} samples per task".format(*next(iter(ends)))
    return f"returns: mean of each run's last evaluations, ten at most{where}, then over runs"
