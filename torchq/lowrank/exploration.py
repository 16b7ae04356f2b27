"""Behaviour policy: ε-greedy choice and schedules."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def epsilon_greedy(
    action_values: Float[Tensor, "*batch actions"],
    epsilon: Float[Tensor, ""],
    explore: Float[Tensor, "*batch"],
    random_action: Int[Tensor, "*batch"],
) -> Int[Tensor, "*batch"]:
    """ε-greedy actions: the random one where explore < ε, else the first action of largest value.

    Args:
        action_values: Q(s, ·).
        epsilon: ε in [0, 1].
        explore: uniform numbers in [0, 1).
        random_action: uniform actions.
    """
    return torch.where(explore < epsilon, random_action, action_values.argmax(-1))


def exponential_decay(
    count: Float[Tensor, "*batch"], start: float, end: float, decay: float
) -> Float[Tensor, "*batch"]:
    """max(end, start · decayⁿ) after n transitions: multiplied by `decay` each time, down to a floor.

    Args:
        count: n ≥ 0.
        start: value at n = 0.
        end: floor.
        decay: factor per transition, in (0, 1].
    """
    return (start * decay**count).clamp_min(end)


def harmonic_decay(count: Float[Tensor, "*batch"], start: float, half_life: float) -> Float[Tensor, "*batch"]:
    """Start / (1 + n/h): half at n = h, and slowly enough for its sum to diverge (Robbins and Monro 1951).

    Args:
        count: n ≥ 0, samples so far.
        start: value at n = 0.
        half_life: h > 0 in samples; infinity keeps the start value.
    """
    return start / (1.0 + count / half_life)
