"""Monte Carlo runs of the case study on all cores, and the files of their run folder."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq import families
from torchq.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from torchq.config import Config
from torchq.errors import CheckpointError
from torchq.quadratic.forms import Quadratic
from torchq.runs.control_tasks import Case, make_case
from torchq.runs.folder import SUMMARY
from torchq.runs.metrics import METRICS, TensorBoard, check_own
from torchq.runs.recorder import MAX_TASKS_ON_BOARD
from torchq.runs.study import Outcome, Row, run_seeds
from torchq.runs.study_results import COLUMNS, by_samples, events, plot_study, quartiles, read_rows
from torchq.runs.tasks import task_list
from torchq.versions import versions

CHECKPOINT_SECONDS = 15.0
RUNS_AT_ONCE = 24
"""Whose programs are solved together."""
SAMPLES_AT_ONCE = 24_000
"""Of all of them: a line search holds nine copies of each data set."""


_CONTRACT = (
    "name", "gamma", "episode_length", "noise", "exploration_high", "unstable_state", "sample_tasks",
    "exploration_std", "reset", "place", "step", "observe", "features", "believed", "cancelling", "linearised",
    "reward_weights",
)  # fmt: skip


def make_cases(config: Config, family: Any) -> list[Case]:
    """The tasks of a configuration with their baselines.

    Raises:
        UsageError: if the family has no continuous controls.
    """
    env = families.with_controls(family)
    families.check(env, _CONTRACT, "continuous controls", config.algo)
    return [
        make_case(env, task, families.stack_tasks([task], dtype=torch.float64), index, config.baseline)
        for index, task in enumerate(task_list(config, env))
    ]


def run_study(
    config: Config,
    cases: list[Case],
    folder: Path,
    *,
    starts: Quadratic | None = None,
    resume: bool,
    progress: bool | None,
) -> dict[str, Any]:
    """All runs of the study, in the order of their seeds; returns the content of summary.json.

    Args:
        config: learner, sizes and seeds.
        cases: the tasks, from `make_cases`.
        folder: the run folder.
        starts: see `study.run_seeds`.
        resume: whether to go on from the folder's checkpoint.
        progress: whether to show a bar; None shows it on a terminal.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded, or metrics.csv does not fit it.
    """
    from tqdm import tqdm

    path, rows_per_run = folder / METRICS, len(cases) * len(config.sizes)
    loaded = load_checkpoint(folder / "checkpoint", config.algo) if resume else None
    if resume and loaded is None and (folder / SUMMARY).exists():
        raise CheckpointError(f"checkpoint: the finished study in {folder} has lost it; start a new one")
    record = _restore(*loaded, path, rows_per_run) if loaded else Record([], [], [], [], [], 0.0)
    begun = saved = time.monotonic()
    with path.open("a" if record.rows else "w", newline="") as file:
        writer = csv.writer(file)
        if not record.rows:
            writer.writerow(COLUMNS)
        done = len(record.learnt)
        seeds = range(config.seed + done, config.seed + config.num_seeds)
        bar = tqdm(_outcomes(config, cases, starts, seeds), total=config.num_seeds, initial=done, unit="run",
                   disable=None if progress is None else not progress)  # fmt: skip

        def save() -> None:
            file.flush()
            os.fsync(file.fileno())
            content = path.read_bytes()
            own = {"metrics_size": len(content), "metrics_digest": hashlib.sha256(content).hexdigest()}
            _save(record, config.algo, folder, record.wall_time + time.monotonic() - begun, own)

        try:
            for new in bar:
                writer.writerows(new.rows)
                record.add(new)
                gaps = [r.episode_return - r.optimal_return for r in record.rows if r.samples == max(config.sizes)]
                bar.set_postfix_str(f"median gap at {max(config.sizes)}: {quartiles(gaps)['median'] or math.nan:.3f}")
                if len(record.learnt) == config.num_seeds or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if record.learnt:
                save()
            raise
    return _finish(config, folder, record, [case.task for case in cases], record.wall_time + time.monotonic() - begun)


class Record(NamedTuple):
    """The finished runs of a study."""

    rows: list[Row]
    learnt: list[Quadratic]
    """Of each run, (tasks, sizes, …)."""
    seconds: list[Tensor]
    """Of each run, (tasks, sizes)."""
    failures: list[str]
    findings: list[str]
    wall_time: float
    """Before this process began."""

    def add(self, run: Outcome) -> None:
        """Append a run."""
        self.rows.extend(run.rows)
        self.learnt.append(Quadratic(*map(torch.from_numpy, run.learnt)))
        self.seconds.append(torch.from_numpy(run.seconds))
        self.failures.extend(run.failures)
        self.findings.extend(run.findings)


def _save(record: Record, algo: str, folder: Path, wall_time: float, of_metrics: dict[str, Any]) -> None:
    parts = zip(*record.learnt, strict=True)
    tensors = {f"learnt.{name}": torch.stack(part) for name, part in zip(Quadratic._fields, parts, strict=True)}
    counters = {
        "algo": algo,
        "episode": len(record.learnt),
        "seconds": wall_time,
        "seconds_of_fits": torch.stack(record.seconds).tolist(),
        "failures": record.failures,
        "findings": record.findings,
        **of_metrics,
    }
    save_checkpoint(folder / "checkpoint", tensors, counters)


def _restore(tensors: dict[str, Tensor], counters: dict[str, Any], path: Path, rows_per_run: int) -> Record:
    """The record of a checkpoint, with the rows of metrics.csv that belong to it."""
    try:
        learnt = [Quadratic(*parts) for parts in zip(*(tensors[f"learnt.{x}"] for x in Quadratic._fields), strict=True)]
        seconds = list(torch.tensor(counters["seconds_of_fits"], dtype=torch.float64))
        wall_time, failures, findings = (
            float(counters["seconds"]),
            list(counters["failures"]),
            list(counters["findings"]),
        )
        size, digest = int(counters.get("metrics_size", 0)), str(counters.get("metrics_digest", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: its content is corrupted ({error!r}); start a new run") from error
    if digest:
        check_own(path.parent, size, digest)
    return Record(_keep(path, len(learnt) * rows_per_run), learnt, seconds, failures, findings, wall_time)


def _outcomes(config: Config, cases: list[Case], starts: Quadratic | None, seeds: range) -> Iterator[Outcome]:
    """Outcomes in the order of the seeds.

    Torchq's own solver takes the programs of some runs together, on all processors. What solves one program after the
    other does so in as many processes as there are processors. Those of loky, unlike multiprocessing's own, do not run
    the user's script again. A process finds its family by name; what it gives back is NumPy's, for tensors between
    processes cost a file descriptor each.
    """
    if config.solver == "torchq":  # Lspi's too, which has none.
        at_once = max(1, min(RUNS_AT_ONCE, SAMPLES_AT_ONCE // max(config.sizes)))
        for first in range(0, len(seeds), at_once):
            yield from run_seeds(config, cases, starts, seeds[first : first + at_once])
        return
    from loky import ProcessPoolExecutor, cpu_count

    workers = min(cpu_count(), len(seeds))  # Those that this process may use.
    if workers <= 1 or len(seeds) < 4:
        for seed in seeds:
            yield from run_seeds(config, cases, starts, [seed])
        return

    given = None if starts is None else [part.numpy() for part in starts]
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(config, given)) as pool:
        yield from pool.map(_run_seed, seeds)


_job: Callable[[list[int]], list[Outcome]]
"""In a process of its own: from seeds to their outcomes."""


def _begin(config: Config, starts: list[np.ndarray] | None) -> None:
    global _job
    torch.set_num_threads(1)
    cases = make_cases(config, families.of(config))
    _job = partial(run_seeds, config, cases, None if starts is None else Quadratic(*map(torch.from_numpy, starts)))


def _run_seed(seed: int) -> Outcome:
    return _job([seed])[0]


def _keep(path: Path, count: int) -> list[Row]:
    """The first rows of metrics.csv, the only ones that stay in it."""
    rows = read_rows(path)[:count]
    if len(rows) < count:
        raise CheckpointError(f"checkpoint: expected {count} rows in {path}, got {len(rows)}; start a new run")
    lines = path.read_bytes().splitlines(keepends=True)
    write_atomically(path, b"".join(lines[: count + 1]))
    return rows


def _finish(config: Config, folder: Path, record: Record, task_list: list[Any], wall_time: float) -> dict[str, Any]:
    """Write summary.json, learning_curve.png and TensorBoard events."""
    rows = record.rows
    times = torch.stack(record.seconds).flatten(0, 1).median(0).values.tolist()
    table = [entry | {"solve_time_s": time} for entry, time in zip(by_samples(rows), times, strict=True)]
    largest = [row for row in rows if row.samples == max(config.sizes)]
    final = [
        quartiles([row.episode_return for row in largest if row.task == task and not row.unstable])
        for task in range(len(task_list))
    ]
    optimal = [
        quartiles([row.optimal_return for row in largest if row.task == t])["median"] for t in range(len(task_list))
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
        "by_samples": table,
        "unstable_share": sum(row.unstable for row in rows) / len(rows),
        "failed_share": sum(row.failed for row in rows) / len(rows),
        "failures": record.failures,
        "findings": record.findings,
        "versions": versions(),
    }
    board = TensorBoard(folder, 0)  # Of a study that was longer, or ended before, nothing stays.
    for samples, values in events(rows, MAX_TASKS_ON_BOARD):
        board.log(values, samples)
    board.close()
    plot_study({config.algo: rows}, folder / "learning_curve.png")
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    return summary
