"""A thousand semidefinite programs of one's own in one call: a common Lyapunov function for each pair of systems.

    python examples/lyapunov.py

A machine switches between two modes, x⁺ = A₁x and x⁺ = A₂x, each stable. It is stable however it switches if one
V(x) = xᵀPx falls in both. Of these the program finds that with the least trace,

    min tr P     s.t.  P − A_iᵀ P A_i ⪰ I,   i = 1, 2

(Boyd, El Ghaoui, Feron and Balakrishnan, Linear Matrix Inequalities in System and Control Theory, 1994). Solves it for
a thousand random pairs, says for which there is none, differentiates what it found, and compares with CVXPY.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from torchq.semidefinite.program import Block, Program, Status
from torchq.semidefinite.solve import solve

PAIRS, STATES, COMPARED = 1000, 3, 20


def pairs(generator: torch.Generator) -> Tensor:
    """Random stable systems, spectral radius 0.9, (pairs, 2, states, states)."""
    A = torch.randn(PAIRS, 2, STATES, STATES, generator=generator, dtype=torch.float64)
    return 0.9 * A / torch.linalg.eigvals(A).abs().amax(-1)[..., None, None]


def basis() -> Tensor:
    """E_k with P = Σ z_k E_k: the entries of P's upper triangle are the variables, (variables, states, states)."""
    row, column = torch.triu_indices(STATES, STATES)
    E = torch.zeros(len(row), STATES, STATES, dtype=torch.float64)
    E[range(len(row)), row, column] = 1
    E[range(len(row)), column, row] = 1
    return E


def program(A: Tensor) -> Program:
    """The program of each pair; without residuals, A z − b has no rows."""
    E, eye = basis(), torch.eye(STATES, dtype=torch.float64)
    c = E.diagonal(dim1=-2, dim2=-1).sum(-1)
    # F_i(z) = −I + Σ z_k (E_k − A_iᵀ E_k A_i), one L for each pair
    blocks = tuple(Block(-eye, E - mode.mT.unsqueeze(1) @ E @ mode.unsqueeze(1)) for mode in A.unbind(1))
    return Program(c, c.new_zeros(0, len(c)), c.new_zeros(0), blocks)


def by_cvxpy(A: Tensor) -> float:
    """The same by CVXPY with Clarabel; infinite where there is none."""
    import cvxpy as cp

    P = cp.Variable((STATES, STATES), symmetric=True)
    constraints = [P - mode.T @ P @ mode >> torch.eye(STATES).numpy() for mode in A.numpy()]
    problem = cp.Problem(cp.Minimize(cp.trace(P)), constraints)
    return float(problem.solve(solver="CLARABEL"))


def main() -> None:
    """Solve, differentiate and compare."""
    A = pairs(torch.Generator().manual_seed(0))
    solve(program(A[:8]))  # Compiles the solver, once for all time.
    begun = time.perf_counter()
    found = solve(program(A))
    seconds = (time.perf_counter() - begun) / PAIRS
    stable, proved = found.status == Status.SOLVED, found.status == Status.INFEASIBLE
    print(f"{int(stable.sum())} of {PAIRS} pairs have a common Lyapunov function, {int(proved.sum())} have none; "
          f"{1e6 * seconds:.0f} µs each")  # fmt: skip

    some = A[stable].requires_grad_()
    traces = solve(program(some)).z @ basis().diagonal(dim1=-2, dim2=-1).sum(-1)
    traces.sum().backward()
    assert some.grad is not None
    steepest = some.grad.abs().amax((1, 2, 3))
    print(f"least traces between {traces.min():.1f} and {traces.max():.1f}; where an entry of a mode grows by 0.001, "
          f"they change by up to {0.001 * steepest.median():.2f} (median)")  # fmt: skip

    begun = time.perf_counter()
    expected = [by_cvxpy(one) for one in A.detach()[:COMPARED]]
    slow = (time.perf_counter() - begun) / COMPARED
    ours, none = found.objective[:COMPARED].tolist(), float("inf")
    both = [(a, b) for a, b in zip(ours, expected, strict=True) if a < none and b < none]
    worst = max(abs(a - b) / abs(b) for a, b in both)
    same = sum((a == none) == (b == none) for a, b in zip(ours, expected, strict=True))
    print(f"CVXPY with Clarabel: {1e3 * slow:.1f} ms each, {slow / seconds:.0f} times as long; {same} of {COMPARED} "
          f"agree whether there is one, and on traces to {worst:.0e}")  # fmt: skip


if __name__ == "__main__":
    main()
