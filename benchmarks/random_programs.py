"""Small semidefinite programs drawn at random, and Clarabel's answer to them."""

from __future__ import annotations

from typing import NamedTuple

import clarabel
import numpy as np
import scipy.sparse as sparse
import torch

from torchq.quadratic import forms
from torchq.semidefinite.program import Block, Program


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def symmetric(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Symmetric matrices (*shape, shape[-1])."""
    matrix = normal(generator, *shape, shape[-1])
    return (matrix + matrix.mT) / 2


def program(
    seed: int, batch: int = 1, n: int = 6, num_residuals: int = 20, sizes: tuple[int, ...] = (3, 2, 1)
) -> Program:
    """Dense, with a z and a Y that are strictly feasible."""
    generator = torch.Generator().manual_seed(seed)
    A, b = normal(generator, batch, num_residuals, n), normal(generator, batch, num_residuals)
    inside = normal(generator, batch, n)
    c = 0.1 * normal(generator, batch, n) if num_residuals > n else torch.zeros(batch, n, dtype=torch.float64)
    blocks = []
    for size in sizes:
        L = symmetric(generator, n, size)
        root, dual = normal(generator, batch, size, size), normal(generator, batch, size, size)
        C = root @ root.mT + 0.3 * torch.eye(size) - torch.einsum("bk,kij->bij", inside, L)
        c = c + 0.3 * torch.einsum("bij,kij->bk", dual @ dual.mT, L)
        blocks.append(Block(C, L))
    return Program(c, A, b, tuple(blocks))


def relaxation(G: torch.Tensor, y: torch.Tensor, bound: torch.Tensor, penalty: torch.Tensor, p: int, m: int) -> Program:
    """LMI-QL's relaxation (18) by its definition: one parameter after the other."""
    n = G.shape[-1]
    unit = torch.eye(n, dtype=torch.float64)
    q, W = forms.unpack(unit, p, m), forms.from_triangle(unit[:, -forms.triangle_size(p) :], p)
    first = torch.cat((torch.cat((W, q.S), -1), torch.cat((q.S.mT, q.R), -1)), -2)
    c = (W * penalty.unsqueeze(-3)).sum((-2, -1))
    zero, floor = torch.zeros(p + m, p + m, dtype=torch.float64), -1e-4 * torch.eye(m, dtype=torch.float64)
    return Program(c, G, -y, (Block(zero, first), Block(bound, -q.P - W), Block(floor, q.R)))


def learning(seed: int) -> Program:
    """A relaxation of 5 to 1,000 random transitions: 1–3 controls, 2–8 features, λ 0–100, some ill-conditioned."""
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return torch.rand((), generator=generator).item()

    m, p, N = 1 + int(3 * uniform()), 2 + int(7 * uniform()), int(5 * 200 ** uniform())
    weight = 0.0 if uniform() < 0.15 else 10 ** (-5 + 7 * uniform())
    phi, deviation = normal(generator, N, p), 2 * normal(generator, N, m)
    kind = uniform()
    if kind < 0.2:
        phi = phi * torch.logspace(0, -3 * uniform(), p, dtype=torch.float64)
    elif kind < 0.3:
        phi[:, -1] = phi[:, 0] + 10 ** (-1 - 3 * uniform()) * normal(generator, N)
    elif kind < 0.35:
        phi = phi.round()
    elif kind < 0.4:
        deviation = 1e-2 * deviation
    A, B = normal(generator, p, p) / p**0.5, normal(generator, p, m)
    following = 0.7 * phi @ A.mT + 0.1 * deviation @ B.mT + 0.01 * normal(generator, N, p)
    eye, root = torch.eye(p, dtype=torch.float64), normal(generator, p, p)
    P_b = root @ root.mT / p + 0.5 * eye if uniform() < 0.5 else 0 * eye
    reward = -forms.form(phi, eye) - 0.1 * forms.form(deviation, torch.eye(m, dtype=torch.float64))
    if uniform() < 0.2:
        reward = reward * 10 ** (-4 * uniform())
    sample = forms.Sample(phi, deviation, reward, following, -forms.form(phi, P_b), -forms.form(following, P_b))
    bound = P_b if uniform() < 0.5 else 0 * eye
    return relaxation(*forms.residual_system(sample, 0.97), bound, weight * eye, p, m)


def instance(batch: Program, index: int) -> Program:
    """One program of a batch, with a batch of its own."""

    def part(tensor: torch.Tensor, own: int) -> torch.Tensor:
        return tensor[index : index + 1] if tensor.dim() > own else tensor.unsqueeze(0)

    blocks = tuple(Block(part(C, 2), L) for C, L in batch.blocks)
    return Program(part(batch.c, 1), part(batch.A, 2), part(batch.b, 1), blocks)


class Clarabel(NamedTuple):
    """What Clarabel found."""

    z: torch.Tensor
    """(n,)."""
    status: str
    seconds: float
    """Of its solution alone."""


def by_clarabel(one: Program, tolerance: float = 1e-10) -> Clarabel:
    """Clarabel's solution of a program without batch dimensions, or with one of a single instance."""
    c, A, b = (part.squeeze(0) if part.dim() > own else part for part, own in zip(one[:3], (1, 2, 1), strict=True))
    N, n = A.shape
    eye = sparse.eye(N)
    rows = [sparse.hstack([sparse.csc_matrix(sign * A.numpy()), -eye]) for sign in (1, -1)] if N else []
    right = [b.numpy(), -b.numpy()] if N else []
    cones = [clarabel.NonnegativeConeT(2 * N)] if N else []
    for C, L in one.blocks:
        size = C.shape[-1]
        column, row = np.tril_indices(size)
        scale = np.where(row == column, 1.0, 2**0.5)
        lowered = -(L.numpy()[:, row, column] * scale).T
        rows.append(sparse.hstack([sparse.csc_matrix(lowered), sparse.csc_matrix((len(row), N))]))
        right.append(C.reshape(size, size).numpy()[row, column] * scale)
        cones.append(clarabel.PSDTriangleConeT(size))
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    cost = np.concatenate([c.numpy(), np.full(N, 1 / max(N, 1))])
    P = sparse.csc_matrix((n + N, n + N))
    stacked = sparse.csc_matrix(sparse.vstack(rows))
    found = clarabel.DefaultSolver(P, cost, stacked, np.concatenate(right), cones, settings).solve()
    return Clarabel(torch.tensor(np.array(found.x)[:n]), str(found.status), found.solve_time)
