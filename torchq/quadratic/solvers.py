"""Batches of [LMI]'s programs by torchq's own solver, or one after the other by CVXPY with Clarabel, the oracle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchq.errors import SolverError
from torchq.quadratic import forms, programs, sdp
from torchq.quadratic.forms import Quadratic
from torchq.semidefinite import solve as semidefinite
from torchq.semidefinite.program import Program, Status

SOLVERS = ("torchq", "clarabel")

_ENOUGH = 1e-5
"""Gap and residuals of a solution that is taken although it is inaccurate."""


class Solutions(NamedTuple):
    """Solutions of a batch; NaN where there is none."""

    q: Quadratic
    """(*batch, …)."""
    objective: Tensor
    """Optimal values, penalty included, (*batch)."""
    failures: list[str]
    """Of each instance in flat order, what went wrong; "" where nothing did."""

    @property
    def solved(self) -> Tensor:
        """Which were solved, (*batch)."""
        found = torch.tensor([not failure for failure in self.failures])
        return found.view(self.objective.shape)


def relaxations(G: Tensor, y: Tensor, bound: Tensor, penalty: Tensor, p: int, m: int, solver: str) -> Solutions:
    """`programs.relaxation` of a batch, G (*batch, samples, parameters), by one of `SOLVERS`."""
    if solver == "torchq":
        return _own(programs.relaxation(G, y, bound, penalty, p, m), p, m)
    return _one_by_one(G, y, bound, penalty, p, m)


def fitted(G: Tensor, y: Tensor, bound: Tensor, p: int, m: int, solver: str) -> Solutions:
    """`programs.fitted` of a batch, G (*batch, samples, parameters), by one of `SOLVERS`."""
    if solver == "torchq":
        return _own(programs.fitted(G, y, bound, p, m), p, m)
    return _one_by_one(G, y, bound, None, p, m)


def _own(program: Program, p: int, m: int) -> Solutions:
    with torch.no_grad():
        found = semidefinite.solve(program, alone=False)  # A run does not depend on its neighbours.
    worst = torch.stack((found.gap.abs() / (1 + found.objective.abs()), found.primal_residual, found.dual_residual))
    solved = found.solved | ((found.status == Status.INACCURATE) & (worst.amax(0) < _ENOUGH))
    z = torch.where(solved.unsqueeze(-1), found.z, torch.nan)
    failures = [
        "" if ok else f"the program is {Status(code).name.lower().replace('_', ' ')}"
        for ok, code in zip(solved.flatten().tolist(), found.status.flatten().tolist(), strict=True)
    ]
    return Solutions(forms.unpack(z, p, m), torch.where(solved, found.objective, torch.nan), failures)


def _one_by_one(G: Tensor, y: Tensor, bound: Tensor, penalty: Tensor | None, p: int, m: int) -> Solutions:
    given = [(G, 2), (y, 1), (bound, 2), *([(penalty, 2)] if penalty is not None else [])]
    batch = torch.broadcast_shapes(*(part.shape[: part.dim() - own] for part, own in given))
    flat = [part.expand(*batch, *part.shape[part.dim() - own :]).flatten(0, len(batch) - 1) if batch else part[None]
            for part, own in given]  # fmt: skip
    nothing = Quadratic(*(torch.full_like(part, torch.nan) for part in forms.baseline(p, m)))
    qs, objectives, failures = [], [], []
    for own_G, own_y, own_bound, *weights in zip(*flat, strict=True):
        try:
            if weights:
                found = sdp.solve_relaxation(own_G, own_y, own_bound, weights[0], p, m)
            else:
                found = sdp.solve_fitted(own_G, own_y, own_bound, p, m)
            qs.append(found.q)
            objectives.append(found.objective)
            failures.append("")
        except SolverError as error:
            qs.append(nothing)
            objectives.append(float("nan"))
            failures.append(str(error))
    q = Quadratic(*(torch.stack(parts).view(*batch, *parts[0].shape) for parts in zip(*qs, strict=True)))
    return Solutions(q, torch.tensor(objectives, dtype=torch.float64).view(batch), failures)
