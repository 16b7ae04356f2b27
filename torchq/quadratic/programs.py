"""The semidefinite programs of [LMI] as batches of small ones, in their parameters z = (triu P, S, triu R, triu W)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from torchq.quadratic.forms import from_triangle, to_triangle, triangle_size, unpack
from torchq.semidefinite.program import Block, Program

CONTROL_FLOOR = 1e-4
"""ε_R: R ⪰ ε_R I stands for the paper's strict R ≻ 0."""


def relaxation(G: Tensor, y: Tensor, bound: Tensor, penalty: Tensor, p: int, m: int) -> Program:
    """The convex relaxation with its penalty.                                          [LMI, eqs. (15), (16), (18)]

        min  mean |Gz + y| + λ tr(MW)   s.t.  [[W, S], [Sᵀ, R]] ⪰ 0,  B − P − W ⪰ 0,  R ⪰ ε_R I

    Args:
        G: residual matrix, (*batch, samples, parameters), from `forms.residual_system`.
        y: residual offset, (*batch, samples).
        bound: B, (*batch, p, p): zero keeps Θ ⪰ 0 (`dev`); EᵀP_bE bounds the whole value instead (`tot`).
        penalty: λM, (*batch, p, p); zero gives the lower bound.
        p: features.
        m: controls.
    """
    schur, below, floor = (L.to(G.device) for L in _relaxed_terms(p, m))
    # ⟨λM, W⟩ in the entries of triu W: those off the diagonal count twice.
    weights = to_triangle(2 * penalty - torch.diag_embed(penalty.diagonal(dim1=-2, dim2=-1)))
    c = torch.nn.functional.pad(weights, (G.shape[-1] - triangle_size(p), 0))
    return Program(c, G, -y, (Block(_zero(p + m, G), schur), Block(bound, below), _floor(floor, m, G)))


def fitted(G: Tensor, y: Tensor, bound: Tensor, p: int, m: int) -> Program:
    """One iteration of LMI-QLi.                                                          [LMI, eq. (14)]

        min  mean |Gz + y|   s.t.  [[B − P, S], [Sᵀ, R]] ⪰ 0,  R ⪰ ε_R I

    Arguments as in `relaxation`, G and y from `forms.fitted_system`.
    """
    schur, floor = (L.to(G.device) for L in _fitted_terms(p, m))
    C = torch.nn.functional.pad(bound, (0, m, 0, m))
    return Program(G.new_zeros(G.shape[-1]), G, -y, (Block(C, schur), _floor(floor, m, G)))


@lru_cache(maxsize=64)
def _relaxed_terms(p: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """L of the Schur block, of B − P − W and of R, each (parameters, d, d)."""
    count = 2 * triangle_size(p) + p * m + triangle_size(m)
    unit = torch.eye(count, dtype=torch.float64)
    (P, S, R), W = unpack(unit, p, m), from_triangle(unit[:, -triangle_size(p) :], p)
    return _schur(W, S, R), -P - W, R


@lru_cache(maxsize=64)
def _fitted_terms(p: int, m: int) -> tuple[Tensor, Tensor]:
    """L of the Schur block and of R, each (parameters, d, d)."""
    P, S, R = unpack(torch.eye(triangle_size(p) + p * m + triangle_size(m), dtype=torch.float64), p, m)
    return _schur(-P, S, R), R


def _schur(upper: Tensor, S: Tensor, R: Tensor) -> Tensor:
    """[[U, S], [Sᵀ, R]]."""
    return torch.cat((torch.cat((upper, S), -1), torch.cat((S.mT, R), -1)), -2)


def _floor(L: Tensor, m: int, like: Tensor) -> Block:
    return Block(-CONTROL_FLOOR * torch.eye(m, dtype=like.dtype, device=like.device), L)


def _zero(size: int, like: Tensor) -> Tensor:
    return torch.zeros(size, size, dtype=like.dtype, device=like.device)
