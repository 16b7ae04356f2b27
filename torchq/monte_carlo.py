"""Monte Carlo runs of the case study on all cores, and the files of their run folder."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from torchq.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from torchq.errors import CheckpointError, MetricsError
from torchq.logging import METRICS
from torchq.presets import Config
from torchq.runfolder import SUMMARY
from torchq.study import Row, run_seed
from torchq.versions import versions

COLUMNS = tuple("return" if name == "episode_return" else name for name in Row._fields)
CHECKPOINT_SECONDS = 15.0


class ControlLibrary(Protocol):
    """What the study asks of a package of environments."""

    CONTROL_FAMILIES: dict[str, Any]

    def stack_tasks(self, tasks: Any, *, device: Any, dtype: Any) -> Any:
        """One parameters dataclass of tensors from a list of them."""
        ...


def run_study(
    config: Config, library: ControlLibrary, folder: Path, *, resume: bool, progress: bool | None
) -> dict[str, Any]:
    """All runs of the study, in the order of their seeds; returns the content of summary.json.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded, or metrics.csv does not fit it.
    """
    from tqdm import tqdm

    env = library.CONTROL_FAMILIES[config.env]()
    task_list = env.sample_tasks(config.num_tasks)
    stacked = [library.stack_tasks([task], device="cpu", dtype=torch.float64) for task in task_list]
    path, done, seconds = folder / METRICS, 0, 0.0
    if resume and (loaded := load_checkpoint(folder / "checkpoint", config.algo)):
        done, seconds = int(loaded[1]["episode"]), float(loaded[1]["seconds"])
    rows_per_run = len(task_list) * len(config.sizes)
    rows = _keep(path, done * rows_per_run) if done else []
    begun = saved = time.monotonic()
    with path.open("a" if done else "w", newline="") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS)
        job = partial(run_seed, config, env, stacked, task_list)
        seeds = range(config.seed + done, config.seed + config.num_seeds)
        bar = tqdm(_map(job, seeds), total=config.num_seeds, initial=done, unit="run",
                   disable=None if progress is None else not progress)  # fmt: skip

        def save() -> None:
            file.flush()
            os.fsync(file.fileno())
            counters = {"algo": config.algo, "episode": done, "seconds": seconds + time.monotonic() - begun}
            table = torch.tensor([row[1:] for row in rows], dtype=torch.float64)
            save_checkpoint(folder / "checkpoint", {"rows": table}, counters)

        try:
            for new in bar:
                writer.writerows(new)
                rows, done = rows + new, done + 1
                gaps = [row.episode_return - row.optimal_return for row in rows if row.samples == max(config.sizes)]
                bar.set_postfix_str(f"median gap at {max(config.sizes)}: {np.median(gaps):.3f}")
                if done == config.num_seeds or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if done:
                save()
            raise
    return _finish(config, folder, rows, task_list, seconds + time.monotonic() - begun)


def _map(job: Any, seeds: range) -> Iterator[list[Row]]:
    """Results in the order of the seeds, from as many processes as there are processors."""
    workers = min(os.cpu_count() or 1, len(seeds))
    if workers <= 1 or len(seeds) < 4:
        yield from map(job, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(job, seeds)


def _keep(path: Path, count: int) -> list[Row]:
    """The first rows of metrics.csv, the only ones that stay in it."""
    rows = read_rows(path)[:count]
    if len(rows) < count:
        raise CheckpointError(f"checkpoint: expected {count} rows in {path}, got {len(rows)}; start a new run")
    lines = path.read_bytes().splitlines(keepends=True)
    write_atomically(path, b"".join(lines[: count + 1]))
    return rows


def read_rows(path: Path) -> list[Row]:
    """Rows of a study's metrics.csv.

    Raises:
        MetricsError: if the file is damaged.
    """
    kinds = (str, int, int, int, float, float, float, int, int, float, float, float)
    try:
        whole_lines = path.read_text().rpartition("\n")[0]
        table = list(csv.DictReader(whole_lines.splitlines()))
        return [Row(*(kind(row[name]) for kind, name in zip(kinds, COLUMNS, strict=True))) for row in table]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise MetricsError(f"{path} is damaged ({error!r})") from error


def _quartiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "q25": None, "q75": None}
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "q25": low, "q75": high}


def by_samples(rows: list[Row]) -> list[dict[str, Any]]:
    """Per size: returns and gaps to the yardstick without the unstable runs, shares, and bounds of the cost."""
    table = []
    for size in sorted({row.samples for row in rows}):
        own = [row for row in rows if row.samples == size]
        stable = [row for row in own if not row.unstable]
        bounded = [row for row in own if math.isfinite(row.lower_bound)]
        table.append({
            "samples": size,
            "return": _quartiles([row.episode_return for row in stable]),
            "gap": _quartiles([row.episode_return - row.optimal_return for row in stable]),
            "unstable_share": sum(row.unstable for row in own) / len(own),
            "failed_share": sum(row.failed for row in own) / len(own),
            "bounds": {
                "lower": _quartiles([row.lower_bound for row in bounded])["median"],
                "upper": _quartiles([row.cost for row in own])["median"],
                "gap": _quartiles([row.cost - row.lower_bound for row in bounded])["median"],
            },
        })  # fmt: skip
    return table


def _finish(config: Config, folder: Path, rows: list[Row], task_list: list[Any], wall_time: float) -> dict[str, Any]:
    """Write summary.json and learning_curve.png."""
    largest = [row for row in rows if row.samples == max(config.sizes)]
    final = [
        _quartiles([row.episode_return for row in largest if row.task == task and not row.unstable])
        for task in range(len(task_list))
    ]
    optimal = [
        float(np.median([row.optimal_return for row in largest if row.task == t])) for t in range(len(task_list))
    ]
    summary = {
        "algo": config.algo,
        "env": config.env,
        "preset": config.preset,
        "num_seeds": config.num_seeds,
        "tasks": [vars(task) for task in task_list],
        "samples_per_task": max(config.sizes),
        "transitions": max(config.sizes) * len(task_list) * config.num_seeds,
        "wall_time_s": wall_time,
        "transitions_per_s": max(config.sizes) * len(task_list) * config.num_seeds / wall_time,
        "device": config.device,
        "dtype": config.dtype,
        "final_return": {name: [task[name] for task in final] for name in ("median", "q25", "q75")},
        "optimal_return": optimal,
        "by_samples": by_samples(rows),
        "unstable_share": sum(row.unstable for row in rows) / len(rows),
        "failed_share": sum(row.failed for row in rows) / len(rows),
        "versions": versions(),
    }
    plot_study({config.algo: rows}, folder / "learning_curve.png")
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    return summary


def plot_study(studies: dict[str, list[Row]], path: Path) -> None:
    """Return against samples per method, yardstick and baseline as lines, unstable shares in the legend.  [LMI, fig. 1]

    Medians and quartiles are those of the paired differences to the yardstick, drawn from its median return: the spread
    of the returns themselves is that of the start states, the same for every method.

    Args:
        studies: rows by label, all on the same runs.
        path: of the PNG; replaced if it exists.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
    first = next(iter(studies.values()))
    yardstick = float(np.median([row.optimal_return for row in first]))
    base = yardstick + float(np.median([row.baseline_return - row.optimal_return for row in first]))
    for label, rows in studies.items():
        table = [entry for entry in by_samples(rows) if entry["gap"]["median"] is not None]
        samples = [entry["samples"] for entry in table]
        low, median, high = ([yardstick + entry["gap"][q] for entry in table] for q in ("q25", "median", "q75"))
        share = sum(row.unstable for row in rows) / len(rows)
        name = label.replace("$", r"\$")
        (line,) = axis.plot(samples, median, marker="o", markersize=3, label=f"{name} ({share:.1%} unstable)")
        axis.fill_between(samples, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.axhline(yardstick, color="0.2", linestyle="--", linewidth=1, label="FL+LQR")
    axis.axhline(base, color="0.5", linestyle=":", linewidth=1, label="baseline")
    height = yardstick - base
    axis.set_ylim(base - 2 * height, yardstick + height / 2)
    axis.set_xscale("log")
    axis.set_xlabel("samples")
    axis.set_ylabel("return of a test episode, paired to FL+LQR")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
