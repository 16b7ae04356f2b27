"""Small semidefinite programs: solutions beside Clarabel's and the optimality conditions, and what has none."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from random_programs import by_clarabel, instance, learning, normal, program

from torchq import native
from torchq.semidefinite import interior_point, processor
from torchq.semidefinite.in_torch import InTorch
from torchq.semidefinite.processor import Processor
from torchq.semidefinite.program import Block, Program, Status, objective, values
from torchq.semidefinite.quality import judge
from torchq.semidefinite.solve import has_compiler, solve


def test_without_a_compiler_it_is_slower_and_says_so(monkeypatch):
    expected = solve(program(0, 3), polish=True)
    monkeypatch.setattr(native, "compiler", lambda: None)
    processor.library.cache_clear()
    has_compiler.cache_clear()
    with pytest.warns(UserWarning, match=r"in torch operations, which takes longer: no C\+\+ compiler found; install"):
        found = solve(program(0, 3), polish=True)
    torch.testing.assert_close(found.z, expected.z, rtol=1e-9, atol=1e-9)
    has_compiler.cache_clear()


def least_eigenvalue(one, z):
    return min(torch.linalg.eigvalsh(values(block, z))[:, 0].min() for block in one.blocks)


SHAPES = ((3, 0, (3,)), (6, 20, (3, 2, 1)), (4, 3, (2,)), (9, 50, (5,)), (20, 11, (6, 4)), (2, 7, (1, 1)))


@pytest.mark.parametrize(("n", "num_residuals", "sizes"), SHAPES)
def test_optima_are_clarabels(n, num_residuals, sizes, method):
    batch = program(1, 5, n, num_residuals, sizes)
    found = solve(batch)
    assert found.solved.all()
    for index in range(5):
        one = instance(batch, index)
        z, status, _ = by_clarabel(one)
        assert status in ("Solved", "AlmostSolved")
        expected = objective(one, z[None])
        torch.testing.assert_close(found.objective[index : index + 1], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(objective(one, found.z[index : index + 1]), found.objective[index : index + 1])
        assert least_eigenvalue(one, found.z[index : index + 1]) > -1e-8


def test_optimality_conditions_hold(method):
    batch = program(2, 4)
    found = solve(batch, polish=True)
    u = torch.einsum("bik,bk->bi", batch.A, found.z) - batch.b
    assert (found.w.abs() <= 1 / 20 + 1e-12).all()
    torch.testing.assert_close((u * found.w).sum(-1), u.abs().mean(-1), rtol=1e-10, atol=1e-12)
    stationary = batch.c + torch.einsum("bik,bi->bk", batch.A, found.w)
    for (C, L), Y in zip(batch.blocks, found.Y, strict=True):
        F = C + torch.einsum("bk,kij->bij", found.z, L)
        assert torch.linalg.eigvalsh(Y).min() > -1e-12
        assert (F @ Y).abs().max() < 1e-11
        stationary = stationary - torch.einsum("bij,kij->bk", Y, L)
    torch.testing.assert_close(stationary, torch.zeros_like(stationary), atol=1e-12, rtol=0)
    assert (found.gap.abs() < 1e-11).all()
    assert (found.dual_residual < 1e-12).all()
    assert (found.primal_residual < 1e-11).all()
    assert (found.error < 1e-13).all()


@pytest.mark.parametrize("seed", range(30))
def test_the_program_for_processors_equals_the_one_in_torch(seed):
    batch = learning(seed)
    ours, theirs = (method(batch, 1).solve(1e-10, 50) for method in (Processor, InTorch))
    finite = torch.ones(1, dtype=torch.bool)
    assert torch.equal(judge(batch, ours, finite), judge(batch, theirs, finite))
    torch.testing.assert_close(objective(batch, ours.z), objective(batch, theirs.z), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 13])
def test_an_instance_is_solved_as_if_it_were_alone(count):
    batch = program(3, count)
    found = solve(batch, polish=True)
    for index in range(count):
        alone = solve(instance(batch, index), polish=True)
        torch.testing.assert_close(alone.z[0], found.z[index], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(alone.objective[0], found.objective[index], rtol=1e-9, atol=1e-9)


def test_neighbours_change_no_digit():
    batch = program(4, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    blocks = tuple(Block(C[order], L) for C, L in batch.blocks)
    shuffled = solve(Program(batch.c[order], batch.A[order], batch.b[order], blocks))
    assert torch.equal(shuffled.z, solve(batch).z[order])


def test_what_all_share_needs_no_batch():
    shared = program(5)
    costs = normal(torch.Generator().manual_seed(0), 2, 3, 6) * 0.05 + shared.c
    alone = Program(costs, shared.A[0], shared.b[0], tuple(Block(C[0], L) for C, L in shared.blocks))
    found = solve(alone, polish=True)
    assert found.z.shape == (2, 3, 6)
    assert found.w.shape == (2, 3, 20)
    assert [Y.shape for Y in found.Y] == [(2, 3, 3, 3), (2, 3, 2, 2), (2, 3, 1, 1)]
    one = solve(Program(costs[1, 2], *alone[1:]), polish=True)
    assert one.z.shape == (6,)
    torch.testing.assert_close(one.z, found.z[1, 2], rtol=1e-10, atol=1e-11)


def test_inequalities_that_no_point_meets_are_proved_so(method):
    batch = program(6, 3)
    C = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    constant = Block(C, torch.zeros(6, 1, 1, dtype=torch.float64))
    found = solve(batch._replace(blocks=(*batch.blocks, constant)))
    assert found.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]
    assert found.objective[1] == torch.inf
    assert found.z[1].isnan().all()
    assert found.Y[-1][1] > 0
    torch.testing.assert_close(found.objective[[0, 2]], solve(batch).objective[[0, 2]], rtol=1e-8, atol=1e-8)


def test_inequalities_that_exclude_each_other_are_proved_so(method):
    """F ⪰ 0 and −F − I ⪰ 0 of one F."""
    C, L = program(6, 3).blocks[0]
    eye = torch.eye(3, dtype=torch.float64)
    batch = program(6, 3)
    found = solve(batch._replace(blocks=(Block(C, L), Block(-C - eye, -L))), polish=True)
    assert found.status.tolist() == [Status.INFEASIBLE] * 3


def test_costs_that_fall_for_ever_are_proved_so(method):
    eye = torch.eye(2, dtype=torch.float64)
    L = torch.stack((eye, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)))
    A, b = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    c = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = solve(Program(c, A, b, (Block(eye, L),)))
    assert found.status.tolist() == [Status.SOLVED, Status.UNBOUNDED, Status.UNBOUNDED]
    assert (found.objective[1:] == -torch.inf).all()
    torch.testing.assert_close(found.z[0, 0], torch.tensor(-1.0, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("where", ["c", "A", "b", "C"])
def test_nan_stays_in_its_instance(where, method):
    batch = program(7, 9)
    expected = solve(batch, polish=True)
    spoilt = batch._replace(**{where: getattr(batch, where).clone()}) if where != "C" else batch
    part = batch.blocks[0].C.clone() if where == "C" else getattr(spoilt, where)
    part[4].view(-1)[0] = torch.nan
    if where == "C":
        spoilt = batch._replace(blocks=(Block(part, batch.blocks[0].L), *batch.blocks[1:]))
    found = solve(spoilt, polish=True)
    others = torch.arange(9) != 4
    assert found.status[4] == Status.NOT_FINITE
    assert found.z[4].isnan().all()
    assert found.solved[others].all()
    torch.testing.assert_close(found.z[others], expected.z[others], rtol=1e-10, atol=1e-11)


WRONG = {
    r"^A: expected the shape \(\*batch, 20, 6\), got \(20, 5\)$": {"A": torch.zeros(20, 5, dtype=torch.float64)},
    "^c: expected torch.float64 on cpu, got torch.float32 on cpu": {"c": torch.zeros(6)},
    r"^program: expected batch dimensions that fit each other, got c \(3,\), A \(2,\)": {
        "c": torch.zeros(3, 6, dtype=torch.float64)
    },
    r"^blocks\[0\].C: expected symmetric matrices": {
        "blocks": (Block(torch.ones(2, 2, dtype=torch.float64).triu(), torch.zeros(6, 2, 2, dtype=torch.float64)),)
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_one_line(message):
    with pytest.raises(ValueError, match=message):
        solve(program(8, 2)._replace(**WRONG[message]))


def test_two_threads_solve_what_they_were_given():
    """Programs of one shape: those of CVXPY met in one place."""
    batches = [program(seed, 3) for seed in range(8)]
    expected = [solve(batch).z for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(lambda batch: solve(batch).z, batches), expected))


def test_the_method_for_gpus_never_asks_for_a_number():
    """On tensors without any, it can only be a sequence of operations."""
    meta = program(0, 3)
    blocks = tuple(Block(C.to("meta"), L.to("meta")) for C, L in meta.blocks)
    found = interior_point.solve(Program(meta.c.to("meta"), meta.A.to("meta"), meta.b.to("meta"), blocks), 3, 1e-10, 4)
    assert found.z.shape == (3, 6)
    assert found.z.device.type == "meta"


@pytest.mark.gpu
def test_the_gpu_solves_and_differentiates_as_the_processor_does():
    batch = program(9, 64)
    found = []
    for device in ("cpu", "cuda"):
        c, A, b = (part.to(device).requires_grad_() for part in batch[:3])
        blocks = tuple(Block(C.to(device), L.to(device)) for C, L in batch.blocks)
        solution = solve(Program(c, A, b, blocks))
        assert solution.solved.all()
        solution.z.square().sum().backward()
        found.append([part.cpu() for part in (solution.z.detach(), c.grad, A.grad, b.grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
