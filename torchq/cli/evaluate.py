"""The command line of evaluate.py: a table and a picture from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from torchq import checkpoint, tree
from torchq.cli.flags import kind
from torchq.cli.train import run_command, study_table
from torchq.config import QUADRATIC_ALGOS, Config
from torchq.errors import CheckpointError, UsageError
from torchq.runs.experiment import EnvironmentLibrary, prepare
from torchq.runs.folder import CONFIG, SUMMARY, read_config
from torchq.runs.metrics import METRICS, Metrics, read_metrics
from torchq.runs.plotting import Curve, plot_learning_curves
from torchq.runs.study_results import by_samples, plot_study, read_rows


class Run(NamedTuple):
    """What a run folder holds."""

    folder: Path
    config: Config
    metrics: Metrics
    optimal: list[float] | None
    """Optimal return of each task, if the run has computed it."""
    finished: bool


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UsageError: if it is none, or holds no evaluation yet.
    """
    if not folder.is_dir():
        raise UsageError(f"RUN: expected a run folder, but {folder} does not exist")
    if not (folder / CONFIG).exists() or not (folder / METRICS).exists():
        raise UsageError(f"RUN: expected a run folder, but {folder} has no {CONFIG} and {METRICS}")
    config = read_config(folder)
    if not config.num_tasks:
        raise UsageError(f"RUN: {folder / CONFIG} does not say how many tasks there are; it is of another version")
    metrics = read_metrics(folder, config.num_seeds, config.num_tasks)
    path = folder / SUMMARY
    if not path.exists():
        return Run(folder, config, metrics, None, finished=False)
    try:
        return Run(folder, config, metrics, json.loads(path.read_bytes())["optimal_return"], finished=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"RUN: {path} is damaged ({error!r}); write it again with train.py --resume") from error


@torch.no_grad()
def play(run: Run, library: EnvironmentLibrary, episodes: int, device: str) -> np.ndarray:
    """Greedy return of the run's checkpoint over fresh test episodes, (seeds, tasks)."""
    config = run.config.replace(device=device, engine="eager", eval_episodes=episodes)
    experiment = prepare(config, library)
    loaded = checkpoint.load_checkpoint(run.folder / "checkpoint", run.config.algo)
    if loaded is None:
        raise CheckpointError(f"--episodes: {run.folder} holds no checkpoint to test yet")
    state = tree.unflatten(experiment.initial_state, loaded[0])
    return experiment.evaluate(state.learner, run.config.episodes + 1).cpu().numpy()


def describe(run: Run, final: np.ndarray) -> dict[str, Any]:
    """Numbers of one run, as `--json` prints them; `final` is (seeds, tasks)."""
    low, median, high = np.percentile(final, [25, 50, 75], axis=0)
    gap = (median - np.array(run.optimal)).tolist() if run.optimal else None
    return {
        "run": str(run.folder),
        "algo": run.config.algo,
        "env": run.config.env,
        "preset": run.config.preset,
        **({"lrq_convention": run.config.lrq_convention} if run.config.algo == "lrq" else {}),
        "finished": run.finished,
        "num_seeds": run.config.num_seeds,
        "samples_per_task": int(run.metrics.samples[-1]),
        "final_return": {"median": median.tolist(), "q25": low.tolist(), "q75": high.tolist()},
        "optimal_return": run.optimal,
        "gap": gap,
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
            unfinished = "" if row["finished"] else f"  (unfinished: {row['samples_per_task']} samples)"
            lines.append(
                f"{row['run']:<{width}}  {task:4d}  {median:9.1f}  [{low:8.1f}, {high:8.1f}]  {best}{unfinished}"
            )
    conventions = [f"{row['run']}: LR-Q convention {row['lrq_convention']}" for row in rows if "lrq_convention" in row]
    return "\n".join(lines + conventions)


def pictures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """One picture for each family and number of tasks among the runs; returns their paths."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run.config.env}-{run.metrics.returns.shape[2]}-tasks", []).append(run)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, group in groups.items():
        path = folder / ("learning_curves.png" if len(groups) == 1 else f"learning_curves-{name}.png")
        optimal = next((run.optimal for run in group if run.optimal), None)
        curves = [Curve(label, run.metrics) for label, run in zip(_labels(group), group, strict=True)]
        plot_learning_curves(curves, path, optimal, group[0].config.env)
        paths.append(path)
    return paths


def _labels(runs: Sequence[Run]) -> list[str]:
    """The shortest kind of name that tells the runs apart: algorithm, folder, whole path."""
    kinds: tuple[list[str], ...] = (
        [run.config.algo for run in runs],
        [run.folder.name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next((names for names in kinds if len(set(names)) == len(names)), kinds[-1])


def until(run: Run, samples: int | None) -> Run:
    """The run as it stood after some samples per task; None leaves it whole.

    Raises:
        UsageError: if it has no evaluation by then.
    """
    if samples is None:
        return run
    keep = run.metrics.samples <= samples
    if not keep.any():
        first = run.metrics.samples[0]
        raise UsageError(f"--samples: expected at least {first}, the first evaluation of {run.folder}, got {samples}")
    return run._replace(metrics=Metrics(*(column[keep] for column in run.metrics)))


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study of a quadratic learner."""
    return (folder / CONFIG).exists() and read_config(folder).algo in QUADRATIC_ALGOS


def _studies(runs: Sequence[Path], episodes: int | None, out: Path, as_json: bool) -> None:
    """Tables and one picture of studies.

    Raises:
        UsageError: if a run is no study, or new episodes are asked for.
    """
    for folder in runs:
        if not is_study(folder):
            raise UsageError(f"RUN: expected studies of {', '.join(QUADRATIC_ALGOS)} only, got {folder}; show it apart")
    if episodes is not None:
        raise UsageError("--episodes: expected only with low-rank and tabular runs; a study has one test episode a run")
    studies = {str(folder): read_rows(folder / METRICS) for folder in runs}
    for name, rows in studies.items():
        if not rows:
            raise UsageError(f"RUN: {name} holds no finished run yet")
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


def main(library: EnvironmentLibrary, argv: Sequence[str] | None = None) -> int:
    """Command line of evaluate.py; returns the exit code."""

    def callback(
        runs: tuple[Path, ...], episodes: int | None, samples: int | None, device: str, out: Path, as_json: bool
    ) -> None:
        if any(is_study(folder) for folder in runs):
            _studies(runs, episodes, out, as_json)
            return
        found = [until(read_run(folder), samples) for folder in runs]
        rows = [
            describe(run, run.metrics.final_return() if episodes is None else play(run, library, episodes, device))
            for run in found
        ]
        paths = pictures(found, out)
        if as_json:
            click.echo(json.dumps({"runs": rows, "pictures": [str(path) for path in paths]}, indent=2))
        else:
            click.echo(table(rows))
            click.echo(f"learning curves: {', '.join(map(str, paths))}")

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
    command = click.Command("evaluate.py", params=params, callback=callback, help=help_text)
    return run_command(command, argv)
