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


class Segment(NamedTuple):
    """Consecutive transitions of every task in one file."""

    first: int
    """Number of the first of them."""
    end: int
    """Number of the one after the last."""
    sha256: str
    """Digest of the file."""

    @property
    def name(self) -> str:
        """Of the file."""
        return f"replay-{self.first:012d}-{self.end:012d}.safetensors"


class ReplayLog:
    """The segments of one run, in order.

    Args:
        folder: the `checkpoint/` folder of the run.
        capacity: the latest transitions of each task that are drawn from.
        listed: segments as a checkpoint lists them.

    Raises:
        CheckpointError: if they are no list of segments.
    """

    def __init__(self, folder: Path, capacity: int, listed: Any = ()) -> None:
        self._folder, self._capacity = folder, capacity
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
        if first < count:
            slots = torch.arange(first, count, device=memory.device) % memory.shape[2]
            content = save({"transitions": memory.index_select(2, slots).cpu().contiguous()})
            segment = Segment(first, count, hashlib.sha256(content).hexdigest())
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._folder / segment.name, content)
            self._segments.append(segment)
        self._segments = [segment for segment in self._segments if segment.end > oldest]
        return list(self._segments)

    def clean(self) -> None:
        """Remove the files that are not listed, once a checkpoint says so."""
        names = {segment.name for segment in self._segments}
        for path in self._folder.glob("*replay-*.safetensors*"):
            if path.name not in names:
                path.unlink()

    def restore(self, memory: Tensor, count: int) -> None:
        """Write the transitions that can be drawn after `count` of them into a memory.

        Raises:
            CheckpointError: if some are missing or damaged.
        """
        oldest = max(0, count - self._capacity)
        known = oldest
        for segment in self._segments:
            transitions = self._read(segment, memory)
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

    def _read(self, segment: Segment, memory: Tensor) -> Tensor:
        path = self._folder / segment.name
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != segment.sha256:
                raise CheckpointError(f"checkpoint: {path} is truncated or corrupted (wrong SHA-256); start a new run")
            transitions = load(content)["transitions"]
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint: {path} is missing or corrupted ({error}); start a new run") from error
        expected = (*memory.shape[:2], segment.end - segment.first, memory.shape[3])
        if transitions.shape != expected or transitions.dtype != memory.dtype:
            came = f"{tuple(transitions.shape)} {transitions.dtype}"
            raise CheckpointError(f"checkpoint: expected transitions {expected} {memory.dtype} in {path}, got {came}")
        return transitions
