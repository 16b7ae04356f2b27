"""What a learner sees of the world."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Transition(NamedTuple):
    """One step of a batch of environments, shapes (seeds, tasks, envs), on the grid of the learner."""

    state_index: tuple[Tensor, ...]
    """Place along each state mode before the step: a row, or a fraction between two; see `modes`."""
    action: Tensor
    """Number of the action taken; several action modes are flattened, the last one fastest."""
    reward: Tensor
    """r, in units of the environment's reward."""
    discount: Tensor
    """γ, or 0 where the step terminated (a truncated one keeps γ)."""
    next_state_index: tuple[Tensor, ...]
    """Place along each state mode after the step, before any reset."""

    def check(self, seeds: int, tasks: int, num_modes: int) -> None:
        """See that every field is shaped (seeds, tasks, envs), which would broadcast silently if it were not.

        Args:
            seeds: runs of the learner's state.
            tasks: of the batch.
            num_modes: state modes of the learner.

        Raises:
            ValueError: naming the first field that is not.
        """
        shape = (seeds, tasks, *self.reward.shape[2:])
        rows = {"state_index": self.state_index, "next_state_index": self.next_state_index}
        for name, indices in rows.items():
            if len(indices) != num_modes:
                raise ValueError(f"{name}: expected {num_modes} tensors, one per state mode, got {len(indices)}")
        fields = {"reward": (self.reward,), "action": (self.action,), "discount": (self.discount,), **rows}
        for name, tensors in fields.items():
            for tensor in tensors:
                if tensor.shape != shape or len(shape) != 3:
                    expected = f"the shape ({seeds} seeds, {tasks} tasks, envs), alike in all fields"
                    raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")
