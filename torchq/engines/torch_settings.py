"""Settings of PyTorch that belong to a run: threads, and the order of sums."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORTH_THREADS = 500_000


@contextmanager
def deterministic(wanted: bool, device: str) -> Iterator[None]:
    """Let PyTorch add in a fixed order on a GPU, where wanted, as it always does on a CPU.

    Elsewhere nothing is touched: PyTorch imports its compiler to change the setting, which takes a second.
    """
    if not wanted or device == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # As cuBLAS asks for.
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Leave the number of CPU threads as it was, whatever a run sets it to."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def limit_threads(work: int) -> None:
    """Compute on one CPU thread where a step is too small to share, unless OMP_NUM_THREADS says otherwise.

    Starting and joining threads costs more than it gives on small steps, and much more beside other programs.

    Args:
        work: elements that one step touches.
    """
    if work < _WORTH_THREADS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
