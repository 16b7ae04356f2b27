"""What a trained tensor says about its tasks and modes, from the factors alone: the tensor is never built.

    ⟨Q[i, …], Q[j, …]⟩ = F[i, :] G F[j, :]ᵀ,   G = ∏_d F_dᵀF_d over the other modes   [Kolda and Bader 2009, §3]

for the slices i and j along the mode with factor F. Factors are (size, rank), one for each mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Factors = Sequence[Float[Tensor, "_ rank"]]


class Components(NamedTuple):
    """The rank-one terms of a tensor, the largest first."""

    weights: Float[Tensor, " rank"]
    """‖∏_d F_d[:, k]‖, the norm of each."""
    columns: tuple[Float[Tensor, "_ rank"], ...]
    """Of each mode, of norm 1; all but the last sum to 0 or more."""


def inner_products(factors: Factors, mode: int) -> Float[Tensor, "size size"]:
    """⟨Q[i, …], Q[j, …]⟩ of all slices along a mode."""
    return factors[mode] @ _gram(factors, mode) @ factors[mode].mT


def means(factors: Factors, mode: int) -> Float[Tensor, " size"]:
    """Mean entry of each slice along a mode, F ∏_d mean(F_d)."""
    others = [factor.mean(0) for other, factor in enumerate(factors) if other != mode]
    return factors[mode] @ reduce(torch.mul, others)


def correlation(factors: Factors, mode: int) -> Float[Tensor, "size size"]:
    """Pearson correlation of the entries of any two slices along a mode, in [−1, 1]; 0 with a constant slice.

    Args:
        factors: of all modes.
        mode: whose slices to compare: with the task mode, the Q-functions of the tasks.
    """
    entries = torch.tensor([float(len(factor)) for other, factor in enumerate(factors) if other != mode]).prod()
    mean, squares = means(factors, mode), inner_products(factors, mode)
    covariance = squares / entries.to(mean) - mean.unsqueeze(1) * mean
    # What rounding leaves of a constant slice is none.
    variance = torch.where(covariance.diagonal() > 1e-12 * squares.diagonal() / entries, covariance.diagonal(), 0.0)
    scale = torch.where(variance > 0.0, variance.rsqrt(), 0.0)
    return (covariance * scale.unsqueeze(1) * scale).clamp(-1.0, 1.0)


def advantages(factors: Factors, mode: int) -> tuple[Float[Tensor, "_ rank"], ...]:
    """Factors of Q minus its mean over one mode: over the actions, what tells one action from another."""
    centred = factors[mode] - factors[mode].mean(0)
    return tuple(centred if other == mode else factor for other, factor in enumerate(factors))


def singular_values(factors: Factors, mode: int) -> Float[Tensor, " least"]:
    """Singular values of the unfolding along a mode, the largest first; min(size, rank) of them."""
    values, vectors = torch.linalg.eigh(_gram(factors, mode))
    root = vectors * values.clamp_min(0.0).sqrt()
    return torch.linalg.svdvals(factors[mode] @ root)


def effective_rank(values: Float[Tensor, " n"]) -> float:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σ σ: how many singular values count.              [Roy and Vetterli 2007]"""
    share = values[values > 0.0] / values.sum()
    return float((-(share * share.log()).sum()).exp()) if len(share) else 0.0


def components(factors: Factors) -> Components:
    """The rank-one terms by their norm, with columns of norm 1 and their signs in the last mode."""
    norms = [factor.norm(dim=0) for factor in factors]
    weights = reduce(torch.mul, norms)
    order = weights.argsort(descending=True)
    columns = [factor / torch.where(norm > 0.0, norm, 1.0) for factor, norm in zip(factors, norms, strict=True)]
    signs = [torch.where(column.sum(0) < 0.0, -1.0, 1.0).to(column.dtype) for column in columns[:-1]]
    columns[:-1] = [column * sign for column, sign in zip(columns[:-1], signs, strict=True)]
    columns[-1] = reduce(torch.mul, signs, columns[-1])
    return Components(weights[order], tuple(column[:, order] for column in columns))


def _gram(factors: Factors, mode: int) -> Float[Tensor, "rank rank"]:
    """G, the Hadamard product of the other modes' Gram matrices."""
    return reduce(torch.mul, [factor.mT @ factor for other, factor in enumerate(factors) if other != mode])
