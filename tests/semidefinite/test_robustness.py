"""Programs that a solver meets outside of learning: the simplest, of any units, degenerate ones, and none at all."""

import pytest
import torch
from random_programs import normal, program

from torchq.semidefinite.program import Block, Program, Status
from torchq.semidefinite.solve import solve


def one(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def linear(cost, *rows):
    """min costᵀz with aᵀz + b ≥ 0 for rows (a, b)."""
    blocks = tuple(Block(one(b).view(1, 1), one(*a).view(-1, 1, 1)) for a, b in rows)
    return Program(one(*cost), torch.zeros(0, len(cost), dtype=torch.float64), one(), blocks)


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.1, 1e-5, 1e5, 1e9])
def test_the_simplest_program(bound, method):
    found = solve(linear([1.0], ([1.0], -bound)))
    assert found.status == Status.SOLVED
    torch.testing.assert_close(found.z, one(bound), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rows", [((1e6, 0), -1e6), ((1e-5, 0), -1e-5)])
@pytest.mark.parametrize("cost", [1e-8, 1.0, 1e8])
def test_units_do_not_matter(rows, cost, method):
    found = solve(linear([cost, cost], rows, ((0, 1e-3), -2e-3)), polish=True)
    assert found.status == Status.SOLVED
    torch.testing.assert_close(found.z, one(1, 2))
    assert found.error < 1e-12


@pytest.mark.parametrize("exponent", [-6, -3, 3, 6])
def test_inequalities_times_a_number_are_the_same(exponent, method):
    batch = program(11, 20, 4, 3, (3, 1))
    blocks = tuple(Block(10.0**exponent * C, 10.0**exponent * L) for C, L in batch.blocks)
    found, expected = solve(batch._replace(blocks=blocks)), solve(batch)
    assert found.solved.all()
    torch.testing.assert_close(found.objective, expected.objective, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("times", [1e-6, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize("of", ["objective", "variables"])
def test_units_of_objective_and_variables_are_free(times, of, method):
    batch = program(12, 24, 12, 40, (4,))
    (block,) = batch.blocks
    expected = solve(batch)
    if of == "objective":
        found = solve(Program(times * batch.c, times * batch.A, times * batch.b, batch.blocks))
        objective = found.objective / times
    else:
        found = solve(Program(times * batch.c, times * batch.A, batch.b, (Block(block.C, times * block.L),)))
        objective = found.objective
    assert found.solved.all()
    torch.testing.assert_close(objective, expected.objective, rtol=1e-7, atol=1e-7)


def test_any_point_will_do_where_nothing_costs(method):
    batch = program(13, 8, 4, 0, (3,))
    found = solve(batch._replace(c=torch.zeros(4, dtype=torch.float64)))
    assert found.solved.all()
    assert (found.primal_residual < 1e-9).all()


def test_where_all_data_are_homogeneous(method):
    edge = one(0.0).view(1, 1).requires_grad_()
    found = solve(linear([1.0])._replace(blocks=(Block(edge, one(1.0).view(1, 1, 1)),)))
    assert found.status == Status.SOLVED
    torch.testing.assert_close(found.z.detach(), one(0.0), atol=1e-9, rtol=0)
    found.z.sum().backward()
    torch.testing.assert_close(edge.grad, one(-1.0).view(1, 1))
    held = Program(one(0.5), one(1.0).view(1, 1), one(0.0), ())
    assert solve(held).status == Status.SOLVED


def falling(n, size, count=40):
    """Random programs whose cost falls for ever, strictly inside of their inequality."""
    generator = torch.Generator().manual_seed(n + size)
    L, v, c = normal(generator, count, n, size, size), normal(generator, count, n), normal(generator, count, n)
    L, root = L + L.mT, normal(generator, count, size, size)
    inside = root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)
    L[:, 0] += (inside - torch.einsum("bk,bkij->bij", v, L)) / v[:, 0, None, None]
    c = torch.where((c * v).sum(-1, keepdim=True) > 0, -c, c) - 0.5 * v
    none = torch.zeros(0, n, dtype=torch.float64)
    return Program(c, none, none[:, 0], (Block(torch.eye(size, dtype=torch.float64), L),))


@pytest.mark.parametrize(("n", "size"), [(1, 1), (2, 2), (3, 3), (5, 3), (6, 1)])
def test_costs_that_fall_for_ever_are_found_in_any_direction(n, size, method):
    assert (solve(falling(n, size)).status == Status.UNBOUNDED).all()


def test_a_cost_that_nothing_holds_falls_for_ever(method):
    assert solve(linear([1.0, 1.0], ([1.0, 0.0], -2.0))).status == Status.UNBOUNDED
    assert solve(linear([1.0])).status == Status.UNBOUNDED


def bounded_real(A, B, C):
    """Discrete bounded real lemma, min γ: [[P − AᵀPA, −AᵀPB], [·, γI − BᵀPB]] ⪰ [[CᵀC, 0], [0, 0]]; z = (triu P, γ)."""
    n, m = B.shape
    row, column = torch.triu_indices(n, n)
    E = torch.zeros(len(row) + 1, n, n, dtype=torch.float64)
    E[range(len(row)), row, column] = E[range(len(row)), column, row] = 1.0
    gain = torch.zeros(len(E), dtype=torch.float64)
    gain[-1] = 1.0
    A = A.unsqueeze(-3)
    corner, side = E - A.mT @ E @ A, -A.mT @ E @ B
    last = (gain[:, None, None] * torch.eye(m, dtype=torch.float64) - B.mT @ E @ B).expand(*A.shape[:-3], -1, m, m)
    L = torch.cat((torch.cat((corner, side), -1), torch.cat((side.mT, last), -1)), -2)
    none = torch.zeros(0, len(E), dtype=torch.float64)
    return Program(gain, none, none[:, 0], (Block(torch.block_diag(-C.mT @ C, 0 * B.mT @ B), L),))


def test_gradients_of_an_optimum_are_the_multipliers_though_solutions_are_many():
    """By the envelope theorem; P is seldom unique here, and no step may lead to another."""
    generator = torch.Generator().manual_seed(0)
    A = normal(generator, 1000, 3, 3)
    A = (0.8 * A / torch.linalg.eigvals(A).abs().amax(-1)[:, None, None]).requires_grad_()
    batch = bounded_real(A, normal(generator, 3, 2), normal(generator, 2, 3))
    found = solve(batch)
    assert found.solved.double().mean() > 0.99
    (gradient,) = torch.autograd.grad(found.z[:, -1].sum(), A, retain_graph=True)
    (block,) = batch.blocks
    F = block.C + torch.einsum("bk,bkij->bij", found.z.detach(), block.L)
    (expected,) = torch.autograd.grad(-(F * found.Y[0]).sum(), A)
    apart = (gradient - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert (apart[found.solved & (found.error < 1e-10)] < 1e-6).all()


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_of_no_programs_there_are_no_solutions(batch, method):
    c = torch.zeros(*batch, 2, dtype=torch.float64, requires_grad=True)
    held = program(0, 1, 2, 3, (2,))
    found = solve(Program(c, held.A[0], held.b[0], tuple(Block(C[0], L) for C, L in held.blocks)))
    assert found.z.shape == (*batch, 2)
    found.z.sum().backward()


@pytest.mark.parametrize(("name", "value"), [("tolerance", -1.0), ("tolerance", float("nan")), ("iterations", 0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        solve(program(0, 1), **{name: value})
