"""Gradients of solutions beside finite differences, at kinks, and where there are none."""

import pytest
import small_sdp
import torch
from random_programs import learning, normal, program, symmetric

from torchq.quadratic.forms import Sample
from torchq.semidefinite import derivatives, polish
from torchq.semidefinite.derivatives import solve_regular
from torchq.semidefinite.in_torch import InTorch
from torchq.semidefinite.processor import Processor
from torchq.semidefinite.program import Block, Program
from torchq.semidefinite.solve import solve


def tensors_of(one):
    return [one.c, one.A, one.b, *(part for block in one.blocks for part in block)]


def program_of(tensors):
    c, A, b, *rest = tensors
    return Program(c, A, b, tuple(Block(C, L) for C, L in zip(rest[::2], rest[1::2], strict=True)))


@pytest.mark.parametrize("size", range(1, 11))
def test_gradients_into_every_input_are_finite_differences(size, method):
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


def larger_of(a, b, how):
    """max(a, b) as a program: two inequalities, an eigenvalue, or |z − a| and z ≥ b."""
    none, one = torch.zeros(0, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    if how == "inequalities":
        return Program(one[0], none, none[:, 0], (Block(-a * one, one[None]), Block(-b * one, one[None])))
    if how == "eigenvalue":
        return Program(
            one[0], none, none[:, 0], (Block(-torch.diag(torch.stack((a, b))), torch.eye(2).double()[None]),)
        )
    return Program(0 * one[0], one, a[None], (Block(-b * one, one[None]),))


@pytest.mark.parametrize("how", ["inequalities", "eigenvalue", "residual"])
@pytest.mark.parametrize("apart", [-1e-3, -1e-6, 0.0, 1e-6, 1e-3])
def test_where_inequalities_meet_the_gradient_is_that_of_one_side(how, apart, method):
    a, b = torch.tensor([2.0 + apart, 2.0], dtype=torch.float64, requires_grad=True).unbind()
    found = solve(larger_of(a, b, how))
    torch.testing.assert_close(found.z[0], max(a, b), rtol=0, atol=1e-9)
    gradient = torch.stack(torch.autograd.grad(found.z[0], (a, b)))
    sides = [torch.tensor(side, dtype=torch.float64) for side in ([1.0, 0.0], [0.0, 1.0])]
    allowed = sides if apart == 0 else [sides[apart < 0]]
    assert any(torch.allclose(gradient, side, atol=1e-9) for side in allowed), gradient


def test_near_kinks_a_whole_step_finds_out_what_is_active(method):
    """Of a thousand relaxations of 50 transitions these three stayed at errors of 1e-7 with steps that only halve."""
    sample, gamma = small_sdp.data(50, 1000)
    batch = small_sdp.program_of("(18)", Sample(*(x[[2, 900, 964]] for x in sample)), gamma)
    assert (solve(batch, polish=True).error < 1e-13).all()


@pytest.mark.parametrize("seed", range(40))
def test_the_program_for_processors_differentiates_as_the_one_in_torch(seed):
    batch = learning(seed)
    batch = batch._replace(c=batch.c.unsqueeze(0))
    found = solve(batch)
    point, usable = (found.z, found.w, found.Y), torch.ones(1, dtype=torch.bool)
    ours, theirs = (method(batch, 1).polish(*point, usable) for method in (Processor, InTorch))
    system = derivatives.active(batch, *theirs[:3]).matrix
    if solve_regular(system, torch.ones_like(system[:, 0]))[1]:  # At a kink, where multipliers are anything.
        return
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-8, atol=1e-8)
    of_z = normal(torch.Generator().manual_seed(seed), *found.z.shape)
    wanted = [True] * len(tensors_of(batch))
    gradients = [method(batch, 1).differentiate(*ours[:3], usable, of_z, wanted) for method in (Processor, InTorch)]
    size = max(part.abs().max() for part in gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one / size, other / size, rtol=1e-7, atol=1e-7)


def test_only_gradients_that_are_wanted_are_made():
    batch = program(6, 2)
    found = solve(batch, polish=True)
    wanted = [part is batch.b for part in tensors_of(batch)]
    given = found.z, found.w, found.Y, found.solved, torch.ones_like(found.z), wanted
    for method in (Processor, InTorch):
        assert [part is not None for part in method(batch, 2).differentiate(*given)] == wanted


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
