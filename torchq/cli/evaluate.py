"""The command that compares runs: `evaluate.py`, or `torchq evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from torchq.cli.commands import run_command
from torchq.cli.flags import kind
from torchq.cli.train import study_table
from torchq.config import QUADRATIC_ALGOS
from torchq.errors import UsageError
from torchq.runs.metrics import Metrics
from torchq.runs.plotting import Curve, named, plot_learning_curves
from torchq.runs.run import Run, load
from torchq.runs.study_results import by_samples, plot_study


class Shown(NamedTuple):
    """A run with what is shown of it."""

    run: Run
    metrics: Metrics
    optimal: list[float] | None
    """Optimal return of each task, if the run has computed it."""
    tasks: Sequence[Any] = ()
    """Parameters of each task, as far as the run's files say them."""


def read(run: Run, samples: int | None) -> Shown:
    """What is shown of a run, as it stood after some samples per task; None shows all of it."""
    if run.finished:
        return Shown(run, until(run, samples), run.summary["optimal_return"], run.summary.get("tasks", ()))
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
        "tasks": list(shown.tasks),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `describe` as text: per run and task the median [quartiles], optimum and gap."""
    width = max(len(row["run"]) for row in rows)
    lines = [f"{'run':<{width}}  task     median  [     q25,      q75]    optimum        gap"]
    for row in rows:
        final = row["final_return"]
        for task, (median, low, high) in enumerate(zip(final["median"], final["q25"], final["q75"], strict=True)):
            known = row["optimal_return"] is not None
            best = f"{row['optimal_return'][task]:9.1f}  {row['gap'][task]:9.1f}" if known else "        -          -"
            words = f"  {named(row['tasks'][task])}" if len(row["tasks"]) == len(final["median"]) else ""
            unfinished = "" if row["finished"] else f"  (unfinished: {row['samples_per_task']} samples)"
            lines.append(
                f"{row['run']:<{width}}  {task:4d}  {median:9.1f}  [{low:8.1f}, {high:8.1f}]  {best}{words}{unfinished}"
            )
    conventions = [f"{row['run']}: LR-Q convention {row['lrq_convention']}" for row in rows if "lrq_convention" in row]
    return "\n".join(lines + conventions)


def pictures(runs: Sequence[Shown], folder: Path) -> list[Path]:
    """One picture for each family and set of tasks among the runs; returns their paths."""
    groups: dict[str, list[Shown]] = {}
    kinds: list[Any] = []
    for shown in runs:
        config = shown.run.config
        which = (config.env, config.num_tasks, config.tasks, config.test_tasks, config.held_out, config.task_modes)
        kind = which if config.held_out else (*which[:4], 0.0, "")  # Held-out tasks are the last.
        kinds += [kind] if kind not in kinds else []
        name = f"{config.env.replace(':', '-')}-{shown.metrics.returns.shape[2]}-tasks"
        alike = [other for other in kinds if other[:1] == kind[:1] and _count(other) == _count(kind)]
        groups.setdefault(name if alike[0] == kind else f"{name}-{alike.index(kind) + 1}", []).append(shown)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, group in groups.items():
        path = folder / ("learning_curves.png" if len(groups) == 1 else f"learning_curves-{name}.png")
        optimal = next((shown.optimal for shown in group if shown.optimal), None)
        labels = _labels([shown.run for shown in group])
        curves = [Curve(label, shown.metrics) for label, shown in zip(labels, group, strict=True)]
        finished = next((shown.run.summary for shown in group if shown.run.finished), {})
        plot_learning_curves(curves, path, optimal, group[0].run.config.env, finished.get("held_out", ()),
                             group[0].tasks)  # fmt: skip
        paths.append(path)
    return paths


def _count(kind: Any) -> int:
    return int(kind[1] or 1) + len(kind[3])


def _labels(runs: Sequence[Run]) -> list[str]:
    """The shortest kind of name that tells the runs apart: algorithm, folder, whole path."""
    kinds: tuple[list[str], ...] = (
        [run.config.algo for run in runs],
        [run.folder.name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next((names for names in kinds if len(set(names)) == len(names)), kinds[-1])


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


def _studies(runs: Sequence[Run], episodes: int | None, out: Path, as_json: bool) -> None:
    """Tables and one picture of studies.

    Raises:
        UsageError: if a run is no study, or new episodes are asked for.
    """
    for run in runs:
        if not run.is_study:
            only = ", ".join(QUADRATIC_ALGOS)
            raise UsageError(f"`folder`: expected studies of {only} only, got {run.folder}; show it apart")
        if episodes is not None:
            run.evaluate(episodes)
    studies = {str(run.folder): run.rows for run in runs}
    for name, rows in studies.items():
        if not rows:
            raise UsageError(f"`folder`: {name} holds no finished run yet")
    tables = {name: by_samples(rows) for name, rows in studies.items()}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.png"
    labels = [Path(name).name for name in studies]
    unique = len(set(labels)) == len(labels)
    plot_study({Path(name).name if unique else name: rows for name, rows in studies.items()}, path)
    if as_json:
        described = [{"run": name, "by_samples": table} for name, table in tables.items()]
        click.echo(json.dumps({"runs": described, "pictures": [str(path)]}, indent=2))
        return
    for name, entries in tables.items():
        click.echo(f"{name}: return minus FL+LQR's\n{study_table(entries)}")
    click.echo(f"figure: {path}")


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
        click.Option(["--out"], type=click.Path(path_type=Path, file_okay=False), default="report", show_default=True,
                     help="Folder of the picture."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of a table."),
    ]  # fmt: skip
    help_text = "Compare runs: per task the final return, its quartiles, the optimum and the gap; and a picture."
    return click.Command(name, params=params, callback=_evaluate, help=help_text)


def _evaluate(
    runs: tuple[Path, ...], episodes: int | None, samples: int | None, device: str, out: Path, as_json: bool
) -> None:
    found = [load(folder) for folder in runs]
    if any(run.is_study for run in found):
        _studies(found, episodes, out, as_json)
        return
    shown = [read(run, samples) for run in found]
    rows = [
        describe(one, one.metrics.final_return() if episodes is None else one.run.evaluate(episodes, device))
        for one in shown
    ]
    paths = pictures(shown, out)
    if as_json:
        click.echo(json.dumps({"runs": rows, "pictures": [str(path) for path in paths]}, indent=2))
    else:
        click.echo(table(rows))
        click.echo(f"learning curves: {', '.join(map(str, paths))}")
