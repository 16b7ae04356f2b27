"""Stored transitions on disk: each is written once, in segments that the checkpoint lists.

A checkpoint of a run with replay adds one file `replay-FIRST-END.safetensors`, with the transitions of each task that
came since the one before, by their numbers (see `torchq.lowrank.replay`); files that no longer hold any that can be
drawn go. So a run that saves every few seconds writes no transition twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from torchq.checkpoint import write_atomically
from torchq.errors import CheckpointError

_SEGMENT_BYTES = 1 << 28
"""Of a file, about: writing one takes twice its size of memory, and a million tasks may hold most of that already."""


class Segment(NamedTuple):
    """Consecutive transitions of every task in one file."""

    first: int
    """Number of the first of them."""
    end: int
    """Number of the one after the last."""
    sha256: str
    """Digest of the file."""

    def name(self, which: str) -> str:
        """Of the file, of a run or of one process's part of it."""
        return f"replay-{self.first:012d}-{self.end:012d}{which and '-' + which}.safetensors"


class Overlap(NamedTuple):
    """What of the transitions in a log a memory has room for."""

    shape: tuple[int, int]
    """Seeds and tasks of the log."""
    seeds: slice
    tasks: slice


class ReplayLog:
    """The segments of one run, in order.

    Args:
        folder: the `checkpoint/` folder of the run.
        capacity: the latest transitions of each task that are drawn from.
        listed: segments as a checkpoint lists them.
        which: part of the run that they are of, such as "0of4"; "" of all of it.

    Raises:
        CheckpointError: if they are no list of segments.
    """

    def __init__(self, folder: Path, capacity: int, listed: Any = (), which: str = "") -> None:
        self._folder, self._capacity, self._which = folder, capacity, which
        try:
            self._segments = [Segment(int(first), int(end), str(digest)) for first, end, digest in listed]
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: its list of replay segments is corrupted ({error!r})") from error

    def append(self, memory: Tensor, count: int) -> list[Segment]:
        """Write what came since the last segment, and list those that a run needs to go on.

        Args:
            memory: (seeds, tasks, slots, width).
            count: transitions of each task so far.
        """
        oldest = max(0, count - self._capacity)
        first = max(oldest, self._segments[-1].end if self._segments else 0)
        at_once = max(1, _SEGMENT_BYTES // (memory[:, :, :1].numel() * memory.element_size()))
        for begin in range(first, count, at_once):
            self._segments.append(self._write(memory, begin, min(count, begin + at_once)))
        self._segments = [segment for segment in self._segments if segment.end > oldest]
        return list(self._segments)

    def _write(self, memory: Tensor, first: int, end: int) -> Segment:
        slots = torch.arange(first, end, device=memory.device) % memory.shape[2]
        content = save({"transitions": memory.index_select(2, slots).cpu().contiguous()})
        segment = Segment(first, end, hashlib.sha256(content).hexdigest())
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._folder / segment.name(self._which), content)
        return segment

    @property
    def names(self) -> set[str]:
        """Of the files that are listed."""
        return {segment.name(self._which) for segment in self._segments}

    def restore(self, memory: Tensor, count: int, overlap: Overlap | None = None) -> None:
        """Write the transitions that can be drawn after `count` of them into a memory.

        Args:
            memory: (seeds, tasks, slots, width).
            count: transitions of each task so far.
            overlap: which of the log's seeds and tasks they are; None: all of them.

        Raises:
            CheckpointError: if some are missing or damaged.
        """
        oldest = max(0, count - self._capacity)
        known = oldest
        overlap = overlap or Overlap((memory.shape[0], memory.shape[1]), slice(None), slice(None))
        for segment in self._segments:
            transitions = self._read(segment, memory, overlap.shape)[overlap.seeds, overlap.tasks]
            if segment.first > known or segment.end > count:
                break
            slots = torch.arange(segment.first, segment.end, device=memory.device)[-memory.shape[2] :] % memory.shape[2]
            memory.index_copy_(2, slots, transitions[:, :, -len(slots) :].to(memory.device))
            known = segment.end
        if known != count:
            raise CheckpointError(
                f"checkpoint: expected replay segments of transitions {oldest} to {count}, got them up to {known}; "
                "start a new run"
            )

    def _read(self, segment: Segment, memory: Tensor, shape: tuple[int, int]) -> Tensor:
        path = self._folder / segment.name(self._which)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != segment.sha256:
                raise CheckpointError(f"checkpoint: {path} is truncated or corrupted (wrong SHA-256); start a new run")
            transitions = load(content)["transitions"]
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint: {path} is missing or corrupted ({error}); start a new run") from error
        expected = (*shape, segment.end - segment.first, memory.shape[3])
        if transitions.shape != expected or transitions.dtype != memory.dtype:
            came = f"{tuple(transitions.shape)} {transitions.dtype}"
            raise CheckpointError(f"checkpoint: expected transitions {expected} {memory.dtype} in {path}, got {came}")
        return transitions


def clean(folder: Path, names: set[str]) -> None:
    """Remove the files that no log lists, once a checkpoint says so."""
    for path in folder.glob("*replay-*.safetensors*"):
        if path.name not in names:
            path.unlink(missing_ok=True)
