"""Solvers behind the differentiable layers: batches of one program, through cvxpylayers' custom-solver interface.

The solvers give solutions; derivatives are those of `conic` for all of them, from solutions polished by Newton
steps. An instance that is not solved comes back as NaN, with a warning that names it, and with gradient zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq.errors import SolverError
from torchq.quadratic import conic, forms
from torchq.quadratic.conic import Cone, Pattern
from torchq.semidefinite import solve as semidefinite
from torchq.semidefinite.program import Program, Status

if TYPE_CHECKING:
    from cvxpylayers.interfaces import SolverInterface

BACKENDS = ("torchq", "clarabel", "moreau", "diffcp")

_INSTALL = {"clarabel": "pip install clarabel", "moreau": "pip install moreau (with a GPU: moreau-cuda13)"}
_TOLERANCE = 1e-11
_EXACT = 1e-9
"""Of a solution that has derivatives, the largest error of the optimality conditions."""


def torchq(program: Program, sizes: tuple[int, int]) -> list[Tensor]:
    """P, S and R, and W of a relaxation, by `torchq.semidefinite`; NaN where there is no solution.

    Args:
        program: of `programs`, in any batch dimensions.
        sizes: features and controls.

    Raises:
        SolverError: if no instance was solved.
    """
    solution = semidefinite.solve(program, report=_report)
    z = torch.where(solution.solved.unsqueeze(-1), solution.z, torch.nan)
    p, m = sizes
    q = forms.unpack(z, p, m)
    rest = z.shape[-1] - forms.triangle_size(p) - p * m - forms.triangle_size(m)
    return [*q, forms.from_triangle(z[..., -rest:], p)] if rest else list(q)


def _report(status: Tensor, error: Tensor) -> None:
    """Warn of instances that were not solved, or not well enough to be differentiated."""
    _warn(status == Status.SOLVED, [Status(code).name.lower().replace("_", " ") for code in status.tolist()])
    _warn_of_rough(error, status == Status.SOLVED)


def _warn_of_rough(error: Tensor, solved: Tensor) -> None:
    for index in ((error > _EXACT) & solved).nonzero().squeeze(-1).tolist():
        found = f"instance {index} of {len(error)} is exact to {error[index]:.0e} only"
        warnings.warn(f"{found}: do not trust its derivatives", stacklevel=2)


class Instances(NamedTuple):
    """A batch of programs of one shape."""

    pattern: Pattern
    cone: Cone
    q: Tensor
    """(batch, columns)."""
    values: Tensor
    """Of A, row by row, (batch, entries)."""
    b: Tensor
    """(batch, rows)."""


class Solutions(NamedTuple):
    """x, y and s of a batch, and each instance's status."""

    x: Tensor
    y: Tensor
    s: Tensor
    status: list[str]


Solve = Callable[[Instances], Solutions]


def clarabel(problems: Instances) -> Solutions:
    """Clarabel, one instance after the other on the CPU."""
    import clarabel as solver
    from scipy.sparse import csc_array, csr_array

    pattern, cone, device = problems.pattern, problems.cone, problems.q.device
    kinds = [(solver.ZeroConeT, cone.num_zero), (solver.NonnegativeConeT, cone.num_nonneg)]
    cones = [kind(count) for kind, count in kinds if count] + [solver.PSDTriangleConeT(n) for n in cone.psd_sizes]
    settings = solver.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _TOLERANCE
    P = csc_array((problems.q.shape[1],) * 2)
    row, column = pattern.row.cpu().numpy(), pattern.column.cpu().numpy()
    found = []
    for q, values, b in zip(*(t.cpu().numpy() for t in (problems.q, problems.values, problems.b)), strict=True):
        A = csc_array(csr_array((values, (row, column)), shape=pattern.shape))
        found.append(solver.DefaultSolver(P, q, A, b, cones, settings).solve())
    x, y, s = (torch.tensor(np.array([getattr(one, name) for one in found]), device=device) for name in ("x", "z", "s"))
    return Solutions(x, y, s, [str(one.status) for one in found])


def moreau(problems: Instances) -> Solutions:
    """Moreau, all instances together, on the CPU or on CUDA, wherever the tensors are."""
    import moreau.torch as solver
    from moreau import Cones, IPMSettings, Settings

    pattern, cone, batch = problems.pattern, problems.cone, len(problems.q)
    rows, columns = pattern.shape
    counts = torch.bincount(pattern.row.cpu(), minlength=rows)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    nothing = torch.zeros(columns + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    cones = Cones(num_zero_cones=cone.num_zero, num_nonneg_cones=cone.num_nonneg, psd_dims=list(cone.psd_sizes))
    ipm = IPMSettings(tol_gap_abs=_TOLERANCE, tol_gap_rel=_TOLERANCE, tol_feas=_TOLERANCE)
    settings = Settings(device=problems.q.device.type, batch_size=batch, enable_grad=False, ipm_settings=ipm)
    program = solver.Solver(columns, rows, *nothing, offsets, pattern.column.cpu(), cones=cones, settings=settings)
    found = program.solve(problems.q.new_zeros(batch, 0), problems.values, problems.q, problems.b)
    status = program.info.status
    names = [
        str(getattr(one, "name", one)) for one in (status if isinstance(status, list | tuple) else [status] * batch)
    ]
    return Solutions(found.x, found.z, found.s, names)


_SOLVES: dict[str, Solve] = {"clarabel": clarabel, "moreau": moreau}


def interface(name: str, problem: Any) -> SolverInterface:
    """Custom solver of a `CvxpyLayer` for batches of one CVXPY problem.

    Args:
        name: "clarabel" or "moreau".
        problem: the problem of the layer, in DPP form.

    Raises:
        ImportError: if the solver is not installed, with the command that installs it.
    """
    from importlib import import_module

    from cvxpylayers.interfaces import SolverInterface

    try:
        import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; install it with: {_INSTALL[name]}") from error
    solve = _SOLVES[name]
    structure = problem.get_problem_data(solver="CLARABEL")[0]
    program, dims = structure["param_prob"], structure["dims"]
    order, pattern, b_rows = _by_rows(*program.reduced_A.problem_data_index)
    cone = Cone(dims.zero, dims.nonneg, tuple(dims.psd))

    class Batched(SolverInterface):
        canon_solver = "CLARABEL"

        def solve_torch_batch(
            self, P: Any, q: Tensor, A: Tensor, dims: Any, solver_args: dict[str, Any], needs_grad: bool
        ) -> tuple[Tensor, Tensor, Any]:
            entries = len(order)
            b = A.new_zeros(len(A), pattern.shape[0])
            b[:, b_rows] = A[:, entries:]
            here = Pattern(pattern.row.to(A.device), pattern.column.to(A.device), pattern.shape)
            return solve_instances(solve, Instances(here, cone, q[:, :-1], -A[:, order], b), needs_grad)

        def derivative_torch_batch(
            self, dprimal: Tensor, ddual: Tensor, saved_state: Saved
        ) -> tuple[None, Tensor, Tensor]:
            dq, dvalues, db = differentiate(saved_state, dprimal, ddual)
            dA = torch.empty(len(dq), len(order) + len(b_rows), dtype=dq.dtype, device=dq.device)
            dA[:, order], dA[:, len(order) :] = -dvalues, db[:, b_rows]
            return None, torch.nn.functional.pad(dq, (0, 1)), dA

    return Batched()


def _by_rows(indices: Any, pointers: Any, shape: tuple[int, int]) -> tuple[Tensor, Pattern, Tensor]:
    """Order that brings the values of −A, stored column by column with b at last, row by row; and the rows of b."""
    rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
    columns = torch.repeat_interleave(torch.as_tensor(np.diff(pointers).astype(np.int64)))
    entries = int(pointers[-2])
    order = (rows[:entries] * shape[1] + columns[:entries]).argsort()
    return order, Pattern(rows[order], columns[order], (shape[0], shape[1] - 1)), rows[entries:]


class Saved(NamedTuple):
    """What the backward pass needs."""

    problems: Instances
    x: Tensor
    v: Tensor
    solved: Tensor


def solve_instances(solve: Solve, problems: Instances, polished: bool) -> tuple[Tensor, Tensor, Saved]:
    """Primal and dual solutions of a batch, NaN where there is none.

    Args:
        solve: the solver.
        problems: the batch.
        polished: whether to make the solutions exact by Newton steps, as derivatives need them.

    Raises:
        SolverError: if no instance was solved.
    """
    batch = len(problems.q)
    finite = torch.stack([torch.isfinite(t).all(-1) for t in (problems.q, problems.values, problems.b)]).all(0)
    if not finite.any():
        raise SolverError("data: expected finite numbers, got NaN or infinity in every instance")
    # A solver that takes the batch as one must not meet NaN: another instance stands in for it.
    stand_in = torch.where(finite, torch.arange(batch, device=finite.device), finite.int().argmax())
    tidy = problems._replace(q=problems.q[stand_in], values=problems.values[stand_in], b=problems.b[stand_in])
    solution = solve(tidy)
    names = [status.lower().replace("_", "") for status in solution.status]
    solved = finite & torch.tensor([name in ("solved", "almostsolved") for name in names], device=finite.device)
    reasons = [status if ok else "not finite" for status, ok in zip(solution.status, finite.tolist(), strict=True)]
    _warn(solved, reasons)
    x, v = solution.x, solution.y - solution.s
    if polished:
        A = tidy.pattern.dense(tidy.values)
        x, v = conic.polish(tidy.q, A, tidy.b, x, v, tidy.cone)
        left = conic.residual(tidy.q, A, tidy.b, x, v, conic.project_dual(v, tidy.cone)[0]).abs().amax(-1)
        _warn_of_rough(left / (1 + tidy.b.abs().amax(-1)), solved)
    y = conic.project_dual(v, tidy.cone)[0] if polished else solution.y
    primal, dual = (torch.where(solved.unsqueeze(-1), t, torch.nan) for t in (x, y))
    return primal, dual, Saved(tidy, x, v, solved)


def _warn(solved: Tensor, reasons: list[str]) -> None:
    missing = (~solved).nonzero().squeeze(-1).tolist()
    if reasons and all(reason == "not finite" for reason in reasons):
        raise SolverError("data: expected finite numbers, got NaN or infinity in every instance")
    if reasons and len(missing) == len(reasons):
        raise SolverError(f"solved none of {len(reasons)} instances ({reasons[0]}); check the data's excitation")
    for index in missing:
        message = f"instance {index} of {len(reasons)} was not solved ({reasons[index]}); its outputs are NaN"
        warnings.warn(message, stacklevel=2)


def differentiate(saved: Saved, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, the values of A and b; zero for instances without a solution."""
    problems, x, v, solved = saved
    keep = solved.unsqueeze(-1)
    dx, dy = (torch.where(keep, gradient, 0.0) for gradient in (dx, dy))
    A = problems.pattern.dense(problems.values)
    of_q, of_b = conic.adjoint(A, v, problems.cone, dx, dy)
    y = conic.project_dual(v, problems.cone)[0]
    row, column = problems.pattern.row, problems.pattern.column
    dvalues = y[:, row] * of_q[:, column] + of_b[:, row] * x[:, column]
    return tuple(torch.where(keep, gradient, 0.0) for gradient in (of_q, dvalues, -of_b))  # type: ignore[return-value]
