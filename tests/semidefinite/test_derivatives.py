"""Gradients of solutions beside finite differences, at kinks, and where there are none."""

import pytest
import torch
from random_programs import normal, program, symmetric

from torchq.semidefinite import derivatives, polish
from torchq.semidefinite.program import Block, Program
from torchq.semidefinite.solve import solve


def tensors_of(one):
    return [one.c, one.A, one.b, *(part for block in one.blocks for part in block)]


def program_of(tensors):
    c, A, b, *rest = tensors
    return Program(c, A, b, tuple(Block(C, L) for C, L in zip(rest[::2], rest[1::2], strict=True)))


@pytest.mark.parametrize("size", range(1, 11))
def test_gradients_into_every_input_are_finite_differences(size):
    """Along random directions of all inputs at once, and of each alone."""
    n = 4 + size
    batch = program(size, 3, n, 30, (size, 2, 1))
    generator = torch.Generator().manual_seed(size)
    given = [tensor.clone().requires_grad_() for tensor in tensors_of(batch)]
    found = solve(program_of(given))
    assert (found.error < 1e-12).all()
    direction = normal(generator, *found.z.shape)
    gradients = torch.autograd.grad((found.z * direction).sum(), given)
    changes = [
        normal(generator, *t.shape) if i < 3 else symmetric(generator, *t.shape[:-1]) for i, t in enumerate(given)
    ]
    step = 1e-6

    def value(sign, chosen):
        moved = [
            t.detach() + sign * step * d * (i in chosen) for i, (t, d) in enumerate(zip(given, changes, strict=True))
        ]
        return (solve(program_of(moved), polish=True).z * direction).sum()

    everything = range(len(given))
    for chosen in (everything, *([i] for i in everything)):
        expected = (value(1, chosen) - value(-1, chosen)) / (2 * step)
        ours = sum((gradients[i] * changes[i]).sum() for i in chosen)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_what_is_shared_are_sums():
    batch = program(1, 4)
    shared = batch.A[0].clone().requires_grad_()
    repeated = batch.A[:1].repeat(4, 1, 1).requires_grad_()
    for A in (shared, repeated):
        solve(batch._replace(A=A)).z.square().sum().backward()
    torch.testing.assert_close(shared.grad, repeated.grad.sum(0))


def test_at_a_kink_the_gradient_is_that_of_one_side():
    """min mean |z − b|, a median: of two values anything between them is optimal, of three the middle one is active."""
    for values in ([1.0, 2.0, 4.0], [1.0, 2.0, 2.0, 2.0, 4.0]):
        b = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        A = torch.ones(len(values), 1, dtype=torch.float64)
        found = solve(Program(torch.zeros(1, dtype=torch.float64), A, b, ()))
        torch.testing.assert_close(found.z, torch.tensor([2.0], dtype=torch.float64))
        found.z.sum().backward()
        one_sided = torch.zeros_like(b)
        one_sided[b == 2] = b.grad[b == 2]
        torch.testing.assert_close(b.grad, one_sided)
        torch.testing.assert_close(b.grad.sum(), torch.tensor(1.0, dtype=torch.float64))
        assert (b.grad >= -1e-9).all()


def test_two_derivatives_are_refused():
    b = program(2).b.requires_grad_()
    loss = solve(program(2)._replace(b=b)).z.sum() + b.pow(3).sum()
    (first,) = torch.autograd.grad(loss, b, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        first.sum().backward()


def test_one_bad_instance_leaves_the_others_gradients():
    batch = program(3, 5)
    good = torch.arange(5) != 2
    A = batch.A[0].clone().requires_grad_()
    b = batch.b.clone()
    b[2, 0] = torch.nan
    solve(batch._replace(A=A, b=b)).z[good].sum().backward()
    ours, A.grad = A.grad, None
    blocks = tuple(Block(C[good], L) for C, L in batch.blocks)
    solve(Program(batch.c[good], A, batch.b[good], blocks)).z.sum().backward()
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, A.grad, rtol=1e-9, atol=1e-9)


def test_polishing_makes_rough_solutions_exact():
    """From a thousandth off, where full Newton steps may not help."""
    batch = program(4, 20)
    exact = solve(batch, polish=True)
    rough = solve(batch, tolerance=1e-5)
    found = polish.polish(batch, rough.z, rough.w, rough.Y)
    assert ((rough.z - exact.z).abs().amax(-1) > 1e-9).any()
    torch.testing.assert_close(found.z, exact.z, rtol=1e-9, atol=1e-9)


def test_the_solution_of_least_norm_where_the_system_is_singular():
    matrix = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    right = torch.tensor([[2.0, 0.0, 3.0]], dtype=torch.float64)
    found = derivatives.solve_active(matrix[None], right)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64))
