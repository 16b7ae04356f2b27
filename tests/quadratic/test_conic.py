"""Cones, Newton's equation and its adjoint, against slow twins."""

import pytest
import torch

from torchq.quadratic import conic
from torchq.quadratic.conic import Cone

CONE = Cone(2, 4, (3, 2))
ROWS = 2 + 4 + 6 + 3


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_triangles_keep_inner_products_and_return():
    first, second = (x + x.mT for x in normal(2, 5, 4, 4))
    inner = (conic.to_vector(first) * conic.to_vector(second)).sum(-1)
    torch.testing.assert_close(inner, (first * second).sum((-2, -1)))
    torch.testing.assert_close(conic.to_matrix(conic.to_vector(first), 4), first)


def test_triangles_run_column_by_column():
    matrix = torch.tensor([[1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [4.0, 5.0, 6.0]])
    root = 2.0**0.5
    torch.testing.assert_close(conic.to_vector(matrix), torch.tensor([1.0, 2 * root, 3.0, 4 * root, 5 * root, 6.0]))


def test_projection_is_moreaus_decomposition():
    """Π(v) lies in K*, Π(v) − v in K, and the two are orthogonal."""
    v = normal(6, ROWS)
    y = conic.project_dual(v, CONE)[0]
    s = y - v
    assert (s[:, :2] == 0).all()
    for part in (y[:, 2:6], s[:, 2:6]):
        assert (part >= 0).all()
    for part in (y, s):
        assert torch.linalg.eigvalsh(conic.to_matrix(part[:, 6:12], 3)).min() > -1e-12
        assert torch.linalg.eigvalsh(conic.to_matrix(part[:, 12:], 2)).min() > -1e-12
    torch.testing.assert_close((y * s).sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_derivative_of_the_projection_equals_finite_differences():
    v, step = normal(3, ROWS, seed=1), 1e-6
    derivative = conic.project_dual(v, CONE)[1]
    for row in range(ROWS):
        direction = step * torch.eye(ROWS, dtype=v.dtype)[row]
        sides = [conic.project_dual(v + sign * direction, CONE)[0] for sign in (1, -1)]
        torch.testing.assert_close(derivative[:, :, row], (sides[0] - sides[1]) / (2 * step), atol=1e-7, rtol=1e-6)


def problems(batch=3, columns=8):
    """Programs whose only solution is known: x, y and s are drawn first, then q and b to fit them.

    Six to nine columns make primal and dual unique: two zeros, two active inequalities, a rank of one in each block.
    """
    A, x = normal(batch, ROWS, columns, seed=2), normal(batch, columns, seed=3)
    linear = torch.tensor([0.3, -0.4, 1.0, -1.0, 0.5, -2.0], dtype=torch.float64).expand(batch, -1)
    blocks = []
    for values in ((1.0, -1.0, -2.0), (0.7, -0.6)):
        basis = torch.linalg.qr(normal(batch, len(values), len(values), seed=4)).Q
        blocks.append(conic.to_vector(basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.mT))
    v = torch.cat((linear, *blocks), dim=-1)
    y = conic.project_dual(v, CONE)[0]
    return -(A.mT @ y.unsqueeze(-1)).squeeze(-1), A, (A @ x.unsqueeze(-1)).squeeze(-1) + y - v, x, v


def test_a_solution_solves_the_equation_and_polishing_finds_it_again():
    q, A, b, x, v = problems()
    y = conic.project_dual(v, CONE)[0]
    assert conic.residual(q, A, b, x, v, y).abs().max() < 1e-12
    near_x, near_v = conic.polish(q, A, b, x + 1e-5, v - 1e-5, CONE)
    residual = conic.residual(q, A, b, near_x, near_v, conic.project_dual(near_v, CONE)[0])
    assert residual.abs().max() < 1e-11


@pytest.mark.parametrize("instance", range(3))
def test_adjoint_is_the_transposed_inverse(instance):
    _, A, _, _, v = problems()
    A, v = A[instance : instance + 1], v[instance : instance + 1]
    dx, dy = normal(1, 8, seed=5), normal(1, ROWS, seed=6)
    derivative = conic.project_dual(v, CONE)[1]
    matrix = conic.jacobian(A, derivative)[0].mT
    right = -torch.cat((dx[0], derivative[0] @ dy[0]))
    of_q, of_b = conic.adjoint(A, v, CONE, dx, dy)
    torch.testing.assert_close(torch.cat((of_q[0], of_b[0])), torch.linalg.pinv(matrix, rtol=1e-10) @ right)


def test_a_flat_program_has_the_gradient_of_least_norm():
    """A column of zeros leaves its variable free: nothing flows through it."""
    A = torch.cat((normal(1, ROWS, 1), torch.zeros(1, ROWS, 1, dtype=torch.float64)), dim=-1)
    v, dx = normal(1, ROWS, seed=8), torch.ones(1, 2, dtype=torch.float64)
    of_q, of_b = conic.adjoint(A, v, CONE, dx, torch.zeros_like(v))
    assert torch.isfinite(of_b).all()
    assert of_q[0, 1].abs() < 1e-12
