"""What a step of the interior point method is made of: errors, factors, Newton's directions and how far to go.

See `interior_point` for the method and its sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite.program import Program, adjoint, terms, values

TINY = 1e-300


class Iterate(NamedTuple):
    """Iterates of a batch, costs scaled by N so that the multipliers of residuals lie in [−1, 1]; or a step of them."""

    z: Tensor
    plus: Tensor
    """u⁺, (batch, N)."""
    minus: Tensor
    """u⁻, (batch, N)."""
    upper: Tensor
    """1 − w, (batch, N)."""
    lower: Tensor
    """1 + w, (batch, N)."""
    X: tuple[Tensor, ...]
    """Slacks of the inequalities, (batch, d, d) each."""
    Y: tuple[Tensor, ...]


class Errors(NamedTuple):
    """How far a point is from an optimum."""

    dual: Tensor
    """c̄ + Aᵀw − L*(Y), (batch, n)."""
    residual: Tensor
    """Az − b − (u⁺ − u⁻), (batch, N)."""
    primal: tuple[Tensor, ...]
    """F(z) − X, (batch, d, d) each."""
    gap: Tensor
    """u⁺ᵀ(1 − w) + u⁻ᵀ(1 + w) + Σ ⟨X, Y⟩, (batch,)."""


def errors(program: Program, point: Iterate) -> Errors:
    """Residuals of the optimality conditions, of a program scaled by `scaled`."""
    w = (point.lower - point.upper) / 2
    dual = program.c + product(program.A.mT, w)
    for block, Y in zip(program.blocks, point.Y, strict=True):
        dual = dual - adjoint(block, Y)
    residual = product(program.A, point.z) - program.b - (point.plus - point.minus)
    primal = tuple(values(block, point.z) - X for block, X in zip(program.blocks, point.X, strict=True))
    return Errors(dual, residual, primal, complementarity(point))


def complementarity(point: Iterate) -> Tensor:
    """u⁺ᵀ(1 − w) + u⁻ᵀ(1 + w) + Σ ⟨X, Y⟩, (batch,)."""
    gap = (point.plus * point.upper + point.minus * point.lower).sum(-1)
    for X, Y in zip(point.X, point.Y, strict=True):
        gap = gap + (X * Y).sum((-2, -1))
    return gap


class Factors(NamedTuple):
    """What both directions of an iteration share."""

    weight: Tensor
    """D, (batch, N)."""
    matrix: Tensor
    """AᵀDA + H, (batch, n, n)."""
    cholesky: Tensor
    X: tuple[Tensor, ...]
    """Cholesky factors of X."""
    inverse: tuple[Tensor, ...]
    """X⁻¹."""
    Y: tuple[Tensor, ...]
    """Cholesky factors of Y."""
    broken: Tensor
    """Whether a factorisation failed, (batch,)."""


def factorise(program: Program, point: Iterate) -> Factors:
    """The Schur complement of a point, and its Cholesky factor."""
    weight = 1 / (point.plus / point.upper + point.minus / point.lower)
    matrix = program.A.mT @ (weight.unsqueeze(-1) * program.A)
    of_X, of_Y, inverses = [], [], []
    broken = torch.zeros(len(point.z), dtype=torch.bool, device=point.z.device)
    for block, X, Y in zip(program.blocks, point.X, point.Y, strict=True):
        factor, failed = _cholesky(X)
        dual_factor, dual_failed = _cholesky(Y)
        inverse = torch.cholesky_inverse(factor)
        # (batch, n, d, d)
        turned = Y.unsqueeze(-3) @ block.L @ inverse.unsqueeze(-3)
        H = turned.flatten(-2) @ block.L.flatten(-2).mT
        matrix = matrix + (H + H.mT) / 2
        broken = broken | failed | dual_failed
        of_X.append(factor)
        of_Y.append(dual_factor)
        inverses.append(inverse)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    most = diagonal.amax(-1, keepdim=True)
    # A variable that nothing holds goes far, but not beyond all numbers.
    matrix = matrix + torch.diag_embed(torch.where(diagonal > 1e-30 * most, TINY, 1e-16 * most.clamp_min(1.0)))
    cholesky, failed = _cholesky(matrix + torch.diag_embed(1e-15 * diagonal))
    stiffer, still = _cholesky(matrix + torch.diag_embed(1e-10 * diagonal + 1e-14 * most))
    cholesky = torch.where(failed[:, None, None], stiffer, cholesky)
    broken = broken | (failed & still)
    return Factors(weight, matrix, cholesky, tuple(of_X), tuple(inverses), tuple(of_Y), broken)


def direction(
    program: Program, point: Iterate, error: Errors, factors: Factors, mu: Tensor, predicted: Iterate | None
) -> Iterate:
    """Newton's step towards complementarity μ, (batch,), with the second order of a predicted step."""
    weight, D = mu.unsqueeze(-1), factors.weight
    upward = weight - point.plus * point.upper
    downward = weight - point.minus * point.lower
    if predicted is not None:
        upward = upward - predicted.plus * predicted.upper
        downward = downward - predicted.minus * predicted.lower
    shift = D * (error.residual - upward / point.upper + downward / point.lower)
    right = -error.dual - product(program.A.mT, shift)
    wanted = []
    for index, (block, Y, inverse) in enumerate(zip(program.blocks, point.Y, factors.inverse, strict=True)):
        second = Y @ error.primal[index]
        if predicted is not None:
            second = second + predicted.Y[index] @ predicted.X[index]
        wanted.append(mu[:, None, None] * inverse - Y - _symmetric(second @ inverse))
        right = right + adjoint(block, wanted[-1])
    dz = _solve(factors, right)
    dw = D * product(program.A, dz) + shift
    plus = (upward + point.plus * dw) / point.upper
    minus = (downward - point.minus * dw) / point.lower
    dX, dY = [], []
    for index, (block, Y, inverse) in enumerate(zip(program.blocks, point.Y, factors.inverse, strict=True)):
        change = terms(block, dz)
        dX.append(error.primal[index] + change)
        dY.append(wanted[index] - _symmetric(Y @ change @ inverse))
    return Iterate(dz, plus, minus, -dw, dw, tuple(dX), tuple(dY))


def _solve(factors: Factors, right: Tensor) -> Tensor:
    """Solution with the Cholesky factor, refined once with the matrix itself."""
    found = torch.cholesky_solve(right.unsqueeze(-1), factors.cholesky)
    rest = right.unsqueeze(-1) - factors.matrix @ found
    return (found + torch.cholesky_solve(rest, factors.cholesky)).squeeze(-1)


def lengths(point: Iterate, step: Iterate, factors: Factors) -> tuple[Tensor, Tensor]:
    """How far the primal and the dual part may go, (batch,) each, at most about 1.1."""
    most = point.z.new_full((len(point.z),), 1.1)
    primal = torch.minimum(most, 1 / _fall(point.plus, step.plus, point.minus, step.minus))
    dual = torch.minimum(most, 1 / _fall(point.upper, step.upper, point.lower, step.lower))
    for X, dX, Y, dY in zip(factors.X, step.X, factors.Y, step.Y, strict=True):
        primal = torch.minimum(primal, _positive_up_to(X, dX))
        dual = torch.minimum(dual, _positive_up_to(Y, dY))
    return primal, dual


def _fall(x: Tensor, dx: Tensor, y: Tensor, dy: Tensor) -> Tensor:
    """Largest relative decrease of positive numbers, (batch,)."""
    if not x.shape[-1]:
        return x.new_full((len(x),), TINY)
    return torch.maximum(-dx / x, -dy / y).amax(-1).clamp_min(TINY)


def _positive_up_to(factor: Tensor, change: Tensor) -> Tensor:
    """A t ≤ 1.1, at most some percent below the largest, with M + t dM ≻ 0; M = factor factorᵀ.

    Tries several t at once: an eigenvalue would synchronise with the host.
    """
    half = torch.linalg.solve_triangular(factor, change, upper=False)
    turned = _symmetric(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    low = (1 / turned.norm(dim=(-2, -1)).clamp_min(TINY)).clamp_max(1.1)
    high = torch.full_like(low, 1.1)
    shares = torch.arange(1, 9, dtype=low.dtype, device=low.device) / 8
    for _ in range(3):
        tried = low.unsqueeze(-1) * (high / low).unsqueeze(-1) ** shares
        _, failed = torch.linalg.cholesky_ex(eye + tried[..., None, None] * turned.unsqueeze(-3))
        passed = (failed == 0).cumprod(-1).sum(-1, keepdim=True)
        bounds = torch.cat((low.unsqueeze(-1), tried), -1)
        low = bounds.gather(-1, passed).squeeze(-1)
        high = torch.maximum(low, bounds.gather(-1, (passed + 1).clamp_max(8)).squeeze(-1))
    return low


def move(point: Iterate, step: Iterate, primal: Tensor, dual: Tensor) -> Iterate:
    """Point + length · step, lengths of the primal and of the dual part, (batch,)."""
    p, d = primal.unsqueeze(-1), dual.unsqueeze(-1)
    return Iterate(
        point.z + p * step.z,
        point.plus + p * step.plus,
        point.minus + p * step.minus,
        point.upper + d * step.upper,
        point.lower + d * step.lower,
        tuple(X + p.unsqueeze(-1) * dX for X, dX in zip(point.X, step.X, strict=True)),
        tuple(Y + d.unsqueeze(-1) * dY for Y, dY in zip(point.Y, step.Y, strict=True)),
    )


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Mv of a batch."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor, the identity where there is none; and where that is, (batch,)."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = (info != 0) | ~torch.isfinite(factor).all((-2, -1))
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(failed[:, None, None], eye, factor), failed
