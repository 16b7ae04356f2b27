"""The semidefinite programs of [LMI] in CVXPY, compiled once for each shape; the only door to CVXPY."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq.errors import SolverError
from torchq.quadratic import backends
from torchq.quadratic.forms import Quadratic, from_triangle, triangle_size, unpack
from torchq.quadratic.programs import CONTROL_FLOOR

_LOOSE = {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6}
"""Tolerances of a second attempt, where the first stalls short of the default 1e-8."""


class Solution(NamedTuple):
    """Solution of one program."""

    q: Quadratic
    W: Tensor | None
    """Relaxation of S R⁻¹ Sᵀ; None in the iterative program."""
    objective: float
    """Optimal value, penalty included."""


class _Program(NamedTuple):
    problem: Any
    z: Any
    G: Any
    y: Any
    bound: Any
    penalty: Any
    variables: tuple[Any, ...]


def layer(kind: Literal["relaxation", "fitted"], samples: int, p: int, m: int, backend: str) -> Any:
    """A `cvxpylayers.torch.CvxpyLayer` of a program: (G, y, B, λM) to (P, S, R, W), or (G, y, B) to (P, S, R).

    Args:
        kind: the program of `solve_relaxation` or of `solve_fitted`.
        samples: per instance.
        p: features.
        m: controls.
        backend: one of `torchq.quadratic.backends.BACKENDS`.

    Raises:
        ValueError: if the back end is none of these.
        ImportError: if cvxpylayers or the back end is not installed, with the command that installs it.
    """
    if backend not in backends.BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(backends.BACKENDS)}, got {backend!r}")
    try:
        from cvxpylayers.torch import CvxpyLayer
    except ImportError as error:
        raise ImportError('cvxpylayers is not installed; install it with: pip install "torchq[layers]"') from error
    program = _program(kind, samples, p, m)
    parameters = [one for one in (program.G, program.y, program.bound, program.penalty) if one is not None]
    solver = None if backend == "diffcp" else backends.interface(backend, program.problem)
    return CvxpyLayer(program.problem, parameters=parameters, variables=list(program.variables), solver=solver)


def solve_relaxation(
    G: Tensor, y: Tensor, bound: Tensor, penalty: Tensor, p: int, m: int, solver: str = "CLARABEL"
) -> Solution:
    """The convex relaxation with its penalty.                                          [LMI, eqs. (15), (16), (18)]

        min  mean |Gz + y| + λ tr(MW)   s.t.  [[W, S], [Sᵀ, R]] ⪰ 0,  B − P − W ⪰ 0,  R ⪰ ε_R I

    Args:
        G: residual matrix, (samples, parameters), from `quadratic.residual_system`.
        y: residual offset, (samples,).
        bound: B, (p, p): zero keeps Θ ⪰ 0 (`dev`); EᵀP_bE bounds the whole value instead (`tot`).
        penalty: λM, (p, p); zero gives the lower bound.
        p: features.
        m: controls.
        solver: a CVXPY solver for SDPs.

    Raises:
        SolverError: if the solver does not return an optimum.
    """
    return _solve(_program("relaxation", len(y), p, m), G, y, bound, penalty, p, m, solver)


def solve_fitted(G: Tensor, y: Tensor, bound: Tensor, p: int, m: int, solver: str = "CLARABEL") -> Solution:
    """One iteration of LMI-QLi.                                                          [LMI, eq. (14)]

        min  mean |Gz + y|   s.t.  [[B − P, S], [Sᵀ, R]] ⪰ 0,  R ⪰ ε_R I

    Arguments as in `solve_relaxation`, G and y from `quadratic.fitted_system`.
    """
    return _solve(_program("fitted", len(y), p, m), G, y, bound, None, p, m, solver)


@lru_cache(maxsize=64)
def _program(kind: Literal["relaxation", "fitted"], samples: int, p: int, m: int) -> _Program:
    """A program in DPP form: its parameters are the residual system, not the raw data, so it is compiled once."""
    import cvxpy as cp

    relaxed = kind == "relaxation"
    P, R = cp.Variable((p, p), symmetric=True), cp.Variable((m, m), symmetric=True)
    S = cp.Variable((p, m))
    W = cp.Variable((p, p), symmetric=True) if relaxed else None
    bound = cp.Parameter((p, p), symmetric=True)
    # cp.vec counts column by column; of a transpose, row by row.
    blocks = [_triangle(P, p), cp.vec(S.T, order="F"), _triangle(R, m)] + ([_triangle(W, p)] if relaxed else [])
    z = cp.hstack(blocks)
    G, y = cp.Parameter((samples, z.shape[0])), cp.Parameter(samples)
    cost = cp.sum(cp.abs(G @ z + y)) / samples
    constraints = [R >> CONTROL_FLOOR * np.eye(m)]
    penalty = None
    if relaxed:
        penalty = cp.Parameter((p, p), symmetric=True)
        cost += cp.trace(penalty @ W)
        constraints += [cp.bmat([[W, S], [S.T, R]]) >> 0, bound - P - W >> 0]
    else:
        constraints.append(cp.bmat([[bound - P, S], [S.T, R]]) >> 0)
    variables = (P, S, R, W) if relaxed else (P, S, R)
    return _Program(cp.Problem(cp.Minimize(cost), constraints), z, G, y, bound, penalty, variables)


def _triangle(matrix: Any, size: int) -> Any:
    import cvxpy as cp

    return cp.hstack([matrix[i, j] for i in range(size) for j in range(i, size)])


def _solve(
    program: _Program, G: Tensor, y: Tensor, bound: Tensor, penalty: Tensor | None, p: int, m: int, solver: str
) -> Solution:
    import cvxpy as cp

    if not (torch.isfinite(G).all() and torch.isfinite(y).all()):
        raise SolverError("data: expected finite numbers, got NaN or infinity in the features or rewards")
    program.G.value, program.y.value, program.bound.value = G.numpy(), y.numpy(), bound.numpy()
    if program.penalty is not None and penalty is not None:
        program.penalty.value = penalty.numpy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The status says the same, and is turned into an error below.
            # Never a warm start: it goes on from the factorisation of the program solved before, so that a fit would
            # depend, in its last digits, on what this process has solved already.
            program.problem.solve(solver=solver, warm_start=False)
            if program.problem.status == cp.OPTIMAL_INACCURATE and solver == "CLARABEL":
                program.problem.solve(solver=solver, warm_start=False, **_LOOSE)
    except cp.SolverError as error:
        raise SolverError(f"{solver} failed on {len(y)} samples ({error})") from error
    if program.problem.status != cp.OPTIMAL:
        raise SolverError(f"{solver} returned {program.problem.status!r} on {len(y)} samples")
    z = torch.from_numpy(np.asarray(program.z.value, dtype=np.float64))
    q = unpack(z, p, m)
    W = None
    if program.penalty is not None:
        W = from_triangle(z[-triangle_size(p) :], p)
    return Solution(q, W, float(program.problem.value))
