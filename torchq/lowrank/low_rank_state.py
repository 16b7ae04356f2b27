"""What a low-rank learner knows: factors, their moments, and where its tasks lie."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq import philox
from torchq.lowrank.optim import Moments


class LowRankState(NamedTuple):
    """Factors in the order tasks (stlrq only), states, actions, each (seeds, groups, size, rank), and their moments."""

    factors: tuple[Tensor, ...]
    moments: tuple[Moments, ...]
    num_updates: Tensor
    """Optimiser steps that each factor has taken; int64 of shape ()."""
    target: tuple[Tensor, ...] = ()
    """Factors of the target tensor, like `factors`; () where there is none."""
    task_places: tuple[Tensor, ...] = ()
    """Where the tasks lie along each task mode, (tasks,), see `task_modes`: those that learn come first, others that
    are tested may follow; () where every task has a row."""
    guide: Any = ()
    """The `Guide` that a warm start brings; () where there is none."""
    fit: Any = ()
    """The `RowFit` of rows that are fitted to samples; () where they learn step by step."""


def kept_factors(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Factors of what a checkpoint's learner tests and keeps: the target tensor's, with the best rows of fits."""
    kind = "target" if "learner.target.0" in tensors else "factors"
    count = sum(name.startswith(f"learner.{kind}.") for name in tensors)
    factors = [tensors[f"learner.{kind}.{mode}"] for mode in range(count)]
    return [tensors["learner.fit.best"].unsqueeze(1), *factors[1:]] if "learner.fit.best" in tensors else factors


def normal_factor(
    seeds: Int[Tensor, " seeds"], mode: int, groups: int, size: int, rank: int
) -> Float[Tensor, "seeds {groups} {size} {rank}"]:
    """Standard normal numbers; row i of a group's factor depends on seed, mode, group and row."""
    device = seeds.device
    step, group = torch.full((1,), mode, device=device), torch.arange(groups, device=device)
    bits = philox.random_bits(seeds, step, philox.Purpose.INIT, group, torch.arange(size, device=device), 2 * rank)[0]
    first, second = philox.uniform(bits, torch.float64).chunk(2, dim=-1)
    return philox.normal(first, second)[0]


@cache
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of numbers, made once and kept: a CUDA graph cannot copy it to the device, and goes on reading it."""
    return torch.tensor(values, device=device, dtype=dtype)
