"""What a run leaves when it is over: summary.json and the picture of its learning curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from torchq.checkpoint import write_atomically
from torchq.runs.experiment import Experiment
from torchq.runs.folder import SUMMARY
from torchq.runs.metrics import QUANTILES, read_metrics
from torchq.runs.optimum import optimal_returns
from torchq.runs.plotting import Curve, plot_learning_curves
from torchq.runs.tasks import TaskSet
from torchq.versions import versions

MAX_TASKS_FOR_OPTIMUM = 16
MAX_LISTED = 64
"""Tasks up to which each is told of by itself."""
NAMED = 5
"""Of the worst and of the best tasks."""


def write(experiment: Experiment, folder: Path, wall_time: float) -> dict[str, Any]:
    """Write summary.json and learning_curve.png of a run that is over; returns what the former holds."""
    config, rollout = experiment.config, experiment.rollout
    wanted = config.optimal if config.optimal is not None else len(experiment.task_list) <= MAX_TASKS_FOR_OPTIMUM
    optimal = optimal_returns(rollout.env, experiment.task_list, rollout.device) if wanted else None
    metrics = read_metrics(folder, config.num_seeds, len(experiment.task_list))
    final, trained, of_run = metrics.final_return(), experiment.task_set.num_learnt, experiment.task_set
    low, median, high = np.percentile(final, [25, 50, 75], axis=0)
    samples = config.episodes * rollout.env.episode_length * config.num_envs
    units = getattr(rollout.env, "parameter_units", ())
    transitions = samples * of_run.num_trained * config.num_seeds
    summary = {
        "algo": config.algo,
        "env": config.env,
        "preset": config.preset,
        "num_seeds": config.num_seeds,
        "tasks": [vars(task) for task in experiment.task_list],
        **({"units": list(units)} if units else {}),
        **_sample(of_run, final),
        **_held_out(final[:, trained:], trained),
        "samples_per_task": samples,
        "transitions": transitions,
        "wall_time_s": wall_time,
        "transitions_per_s": transitions / wall_time,
        "device": config.device,
        "dtype": config.dtype,
        "engine": config.engine,
        **({"lrq_convention": config.lrq_convention} if config.algo == "lrq" else {}),
        "final_return": {"median": median.tolist(), "q25": low.tolist(), "q75": high.tolist()},
        "optimal_return": optimal,
        "versions": versions(),
    }
    curve, tested = Curve(config.algo, metrics), range(trained, len(experiment.task_list))
    plot_learning_curves([curve], folder / "learning_curve.png", optimal, config.env, tested, summary["tasks"], units)
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    return summary


def _sample(of_run: TaskSet, final: np.ndarray) -> dict[str, Any]:
    """Entries about many tasks: how many there are, which were tested, and the returns over these."""
    if of_run.sample is None and final.shape[1] <= MAX_LISTED:
        return {}
    returns, numbers = final.mean(0), np.array(of_run.numbers)
    order = returns.argsort(kind="stable")
    some = {"num_tasks": len(of_run.tasks), "tested": numbers.tolist()} if of_run.sample is not None else {}
    found = np.quantile(returns, QUANTILES)
    return some | {
        "over_tasks": {
            "mean": float(returns.mean()),
            "quantiles": {f"{share:.2f}": float(value) for share, value in zip(QUANTILES, found, strict=True)},
            "worst": numbers[order[:NAMED]].tolist(),
            "best": numbers[order[::-1][:NAMED]].tolist(),
        }
    }


def _held_out(final: np.ndarray, trained: int) -> dict[str, Any]:
    """Entries of the summary about tasks that are tested only: their numbers, and quartiles over them and all runs."""
    if not final.size:
        return {}
    low, median, high = np.percentile(final, [25, 50, 75])
    quartiles = {"median": median, "q25": low, "q75": high, "worst": final.min()}
    return {
        "held_out": list(range(trained, trained + final.shape[1])),
        "held_out_return": {name: float(value) for name, value in quartiles.items()},
    }
