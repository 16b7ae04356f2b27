"""Derivatives of solutions of small semidefinite programs, and solutions made exact, from what is active in them.

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

from torchq.semidefinite.program import Block, Program, adjoint, values

_HALVINGS = 6
_STEPS = 4


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
    u = (program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b
    free = 1 - N * w.abs()
    scale = (u.abs().mean(-1, keepdim=True) + 1e-3 * program.b.abs().mean(-1, keepdim=True)).clamp_min(1e-300)
    score, index = (free - u.abs() / scale if N else free).topk(min(n, N), dim=-1)
    X = [values(block, z) for block in program.blocks]
    of_X, of_Y = _scales(program, z, X, Y)
    faces = tuple(_face(block, x, y, of_X, of_Y) for block, x, y in zip(program.blocks, X, Y, strict=True))
    return Active(index, score > 0, faces, _matrix(program, index, score > 0, faces, n))


_FLOOR = 1e-4


def _scales(program: Program, z: Tensor, X: Sequence[Tensor], Y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sizes of slacks and of multipliers, (batch,): their largest entries, or so much of what the data suggest.

    Where no inequality is active, all multipliers are rounding errors.
    """
    cost = program.c.abs().amax(-1) + (program.A.abs().mean(-2).amax(-1) if program.num_residuals else 0.0)
    of_X, of_Y = torch.full_like(z[:, 0], 1e-300), torch.full_like(z[:, 0], 1e-300)
    for block, slack, multiplier in zip(program.blocks, X, Y, strict=True):
        term = block.L.abs().amax((-3, -2, -1))
        constant = block.C.abs().amax((-2, -1))
        of_X = torch.maximum(of_X, slack.abs().amax((-2, -1)))
        of_X = torch.maximum(of_X, _FLOOR * (constant + term * z.abs().amax(-1)))
        of_Y = torch.maximum(of_Y, multiplier.abs().amax((-2, -1)))
        of_Y = torch.maximum(of_Y, _FLOOR * cost / term.clamp_min(1e-300))
    return of_X, of_Y


def _face(block: Block, X: Tensor, Y: Tensor, of_X: Tensor, of_Y: Tensor) -> Face:
    _, vectors = torch.linalg.eigh(X / of_X[:, None, None] - Y / of_Y[:, None, None])
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


def solve_active(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution of the symmetric system, that of least norm where it is singular; (batch, size)."""
    scale = matrix.abs().amax(-1).clamp_min(1e-300).rsqrt()
    scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    target = (scale * right).unsqueeze(-1)
    found, _ = torch.linalg.solve_ex(scaled, target)
    left = (scaled @ found - target).norm(dim=-2) / target.norm(dim=-2).clamp_min(1e-300)
    singular = (~(left < 1e-9) | (found.norm(dim=-2) > 1e9 * target.norm(dim=-2))).squeeze(-1)
    if singular.any():
        found[singular] = _least_norm(matrix[singular], right[singular].unsqueeze(-1)) / scale[singular].unsqueeze(-1)
    return scale * found.squeeze(-1)


def _least_norm(matrix: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix, rtol=1e-9, hermitian=True) @ right


class Gradients(NamedTuple):
    """Of a loss with respect to a program; of L only where it is asked for."""

    c: Tensor
    A: Tensor
    b: Tensor
    blocks: tuple[Block, ...]


def gradients(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active, of_z: Tensor) -> Gradients:
    """Gradients of a loss with respect to the data, from its gradient with respect to z, (batch, n).

    With (g, h) = [[H, Jᵀ], [J, 0]]⁻¹ (z̄, 0):  c̄ = −g,  Ā = −w gᵀ − h zᵀ,  b̄ = h,  C̄ = Ξ,  L̄_k = z_k Ξ + g_k Y, where
    −Ξ = Σ h_ij q_i q_jᵀ over pairs of Y-vectors + Σ (μ_j/λ_i) (q_iᵀ L(g) q_j) q_i q_jᵀ over mixed pairs.
    """
    n = z.shape[-1]
    solved = solve_active(found.matrix, torch.nn.functional.pad(of_z, (0, found.matrix.shape[-1] - n)))
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
    return Gradients(-g, of_A, h, tuple(blocks))


class Exact(NamedTuple):
    """Solutions after Newton steps."""

    z: Tensor
    w: Tensor
    Y: tuple[Tensor, ...]
    error: Tensor
    """Largest error of the optimality conditions, relative to the data, (batch,)."""
    active: Active


def polish(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], steps: int = _STEPS) -> Exact:
    """Newton steps on the conditions of what is active, halved until they help; one that never helps is not taken."""
    found = active(program, z, w, Y)
    w, Y = _projected(program, z, w, Y, found)
    best = Exact(z, w, Y, optimality(program, z, w, Y, found), found)
    for _ in range(steps):
        step, new = _newton(program, best), best
        helped = torch.zeros_like(best.error, dtype=torch.bool)
        for halving in range(_HALVINGS):
            tried = _moved(program, best, step, 0.5**halving)
            better = ~helped & (tried.error < best.error)
            new, helped = _choose(better, tried, new), helped | better
            if bool(helped.all()):
                break
        best = new
    return best


def _projected(
    program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers without what rounding left where they are known: ±1/N, and zero outside of the Y-vectors."""
    N = program.num_residuals
    if N:
        u = (program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b
        known = torch.where(u > 0, torch.ones_like(u), -1.0) / N
        free = torch.zeros_like(w, dtype=torch.bool).scatter(1, found.candidates, found.residuals)
        w = torch.where(free, w, known)
    projected = []
    for face, matrix in zip(found.faces, Y, strict=True):
        inner = pairs_of(face.vectors.mT @ matrix @ face.vectors)
        inner = torch.where(face.active, inner, 0.0)
        projected.append(face.vectors @ from_pairs(inner, matrix.shape[-1]) @ face.vectors.mT)
    return w, tuple(projected)


def _residuals(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active) -> Tensor:
    """(c + Aᵀw − L*(Y), active Az − b, X in pairs of Y-vectors), (batch, n + K + pairs)."""
    dual = program.c + (program.A.mT @ w.unsqueeze(-1)).squeeze(-1)
    u = (program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b
    parts = [torch.where(found.residuals, u.gather(1, found.candidates), 0.0)]
    for block, face, matrix in zip(program.blocks, found.faces, Y, strict=True):
        dual = dual - adjoint(block, matrix)
        turned = pairs_of(face.vectors.mT @ values(block, z) @ face.vectors)
        # Where X and Y mix, the first order of XY = 0 is part of H; what is left of X there rotates Y.
        dual = dual + (face.rows.mT @ (face.ratio * turned).unsqueeze(-1)).squeeze(-1)
        parts.append(torch.where(face.active, turned, 0.0))
    return torch.cat((dual, *parts), -1)


def _newton(program: Program, at: Exact) -> Tensor:
    return -solve_active(at.active.matrix, _residuals(program, at.z, at.w, at.Y, at.active))


def _moved(program: Program, at: Exact, step: Tensor, share: float) -> Exact:
    n, found = at.z.shape[-1], at.active
    dz, rest = step[:, :n], step[:, n:]
    z = at.z + share * dz
    count = found.candidates.shape[-1]
    w = at.w.scatter_add(1, found.candidates, share * torch.where(found.residuals, rest[:, :count], 0.0))
    Y, place = [], count
    for block, face, matrix in zip(program.blocks, found.faces, at.Y, strict=True):
        size = matrix.shape[-1]
        entries = -rest[:, place : place + face.active.shape[-1]]
        place += face.active.shape[-1]
        turned = pairs_of(face.vectors.mT @ values(block, at.z) @ face.vectors)
        mixed = -face.ratio * (turned + (face.rows @ dz.unsqueeze(-1)).squeeze(-1))
        inner = share * from_pairs(torch.where(face.active, entries, 0.0) + mixed, size)
        Y.append(matrix + face.vectors @ inner @ face.vectors.mT)
    again = active(program, z, w, tuple(Y))
    w, projected = _projected(program, z, w, tuple(Y), again)
    return Exact(z, w, projected, optimality(program, z, w, projected, again), again)


def optimality(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active) -> Tensor:
    """Largest error of the optimality conditions relative to the data, (batch,)."""
    N = program.num_residuals
    dual = program.c + (program.A.mT @ w.unsqueeze(-1)).squeeze(-1)
    size = program.c.abs().amax(-1) + (program.A.abs().mean(-2).amax(-1) if N else 0.0)
    worst = torch.zeros_like(size)
    if N:
        u = (program.A @ z.unsqueeze(-1)).squeeze(-1) - program.b
        near = torch.where(found.residuals, u.gather(1, found.candidates).abs(), 0.0).amax(-1)
        worst = near / (program.b.abs().mean(-1) + u.abs().mean(-1) + 1e-300)
        worst = torch.maximum(worst, (N * w.abs() - 1).amax(-1))
    for block, matrix in zip(program.blocks, Y, strict=True):
        dual = dual - adjoint(block, matrix)
        X = values(block, z)
        of_X, of_Y = (1 + X.abs().amax((-2, -1))), 1e-300 + size
        worst = torch.maximum(worst, (X @ matrix).abs().amax((-2, -1)) / (of_X * of_Y))
        for one, scale in ((X, of_X), (matrix, of_Y)):
            worst = torch.maximum(worst, -torch.linalg.eigvalsh(one)[:, 0] / scale)
    return torch.nan_to_num(torch.maximum(worst, dual.abs().amax(-1) / (size + 1e-300)), nan=torch.inf)


def _choose(mask: Tensor, yes: Exact, no: Exact) -> Exact:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

    faces = tuple(Face(*map(pick, a, b)) for a, b in zip(yes.active.faces, no.active.faces, strict=True))
    found = Active(
        pick(yes.active.candidates, no.active.candidates),
        pick(yes.active.residuals, no.active.residuals),
        faces,
        pick(yes.active.matrix, no.active.matrix),
    )
    Y = tuple(map(pick, yes.Y, no.Y))
    return Exact(pick(yes.z, no.z), pick(yes.w, no.w), Y, pick(yes.error, no.error), found)
