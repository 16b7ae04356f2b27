"""What a run writes while it learns: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchq.errors import CheckpointError, MetricsError

METRICS = "metrics.csv"
_COLUMNS = ("episode", "samples", "seed", "task", "return")
_HEADER = ",".join(_COLUMNS) + "\n"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Over tasks, where there are many."""
_WINDOW = 3
"""Evaluations that are looked at together, where one may be noise."""


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

    def fallen(self) -> list[tuple[int, float, int, float]]:
        """Tasks that end at less than half of what they had gained: number, best return, its samples, and the last.

        Of medians over seeds, three evaluations in a row each.
        """
        medians = np.median(self.returns, axis=1)  # (evaluations, tasks)
        if len(medians) < 2 * _WINDOW:
            return []
        means = np.stack([medians[i : i + _WINDOW].mean(0) for i in range(len(medians) - _WINDOW + 1)])
        best, lowest, last = means.max(0), means.min(0), means[-1]
        samples = self.samples[means.argmax(0) + _WINDOW // 2]
        tasks = np.flatnonzero(last < best - 0.5 * (best - lowest)).tolist()
        return [(task, float(best[task]), int(samples[task]), float(last[task])) for task in tasks]


class MetricsFile:
    """metrics.csv, in long form: one row per evaluation, seed and task that is tested.

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
        self._hash = hashlib.sha256(self._file.read(size) if size else b"")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write(_HEADER.encode())

    def append(
        self, episode: int, samples: int, seeds: Sequence[int], tasks: Sequence[int], returns: Sequence[Sequence[float]]
    ) -> None:
        """Rows of one evaluation; returns by seed and task, whose numbers these are."""
        rows = (
            f"{episode},{samples},{seed},{task},{value:.9g}\n"
            for seed, row in zip(seeds, returns, strict=True)
            for task, value in zip(tasks, row, strict=True)
        )
        self._write("".join(rows).encode())
        self._file.flush()

    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def digest(self) -> str:
        """Of what is written so far: a checkpoint knows by it whether a file is its own."""
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)

    def sync(self) -> None:
        """Put what is written on the disk.

        Raises:
            OSError: if the file is not there any more.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        os.stat(self._file.name)  # A file that was removed takes what is written, and keeps nothing.

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_own(folder: Path, size: int, digest: str) -> None:
    """See that metrics.csv begins with what a checkpoint was saved beside; nothing is changed.

    Args:
        folder: the run's folder.
        size: bytes that were written then.
        digest: of them, from `MetricsFile`.

    Raises:
        CheckpointError: if it does not.
    """
    path = folder / METRICS
    try:
        with path.open("rb") as file:
            found = file.read(size)
    except OSError as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read ({error.strerror}); start a new run") from error
    if len(found) < size or hashlib.sha256(found).hexdigest() != digest:
        raise CheckpointError(
            f"checkpoint: {path} is not what was written beside it: shorter, of another run, or edited; put the file "
            "back, or start a new run"
        )


def read_metrics(folder: Path, num_seeds: int, num_tasks: int) -> Metrics:
    """Learning curves from a run folder; an evaluation that is not complete at the end is left out.

    Args:
        folder: the run folder.
        num_seeds: runs side by side.
        num_tasks: tasks of each.

    Raises:
        MetricsError: if the file is damaged, or there is no complete evaluation in it.
    """
    path = folder / METRICS
    try:
        whole_lines = path.read_text().rpartition("\n")[0]
        table = [tuple(row[name] for name in _COLUMNS) for row in csv.DictReader(whole_lines.splitlines())]
        size = num_seeds * num_tasks
        complete = len(table) // size
        keys = [(int(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in table[: complete * size]]
        values = np.array([float(row[4]) for row in table[: complete * size]])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise MetricsError(f"{path} is damaged ({error!r})") from error
    first_seed, numbers = keys[0][2] if keys else 0, [key[3] for key in keys[:num_tasks]]
    for row, (episode, samples, seed, task) in enumerate(keys):
        start = keys[row - row % size]
        expected = (*start[:2], first_seed + row % size // num_tasks, numbers[row % num_tasks])
        if (episode, samples, seed, task) != expected:
            raise MetricsError(f"{path} is damaged: expected seed {expected[2]}, task {expected[3]} in row {row + 1}")
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 0):
        raise MetricsError(f"{path} is damaged: expected tasks in order, got {numbers[:8]}")
    if not complete:
        raise MetricsError(f"{path} holds no complete evaluation yet")
    starts = keys[::size]
    return Metrics(
        np.array([key[0] for key in starts]),
        np.array([key[1] for key in starts]),
        values.reshape(complete, num_seeds, num_tasks),
    )


class TensorBoard:
    """TensorBoard events of a run; the x-axis is samples per task.

    Args:
        folder: the run's folder.
        resumed_from: samples from which on older events are dropped; None for a new run.
    """

    def __init__(self, folder: Path, resumed_from: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._hook, threading.excepthook = threading.excepthook, _quiet(threading.excepthook)
        # A queue that is full makes training wait for the disk.
        self._writer = SummaryWriter(str(folder), max_queue=1 << 16, flush_secs=5, purge_step=resumed_from)

    def log(self, values: dict[str, float], samples: int) -> None:
        """Scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, samples)

    def begin(self, settings: dict[str, Any]) -> None:
        """The settings of the run, as text."""
        self._writer.add_text("config", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def end(
        self, settings: dict[str, Any], results: dict[str, float], picture: np.ndarray | None, samples: int
    ) -> None:
        """Settings beside results, for the table of hyper-parameters, and a picture of the policy."""
        from torch.utils.tensorboard.summary import hparams

        plain = {name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                 for name, value in settings.items()}  # fmt: skip
        for summary in hparams(plain, results):  # Not add_hparams, which makes a folder of its own.
            self._writer._get_file_writer().add_summary(summary)
        for tag, value in results.items():
            self._writer.add_scalar(tag, value, samples)
        if picture is not None:
            self._writer.add_image("policy", picture, samples, dataformats="HWC")

    def close(self) -> None:
        """Write what is pending and close."""
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook


def _quiet(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook that leaves out what a disk refuses to the thread that writes events: the next call raises it again."""
    return lambda found: None if isinstance(found.exc_value, OSError) else hook(found)
