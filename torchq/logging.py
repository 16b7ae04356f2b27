"""What a run writes while it learns: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchq.errors import CheckpointError

METRICS = "metrics.csv"
_HEADER = "episode,samples,seed,task,return\n"


class Metrics(NamedTuple):
    """Learning curves of a run, from its metrics.csv."""

    episode: np.ndarray
    """Episodes per environment at each evaluation, (evaluations,)."""
    samples: np.ndarray
    """Environment steps per task at each evaluation, (evaluations,)."""
    returns: np.ndarray
    """Greedy return, (evaluations, seeds, tasks)."""

    def final_return(self, num_evaluations: int = 10) -> np.ndarray:
        """Mean of each seed's last evaluations, (seeds, tasks)."""
        return self.returns[-num_evaluations:].mean(0)


class MetricsFile:
    """metrics.csv, in long form: one row per evaluation, seed and task.

    Args:
        folder: the run's folder.
        size: bytes to keep of what is there, from the checkpoint; 0 begins anew.

    Raises:
        CheckpointError: if the file is shorter than that.
    """

    def __init__(self, folder: Path, size: int) -> None:
        path = folder / METRICS
        if size and (not path.exists() or path.stat().st_size < size):
            raise CheckpointError(f"checkpoint: expected {path} of at least {size} bytes; start a new run")
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._file.write(_HEADER.encode())

    def append(self, episode: int, samples: int, seeds: Sequence[int], returns: Sequence[Sequence[float]]) -> None:
        """Rows of one evaluation; returns by seed and task."""
        rows = (
            f"{episode},{samples},{seed},{task},{value:.9g}\n"
            for seed, row in zip(seeds, returns, strict=True)
            for task, value in enumerate(row)
        )
        self._file.write("".join(rows).encode())
        self._file.flush()

    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def sync(self) -> None:
        """Put what is written on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(folder: Path) -> Metrics:
    """Learning curves from a run folder.

    Raises:
        ValueError: if there is no complete evaluation in it.
    """
    path = folder / METRICS
    with path.open(newline="") as file:
        rows = [
            (int(row["episode"]), int(row["samples"]), int(row["seed"]), int(row["task"]), float(row["return"]))
            for row in csv.DictReader(file)
            if row.get("return")
        ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    seeds, tasks = np.unique(table[:, 2]), np.unique(table[:, 3])
    per_evaluation = max(1, len(seeds) * len(tasks))
    complete = len(table) // per_evaluation
    if not complete:
        raise ValueError(f"{path} holds no complete evaluation")
    curves = table[: complete * per_evaluation].reshape(complete, len(seeds), len(tasks), 5)
    return Metrics(curves[:, 0, 0, 0].astype(int), curves[:, 0, 0, 1].astype(int), curves[..., 4])


class TensorBoard:
    """TensorBoard events of a run; the x-axis is samples per task.

    Args:
        folder: the run's folder.
        resumed_from: samples from which on older events are dropped; None for a new run.
    """

    def __init__(self, folder: Path, resumed_from: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_from)

    def log(self, values: dict[str, float], samples: int) -> None:
        """Scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, samples)

    def close(self) -> None:
        """Write what is pending and close."""
        self._writer.close()
