"""Derivatives of solutions of small semidefinite programs, from what is active in them.

At a solution some residuals are zero and their multipliers free; the others keep their signs. Of each inequality the
range of X = F(z) and that of its multiplier Y are spanned by different eigenvectors q_i: X-vectors with XQ = QΛ, and
Y-vectors with YQ = QM. Where this split is strict, the conditions of optimality are smooth, and linear to first order
in dz and the multipliers ν = (w of active residuals, −U of pairs of Y-vectors):     (Alizadeh, Haeberly, Overton 1998)

    [H  Jᵀ] [dz]     [d(c + Aᵀw − L*(Y))]        J: rows a_i of active residuals, q_iᵀ L_k q_j of pairs of Y-vectors
    [J  0 ] [dν] = − [   d(Az − b, X)   ]        H_kl = 2 Σ (μ_j/λ_i) (q_iᵀ L_k q_j)(q_iᵀ L_l q_j), i of X, j of Y
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite.program import Block, Program, values


class Face(NamedTuple):
    """Where one inequality is active. Pairs (i, j), i ≤ j, count once, scaled by √2 off the diagonal."""

    vectors: Tensor
    """Common eigenvectors of X and Y, one a column, (batch, d, d)."""
    rows: Tensor
    """q_iᵀ L_k q_j, (batch, pairs, n)."""
    active: Tensor
    """Whether both vectors are Y's, (batch, pairs)."""
    ratio: Tensor
    """μ_j/λ_i of pairs of an X-vector and a Y-vector, else zero, (batch, pairs)."""


class Active(NamedTuple):
    """What is active at the solutions of a batch."""

    candidates: Tensor
    """Numbers of the residuals that may be, (batch, K)."""
    residuals: Tensor
    """Whether they are, (batch, K)."""
    faces: tuple[Face, ...]
    matrix: Tensor
    """[[H, Jᵀ], [J, 0]], rows that are not active replaced by those of the identity, (batch, n + K + pairs, same)."""


def pairs_of(matrix: Tensor) -> Tensor:
    """Entries (i, j), i ≤ j, of a symmetric matrix, off the diagonal times √2, (batch, pairs)."""
    i, j = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return torch.where(i == j, matrix[..., i, j], 2**0.5 * matrix[..., i, j])


def from_pairs(entries: Tensor, size: int) -> Tensor:
    """The symmetric matrix of these entries."""
    i, j = torch.triu_indices(size, size, device=entries.device)
    matrix = entries.new_zeros(*entries.shape[:-1], size, size)
    entries = torch.where(i == j, entries, 0.5**0.5 * entries)
    matrix[..., i, j] = entries
    matrix[..., j, i] = entries
    return matrix


def active(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...]) -> Active:
    """What is active at solutions, judged by which of a multiplier and its slack is larger, each on its own scale."""
    n, N = z.shape[-1], program.num_residuals
    score, index = (1 - sides(program, z, w).abs()).topk(min(n, N), dim=-1)
    X = [values(block, z) for block in program.blocks]
    sizes = _scales(program, z, X, Y)
    faces = tuple(_face(block, x, y, *size) for block, x, y, size in zip(program.blocks, X, Y, sizes, strict=True))
    return Active(index, score > 0, faces, _matrix(program, index, score > 0, faces, n))


def sides(program: Program, z: Tensor, w: Tensor) -> Tensor:
    """Nw + u over its scale, (batch, N): on which side of zero a residual is, or within ±1 if it is active.

    The rule of primal-dual active sets: at a solution w = ±1/N where u is not zero.   [Hintermüller, Ito, Kunisch 2002]
    """
    N = program.num_residuals
    if not N:
        return w
    u = (program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b
    size = program.b.abs().mean(-1, keepdim=True)
    scale = torch.maximum(u.abs().mean(-1, keepdim=True) + 1e-3 * size, torch.where(size > 0, 1e-300, _NOTHING))
    return N * w + u / scale


_FLOOR = 1e-4
_NOTHING = 1e-8
"""A slack where data say nothing of its size: they are zero."""


def _scales(program: Program, z: Tensor, X: Sequence[Tensor], Y: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Sizes of slacks and of multipliers of each block, (batch,): their largest entries, or part of what data suggest.

    Those of blocks whose matrices L are the same but for a factor; where no inequality is active, all multipliers are
    rounding errors.
    """
    cost = program.c.abs().amax(-1) + (program.A.abs().mean(-2).amax(-1) if program.num_residuals else 0.0)
    of_X, of_Y, terms = torch.full_like(z[:, 0], 1e-300), torch.full_like(z[:, 0], 1e-300), []
    largest = torch.zeros_like(of_X)
    for block, slack, multiplier in zip(program.blocks, X, Y, strict=True):
        term = block.L.abs().amax((-3, -2, -1))
        term = torch.where(term > 0, term, 1.0)
        constant = block.C.abs().amax((-2, -1))
        of_X = torch.maximum(of_X, slack.abs().amax((-2, -1)) / term)
        of_X = torch.maximum(of_X, _FLOOR * (constant / term + z.abs().amax(-1)))
        of_Y = torch.maximum(of_Y, multiplier.abs().amax((-2, -1)) * term)
        terms.append(term)
        largest = torch.maximum(largest, constant)
    of_X = torch.maximum(of_X, torch.where(largest > 0, 1e-300, _NOTHING))
    of_Y = torch.maximum(of_Y, _FLOOR * cost)
    return [(term * of_X, of_Y / term) for term in terms]


def _face(block: Block, X: Tensor, Y: Tensor, of_X: Tensor, of_Y: Tensor) -> Face:
    both = X / of_X[:, None, None] - Y / of_Y[:, None, None]
    _, vectors = torch.linalg.eigh(torch.nan_to_num(both, posinf=0.0, neginf=0.0))  # Where a step went nowhere.
    turned = [vectors.mT @ matrix @ vectors for matrix in (X, Y)]
    of_slack, of_multiplier = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in turned)
    its = of_slack / of_X[:, None] < of_multiplier / of_Y[:, None]  # Y's, (batch, d)
    i, j = torch.triu_indices(*X.shape[-2:], device=X.device)
    slack = torch.where(its, 1.0, of_slack)
    multiplier = torch.where(its, of_multiplier, 0.0)
    mixed = its[:, i] != its[:, j]
    # One of the two is zero.
    ratio = torch.where(mixed, (multiplier[:, i] + multiplier[:, j]) / (slack[:, i] * slack[:, j]), 0.0)
    # (batch, n, d, d) to (batch, pairs, n)
    rows = pairs_of(vectors.mT.unsqueeze(-3) @ block.L @ vectors.unsqueeze(-3)).mT
    return Face(vectors, rows, its[:, i] & its[:, j], ratio.clamp_min(0.0))


def _matrix(program: Program, index: Tensor, residuals: Tensor, faces: tuple[Face, ...], n: int) -> Tensor:
    A = program.A.expand(len(index), -1, -1)
    rows = [A.gather(1, index.unsqueeze(-1).expand(-1, -1, n)), *(face.rows for face in faces)]
    on = torch.cat([residuals, *(face.active for face in faces)], -1)
    J = torch.cat(rows, 1) * on.unsqueeze(-1)
    H = J.new_zeros(len(J), n, n)
    for face in faces:
        H = H + face.rows.mT @ (face.ratio.unsqueeze(-1) * face.rows)
    lower = torch.cat((J, torch.diag_embed((~on).to(J.dtype))), -1)
    return torch.cat((torch.cat((H, J.mT), -1), lower), -2)


def solve_active(matrix: Tensor, right: Tensor, n: int = 0) -> Tensor:
    """Solution of the symmetric system, that of least norm where it is singular; (batch, size).

    With n, the rows of H, rows of J that depend on others are left out first where it is singular: of constraints that
    meet in a kink those of one side.
    """
    found, singular = solve_regular(matrix, right)
    if singular.any():
        matrix, right = matrix[singular], right[singular]
        if n:
            off = torch.nn.functional.pad(~_independent(matrix[:, n:, :n]), (n, 0))
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            matrix = torch.where(off.unsqueeze(-1) | off.unsqueeze(-2), eye, matrix)
            right = torch.where(off, 0.0, right)
            few, still = solve_regular(matrix, right)
        else:
            few, still = found[singular], torch.ones_like(singular[singular])
        few[still] = (
            torch.linalg.pinv(matrix[still], rtol=_SINGULAR, hermitian=True) @ right[still].unsqueeze(-1)
        ).squeeze(-1)
        found[singular] = few
    return found


_SINGULAR = 1e-9


def solve_regular(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solution of the system scaled by its rows, and where it is singular, (batch,)."""
    scale = matrix.abs().amax(-1).clamp_min(1e-300).rsqrt()
    scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    target = (scale * right).unsqueeze(-1)
    found, _ = torch.linalg.solve_ex(scaled, target)
    left, size, longest = ((one.norm(dim=-2)).squeeze(-1) for one in (scaled @ found - target, target, found))
    size = size.clamp_min(1e-300)
    return scale * found.squeeze(-1), ~(left < _SINGULAR * size) | (longest > size / _SINGULAR)


def _independent(J: Tensor) -> Tensor:
    """Which rows depend on no others, by Gram and Schmidt with pivots, (batch, rows)."""
    left = J / J.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    found = torch.zeros_like(J[..., 0], dtype=torch.bool)
    for _ in range(min(J.shape[-2:])):
        length, pivot = left.norm(dim=-1).max(-1, keepdim=True)
        row = left.gather(1, pivot.unsqueeze(-1).expand(-1, -1, J.shape[-1])) / length.clamp_min(1e-300).unsqueeze(-1)
        found = found | torch.zeros_like(found).scatter(1, pivot, length > _SINGULAR)
        left = left - (left @ row.mT) @ row
        left = left.scatter(1, pivot.unsqueeze(-1).expand(-1, -1, J.shape[-1]), 0.0)
    return found


def gradients(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active, of_z: Tensor) -> Program:
    """Gradients of a loss with respect to a program's data, from its gradient with respect to z, (batch, n).

    With (g, h) = [[H, Jᵀ], [J, 0]]⁻¹ (z̄, 0):  c̄ = −g,  Ā = −w gᵀ − h zᵀ,  b̄ = h,  C̄ = Ξ,  L̄_k = z_k Ξ + g_k Y, where
    −Ξ = Σ h_ij q_i q_jᵀ over pairs of Y-vectors + Σ (μ_j/λ_i) (q_iᵀ L(g) q_j) q_i q_jᵀ over mixed pairs.
    """
    n = z.shape[-1]
    solved = solve_active(found.matrix, torch.nn.functional.pad(of_z, (0, found.matrix.shape[-1] - n)), n)
    g, rest = solved[:, :n], solved[:, n:]
    count = found.candidates.shape[-1]
    h = torch.zeros_like(w).scatter(1, found.candidates, torch.where(found.residuals, rest[:, :count], 0.0))
    of_A = -w.unsqueeze(-1) * g.unsqueeze(-2) - h.unsqueeze(-1) * z.unsqueeze(-2)
    blocks, at = [], count
    for block, face, multiplier in zip(program.blocks, found.faces, Y, strict=True):
        size = block.C.shape[-1]
        entries = rest[:, at : at + face.active.shape[-1]]
        at += face.active.shape[-1]
        mixed = face.ratio * (face.rows @ g.unsqueeze(-1)).squeeze(-1)
        inner = from_pairs(torch.where(face.active, entries, 0.0) + mixed, size)
        of_C = -face.vectors @ inner @ face.vectors.mT
        of_L = z[:, :, None, None] * of_C.unsqueeze(1) + g[:, :, None, None] * multiplier.unsqueeze(1)
        blocks.append(Block(of_C, of_L))
    return Program(-g, of_A, h, tuple(blocks))
