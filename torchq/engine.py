"""How a step is executed: `eager` is plain PyTorch, `compile` fuses the whole step with torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

ENGINES = ("auto", "eager", "compile")

_WORTH_COMPILING = 10_000


def choose(engine: str, device: torch.device, num_steps: int) -> str:
    """The engine that `auto` stands for: `compile` for runs long enough to repay it, if the machine can compile.

    Args:
        engine: as asked for; anything but "auto" is returned as it is.
        device: where the run computes.
        num_steps: steps of the run.
    """
    if engine != "auto":
        return engine
    return "compile" if num_steps >= _WORTH_COMPILING and can_compile(device) else "eager"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds its back end: Triton for a GPU, a C++ compiler for the CPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def prepare(function: Callable[..., Any], engine: str) -> Callable[..., Any]:
    """The function itself, or one compiled on its first call for the shapes it meets there."""
    if engine == "compile":
        return torch.compile(function, dynamic=False, fullgraph=True)
    return function
