"""Temporal-difference learning: target, error and the semi-gradient of one entry of a CP tensor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def td_target(
    reward: Float[Tensor, "*batch"],
    discount: Float[Tensor, "*batch"],
    next_action_values: Float[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """One-step Q-learning target r + γ maxₐ Q(s′, a).                                [TLR, eq. (5b)]

    Args:
        reward: r.
        discount: γ, or 0 where the transition terminated; a truncated one keeps γ.
        next_action_values: Q(s′, ·).
    """
    return reward + discount * next_action_values.detach().amax(-1)


def td_error(
    q: Float[Tensor, "*batch"],
    reward: Float[Tensor, "*batch"],
    discount: Float[Tensor, "*batch"],
    next_action_values: Float[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """One-step Q-learning error of the actions taken.

        δ = r + γ maxₐ Q(s′, a) − Q(s, a)                                              [TLR, eq. (5b)]

    Target minus prediction; the target is detached (semi-gradient).
    """
    return td_target(reward, discount, next_action_values) - q


def semi_gradient(
    error: Float[Tensor, "*batch"], cofactor: Float[Tensor, "*batch rank"]
) -> Float[Tensor, "*batch rank"]:
    """Semi-gradient of ½δ² with respect to the visited row of one factor.

        ∂(½δ²)/∂F[i, :] = −δ · ∏ (the other factors' visited rows)                     [TLR, eqs. (6a)–(6c)]

    That of all other rows is zero.
    """
    return -error.unsqueeze(-1) * cofactor


def normalised_semi_gradient(
    error: Float[Tensor, "*batch"], cofactor: Float[Tensor, "*batch rank"], damping: float = 1e-3
) -> Float[Tensor, "*batch rank"]:
    """Semi-gradient divided by the squared length of its direction (normalised LMS; Nagumo and Noda 1967).

        −δ · g / (‖g‖² + c),   g = ∏ (the other factors' visited rows)

    With c → 0 and step size 1, one step moves Q(s, a) all the way to its target whatever the scale of the factors.

    Args:
        error: δ.
        cofactor: g.
        damping: c > 0, in units of ‖g‖².
    """
    squared_norm = torch.sum(cofactor * cofactor, dim=-1, keepdim=True)
    return -error.unsqueeze(-1) * cofactor / (squared_norm + damping)
