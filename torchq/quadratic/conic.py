"""Linear programs over cones in batch: projections, polishing a solution, and derivatives of it.

    min qᵀx  s.t.  Ax + s = b,  s ∈ K        and its dual        max −bᵀy  s.t.  Aᵀy + q = 0,  y ∈ K*

K is a product of {0}, the non-negative numbers and positive semidefinite matrices, the latter as scaled triangles:
upper triangle column by column, entries off the diagonal times √2. With v = y − s and Π the projection onto K*, both
problems are one equation,                                             (Busseti, Moursi and Boyd 2019; Moreau 1965)

    F(x, v) = (AᵀΠ(v) + q,  Ax + Π(v) − v − b) = 0,    y = Π(v),  s = Π(v) − v

which gives Newton steps, and by the implicit function theorem the derivatives of (x, y) with respect to (q, A, b).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NEWTON_STEPS = 8
_ROUNDING = 1e-14
"""An error relative to the data that no step would lessen."""


class Cone(NamedTuple):
    """Rows of K in their order: zeros, non-negative numbers, then the triangles of each semidefinite block."""

    num_zero: int
    num_nonneg: int
    psd_sizes: tuple[int, ...]

    @property
    def psd_start(self) -> int:
        """First row of the semidefinite blocks."""
        return self.num_zero + self.num_nonneg


class Pattern(NamedTuple):
    """Where the values of A stand, the same for every problem of a batch."""

    row: Tensor
    column: Tensor
    shape: tuple[int, int]

    def dense(self, values: Tensor) -> Tensor:
        """A (batch, rows, columns) from its values (batch, entries)."""
        matrix = values.new_zeros(len(values), *self.shape)
        matrix[:, self.row, self.column] = values
        return matrix


def to_matrix(vector: Tensor, size: int) -> Tensor:
    """Symmetric matrix (..., size, size) of a scaled triangle."""
    column, row = torch.tril_indices(size, size, device=vector.device)
    entries = torch.where(row == column, vector, 0.5**0.5 * vector)
    matrix = vector.new_zeros(*vector.shape[:-1], size, size)
    matrix[..., row, column] = entries
    matrix[..., column, row] = entries
    return matrix


def to_vector(matrix: Tensor) -> Tensor:
    """Scaled triangle of a symmetric matrix; inner products stay."""
    column, row = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    entries = matrix[..., row, column]
    return torch.where(row == column, entries, 2.0**0.5 * entries)


def project_dual(v: Tensor, cone: Cone) -> tuple[Tensor, Tensor]:
    """Projection Π(v) onto K*, (batch, rows), and its derivative, (batch, rows, rows), symmetric.

    For a block V = UΛUᵀ the derivative is Ṽ ↦ U(B ∘ UᵀṼU)Uᵀ with B = (λᵢ⁺ − λⱼ⁺)/(λᵢ − λⱼ).  (Malick and Sendov 2006)
    """
    zero, start = cone.num_zero, cone.psd_start
    diagonal = torch.ones_like(v)
    diagonal[:, zero:start] = (v[:, zero:start] > 0).to(v.dtype)
    projected, derivative = v * diagonal, torch.diag_embed(diagonal)
    for size in cone.psd_sizes:
        end = start + size * (size + 1) // 2
        values, vectors = torch.linalg.eigh(to_matrix(v[:, start:end], size))
        positive = values.clamp_min(0.0)
        projected[:, start:end] = to_vector(vectors * positive.unsqueeze(-2) @ vectors.mT)
        above = values > 0
        mixed = positive.unsqueeze(-1) + positive.unsqueeze(-2)
        total = values.abs().unsqueeze(-1) + values.abs().unsqueeze(-2)
        ratio = torch.where(above.unsqueeze(-1) & above.unsqueeze(-2), 1.0, mixed / total.clamp_min(1e-300))
        basis = to_matrix(torch.eye(end - start, dtype=v.dtype, device=v.device), size)
        turned = vectors.mT.unsqueeze(1) @ basis @ vectors.unsqueeze(1)
        derivative[:, start:end, start:end] = to_vector(
            vectors.unsqueeze(1) @ (ratio.unsqueeze(1) * turned) @ vectors.mT.unsqueeze(1)
        )
        start = end
    return projected, derivative


def residual(q: Tensor, A: Tensor, b: Tensor, x: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """F(x, v), (batch, columns + rows), with y = Π(v)."""
    first = (A.mT @ y.unsqueeze(-1)).squeeze(-1) + q
    second = (A @ x.unsqueeze(-1)).squeeze(-1) + y - v - b
    return torch.cat((first, second), dim=-1)


def jacobian(A: Tensor, derivative: Tensor) -> Tensor:
    """∂F/∂(x, v) with D = DΠ(v): [[0, AᵀD], [A, D − I]]."""
    batch, rows, columns = A.shape
    upper = torch.cat((A.new_zeros(batch, columns, columns), A.mT @ derivative), dim=-1)
    identity = torch.eye(rows, dtype=A.dtype, device=A.device)
    return torch.cat((upper, torch.cat((A, derivative - identity), dim=-1)), dim=-2)


def polish(
    q: Tensor, A: Tensor, b: Tensor, x: Tensor, v: Tensor, cone: Cone, steps: int = _NEWTON_STEPS
) -> tuple[Tensor, Tensor]:
    """Solutions made exact to rounding by Newton steps, of which the best is kept.

    A step that does not help is taken all the same, once: it may find out that a row was on the wrong side of its cone.

    Args:
        q: (batch, columns).
        A: (batch, rows, columns).
        b: (batch, rows).
        x: primal solution, (batch, columns).
        v: dual solution minus slack, (batch, rows).
        cone: K.
        steps: at most.
    """
    best = at = _Iterate(x, v, *_errors(q, A, b, x, v, cone))
    exact = _ROUNDING * (1 + b.norm(dim=-1) + q.norm(dim=-1))
    done, missed = best.size <= exact, torch.zeros_like(best.size, dtype=torch.bool)
    for _ in range(steps):
        if bool(done.all()):
            break
        dx, dv = _solve(jacobian(A, at.derivative), at.error).split((x.shape[1], v.shape[1]), dim=-1)
        new = _Iterate(at.x - dx, at.v - dv, *_errors(q, A, b, at.x - dx, at.v - dv, cone))
        helped = new.size < at.size
        done = done | (~helped & missed)  # Two that do not help are the end.
        at, missed = _choose(done, at, new), ~helped
        best = _choose(at.size < best.size, at, best)
        done = done | (best.size <= exact)
    return best.x, best.v


class _Iterate(NamedTuple):
    x: Tensor
    v: Tensor
    error: Tensor
    """F(x, v)."""
    size: Tensor
    """Its norm, (batch,)."""
    derivative: Tensor
    """Of the projection."""


def _errors(q: Tensor, A: Tensor, b: Tensor, x: Tensor, v: Tensor, cone: Cone) -> tuple[Tensor, Tensor, Tensor]:
    y, derivative = project_dual(v, cone)
    error = residual(q, A, b, x, v, y)
    return error, error.norm(dim=-1), derivative


def _choose(mask: Tensor, yes: _Iterate, no: _Iterate) -> _Iterate:
    pairs = zip(yes, no, strict=True)
    return _Iterate(*(torch.where(mask.view(-1, *[1] * (one.dim() - 1)), one, other) for one, other in pairs))


def adjoint(A: Tensor, v: Tensor, cone: Cone, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Solution g of (∂F/∂(x, v))ᵀ g = −(x̄, Dᵀȳ), split into its rows for q and for b.

    Then q̄ = g_q, b̄ = −g_b and Ā = y g_qᵀ + g_b xᵀ. Where the solution of the program is not unique the equation is
    singular, and g is that of least norm.

    Args:
        A: (batch, rows, columns).
        v: (batch, rows).
        cone: K.
        dx: x̄, gradient of a loss with respect to x, (batch, columns).
        dy: ȳ, with respect to y, (batch, rows).
    """
    _, derivative = project_dual(v, cone)
    matrix = jacobian(A, derivative).mT
    right = -torch.cat((dx, (derivative @ dy.unsqueeze(-1)).squeeze(-1)), dim=-1)
    first, second = _solve(matrix, right).split((A.shape[2], A.shape[1]), dim=-1)
    return first, second


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution of a system, that of least norm where it is singular, (batch, size)."""
    right = right.unsqueeze(-1)
    found, _ = torch.linalg.solve_ex(matrix, right)
    off = (matrix @ found - right).norm(dim=-2) / right.norm(dim=-2).clamp_min(1e-300)
    singular = ~(off < 1e-6).squeeze(-1) | (found.norm(dim=-2) > 1e10 * right.norm(dim=-2)).squeeze(-1)
    if singular.any():
        least = torch.linalg.pinv(matrix[singular], rtol=1e-10) @ right[singular]
        found = found.index_put((singular.nonzero().squeeze(-1),), least)
    return found.squeeze(-1)
