"""How steps are executed: plain PyTorch, torch.compile, CUDA graphs (`graph`), or whole episodes at once (`fused`)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from torchq.errors import UsageError

ENGINES = ("auto", "eager", "compile", "graph", "fused")

_WORTH_COMPILING = 10_000
_WORTH_THREADS = 500_000


def choose(engine: str, device: torch.device, num_steps: int, obstacles: Mapping[str, Callable[[], str | None]]) -> str:
    """The engine that `auto` stands for: the first of fused, graph and compile that works, for long runs; else eager.

    Args:
        engine: as asked for.
        device: where the run computes.
        num_steps: steps of the run; short ones do not repay a compiler.
        obstacles: of fused and graph, what keeps it from running this problem, or None.

    Raises:
        UsageError: if an engine is asked for by name and does not work.
    """
    if engine == "eager" or (engine == "auto" and num_steps < _WORTH_COMPILING):
        return "eager"
    tests: dict[str, Callable[[], str | None]] = {**obstacles, "compile": lambda: compile_obstacle(device)}
    if engine in tests:
        if obstacle := tests[engine]():
            raise UsageError(f"--engine: {engine} does not work here ({obstacle}); use auto")
        return engine
    for name, test in tests.items():
        if (obstacle := test()) is None:
            return name
    warnings.warn(f"torch.compile does not work here, so the engine is eager ({obstacle})", stacklevel=2)
    return "eager"


def compile_obstacle(device: torch.device) -> str | None:
    """What keeps torch.compile from working, found by trying: it needs a C++ compiler and Python's headers, or Triton.

    Args:
        device: where to compute.

    Returns:
        One line, or None if it works.
    """
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # Whatever the back end raises, the eager engine does without it.
        return str(error).strip().partition("\n")[0]
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x + 1.0) * x


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let PyTorch add in a fixed order on a GPU, where wanted, as it always does on a CPU."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # As cuBLAS asks for.
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def limit_threads(work: int) -> None:
    """Compute on one CPU thread where a step is too small to share, unless OMP_NUM_THREADS says otherwise.

    Starting and joining threads costs more than it gives on small steps, and much more beside other programs.

    Args:
        work: elements that one step touches.
    """
    if work < _WORTH_THREADS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def prepare(function: Callable[..., Any], engine: str) -> Callable[..., Any]:
    """The function itself, or one compiled on its first call for the shapes it meets there."""
    if engine == "compile":
        return torch.compile(function, dynamic=False, fullgraph=True)
    return function
