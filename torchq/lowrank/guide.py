"""A guide: the policy that a warm start brings, left where the learner's values say that it pays by a margin.

    π(s) = argmaxₐ Q̂(s, a) − m · [a ≠ a_G(s)],   a_G(s) = argmaxₐ G(s, a),   m = M · max(0, 1 − n/n₀)

G is the Q-tensor that a warm start brings, kept as it is; Q̂ learns from nothing, by Q-learning as ever, from what this
policy sees. As Q̂ is first wrong and then less so, the margin m shrinks with the updates n, for the tested policy later
than for the one that behaves. In the spirit of Uchendu et al., "Jump-start reinforcement learning" (ICML 2023), whose
guide plays the first steps of an episode; here it has a say in all of them, by a margin.

Differs from the papers: neither [TLR] nor [LMI] knows a guide; what it gives, and what was tried in its place, is in
benchmarks/results/warm_starts.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Guide(NamedTuple):
    """What a learner's state holds of its guide."""

    factors: tuple[Tensor, ...]
    """Of G, like those of a learner with a row per task."""
    margin: Tensor
    """m of the next choice, ()."""


def margin_after(count: Int[Tensor, ""], margin: float, updates: float) -> Float[Tensor, ""]:
    """M · max(0, 1 − n/n₀), in double precision.

    Args:
        count: n, updates so far.
        margin: M ≥ 0, in units of reward.
        updates: n₀ > 0.
    """
    return margin * (1.0 - count.double() / updates).clamp_min(0.0)


def aged(guide: Guide | tuple[()], count: Int[Tensor, ""], margin: float, updates: float) -> Guide | tuple[()]:
    """A guide, if there is one, with the margin after some updates."""
    return guide and Guide(guide.factors, margin_after(count, margin, updates))


def guided(
    values: Float[Tensor, "*batch actions"], guide_values: Float[Tensor, "*batch actions"], margin: Float[Tensor, ""]
) -> Float[Tensor, "*batch actions"]:
    """Q̂(s, ·) with the margin added to the guide's action, so that the largest is the policy's."""
    chosen = torch.zeros_like(values).scatter(-1, guide_values.argmax(-1, keepdim=True), 1.0)
    return values + margin.to(values.dtype) * chosen
