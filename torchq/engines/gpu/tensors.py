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
STRICT = {"enable_fp_fusion": False}


class FamilyConstants(NamedTuple):
    """What kernels know of a family: its generated functions, and how many numbers these take."""

    OBSERVE: Any
    STEP: Any
    RESET: Any
    DIMENSIONS: int
    FIELDS: int
    PARAMETERS: int
    STEP_UNIFORMS: int
    RESET_UNIFORMS: int
    TERMINATES: bool


class ModelConstants(NamedTuple):
    """What kernels know of a learner and its grid; a name with _P is padded to a power of two."""

    LOW: tuple[float, ...]
    HIGH: tuple[float, ...]
    GRID: tuple[int, ...]
    KINDS: tuple[int, ...]
    """How each dimension is interpolated, by the order of `torchq.lowrank.modes.KINDS`; 0 where one row is active."""
    JOINT: bool
    SIZES: tuple[int, ...]
    """Rows of each mode."""
    SIZES_P: tuple[int, ...]
    """Rows that are moved together."""
    HAS_TASK: int
    ACTION: int
    """Which mode is that of the action: the last."""
    ACTIONS: int
    ACTIONS_P: int
    RANK: int
    RANK_P: int
    SWEEPS: int
    GAMMA: float
    ADAM: bool
    TARGET_RATE: float
    """τ of the target tensor, 0 where there is none."""
    GUIDE: bool
    """Whether a guide has a say in what is done."""


class Kernels(NamedTuple):
    """A rollout of a low-rank learner, and what its kernels are compiled for."""

    rollout: Rollout
    learner: LowRankQ
    family: FamilyConstants
    model: ModelConstants

    @property
    def constants(self) -> dict[str, Any]:
        """For the kernels that step environments."""
        return {"FAMILY": self.family, "MODEL": self.model, **STRICT}

    def weights(self) -> Tensor:
        """Weight of each task's gradient, with the scale of the loss."""
        weights = self.learner.task_weights or (1.0,) * self.learner.num_tasks
        return self.learner.loss_scale * torch.tensor(weights, dtype=self.rollout.dtype, device=self.rollout.device)


def kernel_sizes(learner: LowRankQ) -> tuple[int, ...]:
    """Rows of each mode as the kernels know them: a row per task, also where it is made up of its parameters' rows."""
    tasks = (learner.num_tasks,) if learner.has_task_mode else ()
    return (*tasks, *learner.state_sizes, *learner.action_sizes)


def power_of_two(size: int) -> int:
    """The next power of two, at least 1."""
    return 1 << (size - 1).bit_length()


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies for a kernel to change, made in few launches."""
    given = list(tensors)
    if not given:
        return []
    made = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]
    torch._foreach_copy_(made, given)
    return made


def copied_moments(learner: LearnerState) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the first and of the second moments."""
    return copies(moment.first for moment in learner.moments), copies(moment.second for moment in learner.moments)


def on_device(value: int | Tensor, device: torch.device) -> Tensor:
    """A count of steps as a tensor of shape (1,); one that is a tensor stays."""
    return value if isinstance(value, Tensor) else torch.full((1,), value, device=device, dtype=torch.int64)
