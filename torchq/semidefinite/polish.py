"""Solutions of small semidefinite programs made exact, by Newton steps on the conditions of what is active in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite.derivatives import Active, Face, active, from_pairs, pairs_of, sides, solve_active
from torchq.semidefinite.program import Program, adjoint, values

_HALVINGS = 6
_ROUNDING = 1e-14
"""An error of the optimality conditions, relative to the data, that no step would lessen."""
_KINK = 1e-7
"""An error of what is not differentiable."""
_FAR = 1e-3
"""Of a solution's size: what moves further is another of many solutions."""
STEPS = 8


class Exact(NamedTuple):
    """Solutions after Newton steps."""

    z: Tensor
    w: Tensor
    Y: tuple[Tensor, ...]
    error: Tensor
    """Largest error of the optimality conditions, relative to the data, (batch,)."""
    active: Active


def polish(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], steps: int = STEPS) -> Exact:
    """Newton steps on the conditions of what is active, halved until they help.

    Where none does, what is active may be wrong: a whole step is taken, which finds that out, and the best is kept.
    At kinks what is active does not determine the multipliers, and nothing helps: solutions stay as they were.
    """
    found = active(program, z, w, Y)
    given = Exact(z, w, Y, torch.zeros_like(z[:, 0]), found)
    w, Y = _projected(program, z, w, Y, found)
    best = at = Exact(z, w, Y, optimality(program, z, w, Y, found), found)
    done = best.error < _ROUNDING
    missed = torch.zeros_like(done)
    for _ in range(steps):
        if bool(done.all()):
            break
        step, new, helped, whole = _newton(program, at), at, done, at
        for halving in range(_HALVINGS):
            tried = _moved(program, at, step, 0.5**halving)
            near = (tried.z - z).abs().amax(-1) <= _FAR * z.abs().amax(-1) + 1e-300
            tried = tried._replace(error=torch.where(near, tried.error, torch.inf))
            whole = whole if halving else tried
            better = ~helped & (tried.error < at.error)
            new, helped = _choose(better, tried, new), helped | better
            if bool(helped.all()):
                break
        done = done | (~helped & missed)  # Two that do not help are the end.
        at, missed = _choose(~helped & ~done, whole, new), ~helped
        best = _choose(at.error < best.error, at, best)
        done = done | (best.error < _ROUNDING)
    return _choose(best.error > _KINK, given, best)._replace(error=best.error)


def _projected(
    program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], found: Active
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers without what rounding left where they are known: ±1/N, and zero outside of the Y-vectors."""
    N = program.num_residuals
    if N:
        known = torch.where(sides(program, z, w) > 0, torch.ones_like(w), -1.0) / N
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
    for block, face, matrix in zip(program.blocks, found.faces, Y, strict=True):
        dual = dual - adjoint(block, matrix)
        X = values(block, z)
        term = block.L.abs().amax((-3, -2, -1))
        term = torch.where(term > 0, term, 1.0)
        of_X, of_Y = term + X.abs().amax((-2, -1)), 1e-300 + size / term
        # Not the product of X and Y: of a small one it would hide that the other is not zero.
        turned = pairs_of(face.vectors.mT @ X @ face.vectors)
        turned = torch.where(face.active | (face.ratio > 0), turned, 0.0)
        worst = torch.maximum(worst, turned.abs().amax(-1) / of_X)
        for one, scale in ((X, of_X), (matrix, of_Y)):
            least = torch.linalg.eigvalsh(torch.nan_to_num(one, posinf=0.0, neginf=0.0))[:, 0]
            worst = torch.maximum(worst, -least / scale)
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
