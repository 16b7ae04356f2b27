"""Replay: transitions kept on the device and learnt from again.

Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching", Machine Learning 8, 1992.
Differs from the paper: [TLR] learns from each transition as it comes, and never again.

The memory of a run is one tensor (seeds, tasks, slots, width). The transitions of a task are numbered as they come,
environments of a step in order; number n lies in slot n modulo slots, and draws are from the latest of them.
There are more slots than that: what is written after a state leaves what that state can draw from as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq import philox
from torchq.lowrank.transitions import Transition

_OTHERS = 3
"""Numbers of a stored transition besides its places: action, reward, discount."""
_LEAST = 1000
"""Transitions that are drawn from, however small a share of all is recent."""


@dataclass(frozen=True)
class Replay:
    """How much is kept, and how often it is drawn.

    Args:
        ratio: updates at each step, each from the step's own transitions and stored ones; at least 1.
        batch: stored transitions of each task in an update, uniformly drawn with replacement; at least 1.
        capacity: the latest transitions of each task that are drawn from at most; at least 1.
        recent: share of all transitions so far, in (0, 1], that is drawn from: the latest, but 1,000 if there are.
            What was learnt from early, by a worse policy in other places, goes out of sight as a run grows.
    """

    ratio: int
    batch: int
    capacity: int
    recent: float = 1.0

    def __post_init__(self) -> None:
        if min(self.ratio, self.batch, self.capacity) < 1:
            came = f"{self.ratio}, {self.batch} and {self.capacity}"
            raise ValueError(f"ratio, batch, capacity: expected at least 1 each, got {came}")
        if not 0.0 < self.recent <= 1.0:
            raise ValueError(f"recent: expected a number above 0 and at most 1, got {self.recent}")

    def available(self, count: Int[Tensor, " steps"]) -> Int[Tensor, " steps"]:
        """How many of so many transitions are drawn from: min(count, capacity, max(⌈recent · count⌉, 1000))."""
        recent = (self.recent * count.double()).ceil().long().clamp(min=_LEAST)
        return torch.minimum(count.clamp(max=self.capacity), recent)

    def own(self, step: Int[Tensor, " steps"], num_envs: int, num_slots: int) -> Int[Tensor, "steps {num_envs}"]:
        """Slots of the transitions that steps bring, by the number of each step from 0."""
        return (step.unsqueeze(-1) * num_envs + torch.arange(num_envs, device=step.device)) % num_slots

    def drawn(
        self, bits: Int[Tensor, steps * batch], step: Int[Tensor, " steps"], num_envs: int, num_slots: int
    ) -> Int[Tensor, steps * batch]:
        """Slots of stored transitions by random words, when those of the step itself are stored."""
        count = (step + 1) * num_envs
        available = self.available(count)
        oldest = (count - available).view(-1, *(1,) * (bits.ndim - 1))
        return (oldest + philox.integers(bits, available.view_as(oldest))) % num_slots


def width(num_modes: int) -> int:
    """Numbers of a stored transition."""
    return 2 * num_modes + _OTHERS


def store(
    memory: Float[Tensor, "seeds tasks slots width"], slots: Int[Tensor, " envs"], transition: Transition
) -> Float[Tensor, "seeds tasks slots width"]:
    """The memory with transitions written into slots, in place."""
    fields = (*transition.state_index, *transition.next_state_index, transition.action)
    record = torch.stack(
        [*(field.to(memory.dtype) for field in fields), transition.reward, transition.discount], dim=-1
    )  # (seeds, tasks, envs, width)
    return memory.index_copy_(2, slots, record)


def recall(
    memory: Float[Tensor, "seeds tasks slots width"], slots: Int[Tensor, "seeds tasks batch"], like: Transition
) -> Transition:
    """Stored transitions, their places whole or fractional as in another transition."""
    index = slots.unsqueeze(-1).expand(*slots.shape, memory.shape[-1])
    fields = memory.gather(2, index).unbind(-1)  # (seeds, tasks, batch) each
    num_modes = len(like.state_index)
    places = [
        field.to(other.dtype) for field, other in zip(fields, (*like.state_index, *like.next_state_index), strict=False)
    ]
    action, reward, discount = fields[-_OTHERS:]
    return Transition(
        tuple(places[:num_modes]), action.to(like.action.dtype), reward, discount, tuple(places[num_modes:])
    )


def joined(first: Transition, second: Transition) -> Transition:
    """The transitions of both, along the axis of environments."""

    def cat(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.cat((ours, theirs), dim=-1)

    return Transition(
        tuple(map(cat, first.state_index, second.state_index)),
        cat(first.action, second.action),
        cat(first.reward, second.reward),
        cat(first.discount, second.discount),
        tuple(map(cat, first.next_state_index, second.next_state_index)),
    )
