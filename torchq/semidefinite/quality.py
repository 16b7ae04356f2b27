"""What is said of a batch of programs and their solutions: whether data are sound, how good, and how it ended."""

from __future__ import annotations

import torch
from torch import Tensor

from torchq.semidefinite.program import Point, Program, Quality, Status, adjoint, objective, terms, values

POOR = 1e6
"""A merit above which the last point says more than the best."""
FAR = 1e13
"""A size of z or Y at which a point runs away, along what proves that there is no solution."""
_ACCEPTED = 100.0
"""Times the tolerance, where rounding allows no more."""
_CERTAIN = 1e-8
"""Of a certificate: an instance is infeasible if no z with all |z_k| below 1/this meets its inequalities, and unbounded
if no multipliers Y with Σ tr Y_j below 1/this balance its cost."""


def look(program: Program, batch: int) -> tuple[Tensor, int | None]:
    """Which instances are finite, (batch,), and the number of the first part that is not symmetric."""
    finite = torch.ones(batch, dtype=torch.bool, device=program.c.device)
    own = [1, 2, 1, *[2, 3] * len(program.blocks)]
    for part, dims in zip(program.parts(), own, strict=True):
        finite = finite & torch.isfinite(part).flatten(part.dim() - dims).all(-1)
    matrices = program.parts()[3:]
    return finite, next((3 + i for i, matrix in enumerate(matrices) if not _is_symmetric(matrix)), None)


def _is_symmetric(matrix: Tensor) -> bool:
    """Whether matrices that are finite are symmetric."""
    off = (matrix - matrix.mT).abs()
    return not bool((off > 1e-9 * matrix.abs().amax((-2, -1), keepdim=True)).any())


def judge(program: Program, point: Point, finite: Tensor) -> Tensor:
    """`Status` of each instance, (batch,)."""
    status = torch.where(point.merit <= _ACCEPTED, int(Status.SOLVED), int(Status.INACCURATE))
    length = point.z.abs().sum(-1, keepdim=True).clamp_min(1e-300)
    lost = (point.merit > POOR) | (length > FAR).squeeze(-1)
    if lost.device.type == "cpu" and not lost.any():  # Elsewhere asking would wait for the device.
        return torch.where(finite, status, int(Status.NOT_FINITE))
    against = torch.zeros_like(point.merit)
    balance = torch.zeros_like(point.z)
    for block, Y in zip(program.blocks, point.Y, strict=True):
        against = against - (block.C * Y).sum((-2, -1))
        balance = balance + adjoint(block, Y)
    # Any z that meets the inequalities has 0 ≤ Σ ⟨F(z), Y⟩ = −against + zᵀ balance.
    infeasible = lost & (against > 0) & (balance.abs().sum(-1) < _CERTAIN * against)
    ray = point.z / length
    rate = objective(program._replace(b=torch.zeros_like(program.b)), ray)
    # Any Y and w that balance c have rate ≥ Σ ⟨Σ_k ray_k L_jk, Y_j⟩.
    unbounded = lost & (rate < 0)
    for block in program.blocks:
        change = torch.nan_to_num(terms(block, ray))
        unbounded = unbounded & (torch.linalg.eigvalsh(change)[:, 0] > -_CERTAIN * rate.abs())
    status = torch.where(unbounded, int(Status.UNBOUNDED), status)
    status = torch.where(infeasible, int(Status.INFEASIBLE), status)
    return torch.where(finite, status, int(Status.NOT_FINITE))


def describe(program: Program, z: Tensor, w: Tensor, Y: tuple[Tensor, ...]) -> Quality:
    """How good solutions are."""
    cost = objective(program, z)
    dual = program.c + (program.A.mT @ w.unsqueeze(-1)).squeeze(-1)
    value = -(program.b * w).sum(-1)
    primal = torch.zeros_like(cost)
    for block, multiplier in zip(program.blocks, Y, strict=True):
        dual = dual - adjoint(block, multiplier)
        value = value - (block.C * multiplier).sum((-2, -1))
        primal = torch.maximum(primal, -torch.linalg.eigvalsh(torch.nan_to_num(values(block, z)))[:, 0])
    dual_residual = torch.nn.functional.pad(dual.abs(), (0, 1)).amax(-1)  # Of no variables it is zero.
    return Quality(cost, (cost - value).abs() + dual_residual * z.abs().sum(-1), primal, dual_residual)
