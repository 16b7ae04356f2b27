"""Tensors for kernels to change, and what the kernels of a run are compiled for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.engines.contract import LearnerState
from torchq.engines.rollout import Rollout
from torchq.lowrank.low_rank_q import LowRankQ

# No fused multiply-adds: a state that is a rounding error off can fall on another grid point than in eager mode.
_STRICT = {"enable_fp_fusion": False}
_GREEDY = ("RESET", "RESET_UNIFORMS", "TERMINATES", "GAMMA")


class Kernels(NamedTuple):
    """A rollout of a low-rank learner, and constants of its kernels by their names."""

    rollout: Rollout
    learner: LowRankQ
    constants: dict[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """For the kernels that train."""
        return self.constants | _STRICT

    @property
    def greedy(self) -> dict[str, Any]:
        """For the kernel that plays greedy episodes, which neither learns nor resets."""
        return {name: value for name, value in self.constants.items() if name not in _GREEDY} | _STRICT

    @property
    def rank(self) -> dict[str, Any]:
        """For the kernel that takes the optimiser's step."""
        return {name: self.constants[name] for name in ("RANK", "RANK_P")} | _STRICT

    def weights(self) -> Tensor:
        """Weight of each task's gradient, with the scale of the loss."""
        weights = self.learner.task_weights or (1.0,) * self.learner.num_tasks
        return self.learner.loss_scale * torch.tensor(weights, dtype=self.rollout.dtype, device=self.rollout.device)


def power_of_two(size: int) -> int:
    """The next power of two, at least 1."""
    return 1 << (size - 1).bit_length()


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies for a kernel to change, made in few launches."""
    given = list(tensors)
    made = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]
    torch._foreach_copy_(made, given)
    return made


def copied_moments(learner: LearnerState) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the first and of the second moments."""
    return copies(moment.first for moment in learner.moments), copies(moment.second for moment in learner.moments)


def on_device(value: int | Tensor, device: torch.device) -> Tensor:
    """A count of steps as a tensor of shape (1,); one that is a tensor stays."""
    return value if isinstance(value, Tensor) else torch.full((1,), value, device=device, dtype=torch.int64)
