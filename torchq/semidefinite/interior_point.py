"""A primal-dual interior point method for batches of small semidefinite programs, in torch operations.

Predictor and corrector of Mehrotra (1992) along the HKM direction (Helmberg, Rendl, Vanderbei and Wolkowicz 1996;
Kojima, Shindoh and Hara 1997; Monteiro 1997), from an infeasible start (Todd, Toh and Tütüncü 1998). A residual is
split into u = u⁺ − u⁻, whose multipliers 1 − w and 1 + w are kept apart so that the small one keeps its digits;
eliminating these leaves one n × n system an iteration:

    (AᵀDA + H) dz = g,   D = 1/(u⁺/(1−w) + u⁻/(1+w)),   H_kl = Σ_j ⟨L_jk, Y_j L_jl X_j⁻¹⟩

Differs from the paper: Mehrotra centres by the cube of the predicted ratio of gaps, here its power is 1.5.

Written for GPUs: a fixed number of iterations, no synchronisation with the host, instances that are done are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchq.semidefinite.program import Block, Point, Program
from torchq.semidefinite.quality import FAR, POOR
from torchq.semidefinite.scaling import scaled
from torchq.semidefinite.steps import (
    TINY,
    Errors,
    Iterate,
    complementarity,
    direction,
    errors,
    factorise,
    lengths,
    move,
    product,
)


def start(program: Program) -> Iterate:
    """Where to begin: z = 0, w = 0, multiples of the identity of the data's size.      [Todd, Toh and Tütüncü 1998]"""
    c, _, b, blocks = program
    size = b.abs().mean(-1, keepdim=True) + 1e-8 if program.num_residuals else None
    plus, minus = (b, b) if size is None else ((-b).clamp_min(0) + size, b.clamp_min(0) + size)
    X, Y = [], []
    for block in blocks:
        rows = block.C.shape[-1]
        eye = torch.eye(rows, dtype=c.dtype, device=c.device)
        norms = block.L.norm(dim=(-2, -1))
        of_X = torch.maximum(norms.amax(-1).expand(len(c)), block.C.norm(dim=(-2, -1))).clamp_min(1.0)
        of_Y = ((1 + c.abs()) / (1 + norms)).amax(-1)
        X.append(rows**0.5 * of_X[:, None, None] * eye)
        Y.append(rows**0.5 * of_Y[:, None, None] * eye)
    one = torch.ones_like(b)
    return Iterate(torch.zeros_like(c), plus, minus, one, one, tuple(X), tuple(Y))


def iterate(program: Program, point: Iterate, error: Errors) -> tuple[Iterate, Tensor]:
    """One predictor and corrector; the new point, and where a factorisation failed, (batch,)."""
    count = max(1, 2 * program.num_residuals + sum(X.shape[-1] for X in point.X))
    factors = factorise(program, point)
    mu = error.gap / count
    predicted = direction(program, point, error, factors, torch.zeros_like(mu), None)
    primal, dual = (length.clamp_max(1.0) for length in lengths(point, predicted, factors))
    # Rounding may take it below zero.
    ratio = (complementarity(move(point, predicted, primal, dual)) / error.gap.clamp_min(TINY)).clamp_min(0.0)
    centring = (ratio**1.5).clamp(1e-8, 1.0)
    step = direction(program, point, error, factors, centring * mu, predicted)
    primal, dual = lengths(point, step, factors)
    share = (1 - 0.1 * ratio).clamp(0.9, 0.995)
    return move(point, step, (share * primal).clamp_max(1.0), (share * dual).clamp_max(1.0)), factors.broken


def merit(program: Program, point: Iterate, error: Errors, tolerance: float) -> Tensor:
    """Largest of gap, dual and primal error, each relative to the data, over the tolerance, (batch,)."""
    c, A, b, blocks = program
    count = max(1, program.num_residuals)
    cost = (c * point.z).sum(-1) + (product(A, point.z) - b).abs().sum(-1)
    size = _or_one(b.abs().mean(-1)).clamp_max(1.0) if program.num_residuals else torch.ones_like(cost)
    gap = error.gap / (cost.abs() + count * size + TINY)
    dual = _largest(error.dual) / _or_one(_largest(c) + _largest(A.abs().sum(-2)))
    worst = torch.maximum(gap, dual)
    if program.num_residuals:
        worst = torch.maximum(worst, error.residual.abs().amax(-1) / _or_one(b.abs().amax(-1)))
    for block, left in zip(blocks, error.primal, strict=True):
        worst = torch.maximum(worst, left.abs().amax((-2, -1)) / (1 + block.C.abs().amax((-2, -1))))
    return torch.nan_to_num(worst / tolerance, nan=torch.inf)


def _largest(x: Tensor) -> Tensor:
    """Of no numbers it is zero."""
    return torch.nn.functional.pad(x.abs(), (0, 1)).amax(-1)


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


def solve(program: Program, batch: int, tolerance: float, iterations: int) -> Point:
    """Solve a batch where its tensors are; each instance keeps its best point, and stands once it is solved.

    Args:
        program: float64, everything with a batch dimension or without.
        batch: instances.
        tolerance: of the merit.
        iterations: always taken.
    """
    count = max(1, program.num_residuals)
    (c, A, b, blocks), of_blocks, of_variables, of_cost = scaled(program)
    blocks = tuple(Block(C.expand(batch, -1, -1), L) for C, L in blocks)
    program = Program(count * c.expand(batch, -1), A.expand(batch, -1, -1), b.expand(batch, -1), blocks)
    at = start(program)
    error = errors(program, at)
    best, least = at, merit(program, at, error, tolerance)
    stands = least <= 1
    taken = torch.zeros_like(least, dtype=torch.int64)
    for _ in range(iterations):
        new, broken = iterate(program, at, error)
        stands = stands | broken
        at = choose(stands, at, new)
        error = errors(program, at)
        now = merit(program, at, error, tolerance)
        better = ~stands & (now < least)
        best, least = choose(better, at, best), torch.where(better, now, least)
        taken = taken + (~stands).long()
        sizes = [at.z.abs().amax(-1), *(Y.abs().amax((-2, -1)) for Y in at.Y)]
        stands = stands | (least <= 1) | (torch.stack(sizes).amax(0) > FAR)
    best = choose(least > POOR, at, best)  # The last point may prove that there is no solution.
    w = (best.lower - best.upper) / (2 * count)
    X = tuple(X / scale for X, scale in zip(best.X, of_blocks, strict=True))
    Y = tuple(scale * Y / (count * of_cost.unsqueeze(-1)) for Y, scale in zip(best.Y, of_blocks, strict=True))
    return Point(of_variables * best.z, w, X, Y, least, taken)


def choose(mask: Tensor, yes: Iterate, no: Iterate) -> Iterate:
    """Points of one batch where a mask says so, else of the other."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y)

    return Iterate(
        pick(yes.z, no.z),
        pick(yes.plus, no.plus),
        pick(yes.minus, no.minus),
        pick(yes.upper, no.upper),
        pick(yes.lower, no.lower),
        tuple(map(pick, yes.X, no.X)),
        tuple(map(pick, yes.Y, no.Y)),
    )
