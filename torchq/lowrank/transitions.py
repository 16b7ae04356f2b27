"""What a learner sees of the world."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Transition(NamedTuple):
    """One step of a batch of environments, shapes (seeds, tasks, envs), on the grid of the learner."""

    state_index: tuple[Tensor, ...]
    """Row of each state mode before the step."""
    action: Tensor
    """Number of the action taken; several action modes are flattened, the last one fastest."""
    reward: Tensor
    """r, in units of the environment's reward."""
    discount: Tensor
    """γ, or 0 where the step terminated (a truncated one keeps γ)."""
    next_state_index: tuple[Tensor, ...]
    """Row of each state mode after the step, before any reset."""
