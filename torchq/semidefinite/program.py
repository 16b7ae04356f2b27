"""A batch of small semidefinite programs with absolute residuals, and what a solver says about each of them.

    min  cᵀz + mean |Az − b|     s.t.  F_j(z) = C_j + Σ_k z_k L_jk ⪰ 0,   j = 1 … J                               (P)
    max  −bᵀw − Σ_j ⟨C_j, Y_j⟩   s.t.  c + Aᵀw = Σ_j L_j*(Y_j),   |w_i| ≤ 1/N,   Y_j ⪰ 0                          (D)

with L*(Y) = (⟨L_k, Y⟩)_k. Few variables z ∈ Rⁿ, any number N of residuals, matrices F_j of a few rows.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """One matrix inequality, F(z) = C + Σ_k z_k L_k ⪰ 0."""

    C: Tensor
    """(batch, d, d) or (d, d), symmetric."""
    L: Tensor
    """(batch, n, d, d), or (n, d, d) for all instances, symmetric."""


class Program(NamedTuple):
    """A batch of programs of one shape, float64. What an instance shares with all others needs no batch dimension."""

    c: Tensor
    """(batch, n)."""
    A: Tensor
    """(batch, N, n); N may be 0."""
    b: Tensor
    """(batch, N)."""
    blocks: tuple[Block, ...]

    def parts(self) -> list[Tensor]:
        """c, A, b, and C and L of each block."""
        return [self.c, self.A, self.b, *(part for block in self.blocks for part in block)]

    @property
    def num_residuals(self) -> int:
        """N."""
        return self.b.shape[-1]


class Status(IntEnum):
    """How an instance ended."""

    SOLVED = 0
    INACCURATE = 1
    """The best point found; its gap and residuals say how good it is."""
    INFEASIBLE = 2
    """Y_j ⪰ 0 with Σ ⟨C_j, Y_j⟩ < 0 and small L*(Y) prove that no z with all |z_k| < 10⁸ meets the inequalities."""
    UNBOUNDED = 3
    """Along z the cost falls for ever: Σ z_k L_k ⪰ 0 and cᵀz + mean |Az| < 0; z holds the direction."""
    NOT_FINITE = 4
    """NaN or infinity in the data."""


class Point(NamedTuple):
    """Where a solver ended."""

    z: Tensor
    """(batch, n)."""
    w: Tensor
    """Multipliers of the residuals, (batch, N)."""
    X: tuple[Tensor, ...]
    """Slacks of the inequalities, (batch, d, d) each: F_j(z) but for an error."""
    Y: tuple[Tensor, ...]
    """Multipliers of the inequalities, (batch, d, d) each."""
    merit: Tensor
    """Largest of gap, primal and dual error, relative to the data, over the tolerance, (batch,)."""
    iterations: Tensor
    """(batch,)."""


class Quality(NamedTuple):
    """How good solutions are, (batch,) each."""

    cost: Tensor
    """cᵀz + mean |Az − b|."""
    gap: Tensor
    """How far above the optimum the cost may be: the difference of primal and dual objective, and the most that the
    dual residual could hide of it, its size times |z|₁."""
    primal: Tensor
    """max(0, −λ_min(F_j(z))), largest over j."""
    dual: Tensor
    """max |c + Aᵀw − L*(Y)|."""


class Solution(NamedTuple):
    """Primal and dual solutions of a batch; NaN where there is none."""

    z: Tensor
    """(batch, n)."""
    w: Tensor
    """Multipliers of the residuals, (batch, N)."""
    Y: tuple[Tensor, ...]
    """Multipliers of the inequalities, (batch, d, d) each."""
    objective: Tensor
    """cᵀz + mean |Az − b|, (batch,)."""
    gap: Tensor
    """How far above the optimum the objective may be at most, (batch,)."""
    primal_residual: Tensor
    """max(0, −λ_min(F_j(z))), largest over j, (batch,)."""
    dual_residual: Tensor
    """max |c + Aᵀw − L*(Y)|, (batch,)."""
    iterations: Tensor
    """(batch,)."""
    status: Tensor
    """`Status` of each, (batch,)."""
    error: Tensor
    """Of polished solutions, the largest error of the optimality conditions relative to the data, (batch,); else NaN.
    Derivatives are as exact as this is small: about 1e-15 where the solution is differentiable."""

    @property
    def solved(self) -> Tensor:
        """Which are solved to tolerance, (batch,)."""
        return self.status == Status.SOLVED


def values(block: Block, z: Tensor) -> Tensor:
    """F(z), (batch, d, d)."""
    return block.C + terms(block, z)


def terms(block: Block, z: Tensor) -> Tensor:
    """Σ_k z_k L_k, (batch, d, d)."""
    size = block.L.shape[-1]
    return (z.unsqueeze(-2) @ block.L.flatten(-2)).view(len(z), size, size)


def adjoint(block: Block, Y: Tensor) -> Tensor:
    """L*(Y) = (⟨L_k, Y⟩)_k, (batch, n)."""
    return (block.L.flatten(-2) @ Y.flatten(-2).unsqueeze(-1)).squeeze(-1)


def objective(program: Program, z: Tensor) -> Tensor:
    """cᵀz + mean |Az − b|, (batch,)."""
    linear = (program.c * z).sum(-1)
    if not program.num_residuals:
        return linear
    return linear + ((program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b).abs().mean(-1)
