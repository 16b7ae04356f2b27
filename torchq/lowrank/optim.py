"""Descent steps on one factor, as pure functions: (factor, gradient, moments) -> (factor, moments).

They are dense: every row of the factor moves by its momentum at every step, as with `torch.optim` on the whole factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Moments(NamedTuple):
    """What an optimiser remembers of the gradients of one factor; empty tensors where it remembers nothing."""

    first: Tensor
    second: Tensor


def sgd(
    factor: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    moments: Moments,
    count: Int[Tensor, ""],
    learning_rate: Float[Tensor, ""],
) -> tuple[Tensor, Moments]:
    """Plain gradient descent F ← F − η G.                                             [TLR, eqs. (6a)–(6c)]"""
    return factor - learning_rate * gradient, moments


def adam(
    factor: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    moments: Moments,
    count: Int[Tensor, ""],
    learning_rate: Float[Tensor, ""],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Tensor, Moments]:
    """Adam as in `torch.optim.Adam`.                                                   [Kingma and Ba 2015, alg. 1]

        m ← β₁m + (1−β₁)G,   v ← β₂v + (1−β₂)G²,   F ← F − η m̂ / (√v̂ + ε)

    Args:
        factor: F.
        gradient: G.
        moments: m and v.
        count: number of this step, from 1.
        learning_rate: η.
        beta1: decay of m per step, in [0, 1).
        beta2: decay of v per step, in [0, 1).
        eps: ε, in units of the gradient.
    """
    first = moments.first + (1 - beta1) * (gradient - moments.first)
    second = beta2 * moments.second + (1 - beta2) * gradient * gradient
    step = count.to(factor.dtype)
    first_hat = first / (1 - beta1**step)
    second_hat = second / (1 - beta2**step)
    return factor - learning_rate * first_hat / (second_hat.sqrt() + eps), Moments(first, second)


def adamax(
    factor: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    moments: Moments,
    count: Int[Tensor, ""],
    learning_rate: Float[Tensor, ""],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Tensor, Moments]:
    """Adamax as in `torch.optim.Adamax`: ε is added to |G| before the maximum.         [Kingma and Ba 2015, alg. 2]

        m ← β₁m + (1−β₁)G,   u ← max(β₂u, |G| + ε),   F ← F − η/(1−β₁ᵗ) · m/u

    Arguments as in `adam`, with u in the place of v.
    """
    first = moments.first + (1 - beta1) * (gradient - moments.first)
    second = torch.maximum(beta2 * moments.second, gradient.abs() + eps)
    step_size = learning_rate / (1 - beta1 ** count.to(factor.dtype))
    return factor - step_size * first / second, Moments(first, second)


OPTIMIZERS: dict[str, Callable[..., tuple[Tensor, Moments]]] = {"sgd": sgd, "adam": adam, "adamax": adamax}


def init_moments(factor: Float[Tensor, "*shape"], optimizer: str) -> Moments:
    """Moments before the first step: zeros of the factor's shape, or empty for an optimiser without memory."""
    if optimizer == "sgd":
        return Moments(factor.new_zeros(0), factor.new_zeros(0))
    return Moments(torch.zeros_like(factor), torch.zeros_like(factor))
