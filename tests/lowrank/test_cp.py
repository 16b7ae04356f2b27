import numpy as np
import pytest
import tensorly
import torch
from oracles import accumulate_rows, action_values, q_value

from torchq.lowrank import cp

SIZES = (4, 3, 5, 2)


@pytest.fixture
def factors(generator):
    return [torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in SIZES]


def test_entries_equal_the_dense_tensor_and_the_oracle(factors):
    dense = cp.dense(factors)
    assert dense.shape == SIZES
    for indices in np.ndindex(*SIZES):
        entry = cp.entry([factor[i] for factor, i in zip(factors, indices, strict=True)])
        np.testing.assert_allclose(entry, q_value([f.numpy() for f in factors], indices), atol=1e-13)
        np.testing.assert_allclose(entry, dense[indices], atol=1e-13)


def test_dense_and_norm_equal_tensorly(factors):
    tensorly.set_backend("pytorch")
    expected = tensorly.cp_to_tensor(cp.to_tensorly(factors))
    torch.testing.assert_close(cp.dense(factors), expected)
    torch.testing.assert_close(cp.norm(factors), expected.norm())


def test_fibre_is_the_row_of_action_values(factors):
    batched = [factor[None, None] for factor in factors]
    rows = [cp.rows(factor, torch.tensor([[[i]]])) for factor, i in zip(batched[:2], (2, 1), strict=True)]
    values = cp.fibre(cp.product(rows), cp.khatri_rao(batched[2:]))
    np.testing.assert_allclose(values[0, 0, 0], action_values([f.numpy() for f in factors], (2, 1), SIZES[2:]))


def test_cofactor_is_the_derivative_of_an_entry(factors):
    rows = [factor[1].requires_grad_() for factor in factors]
    gradients = torch.autograd.grad(cp.entry(rows), rows)
    for mode, gradient in enumerate(gradients):
        torch.testing.assert_close(cp.cofactor(rows, mode), gradient)


def test_rebalancing_keeps_the_tensor_and_levels_the_norms(factors):
    factors[0][:, 0] *= 1e6
    factors[1][:, 1] *= 1e-6
    balanced = cp.rebalance(factors)
    torch.testing.assert_close(cp.dense(balanced), cp.dense(factors), rtol=1e-9, atol=1e-9)
    norms = torch.stack([factor.norm(dim=0) for factor in balanced])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_rebalancing_keeps_a_zero_component(factors):
    factors[0][:, 2] = 0
    for ours, theirs in zip(cp.rebalance(factors), factors, strict=True):
        torch.testing.assert_close(ours[:, 2], theirs[:, 2])


def test_tensorly_weights_and_signs_survive_the_exchange(factors):
    weights = torch.tensor([2.0, -3.0, 0.5, 1.0, -1.0, 4.0], dtype=torch.float64)
    tensorly.set_backend("pytorch")
    expected = tensorly.cp_to_tensor((weights, factors))
    torch.testing.assert_close(cp.dense(cp.from_tensorly((weights, factors))), expected)


@pytest.mark.parametrize("size", [5, 300], ids=["one-hot", "scatter"])
@pytest.mark.parametrize("envs", [2, 70], ids=["few", "many"])
@pytest.mark.parametrize("groups", [1, 3])
def test_repeated_rows_add_up(size, envs, groups, generator):
    values = torch.randn(2, 3, envs, 4, generator=generator, dtype=torch.float64)
    index = torch.randint(3, (2, 3, envs), generator=generator)
    total = cp.accumulate_rows(values, index, size, groups)
    assert total.shape == (2, groups, size, 4)
    for seed in range(2):
        for group in range(groups):
            part = slice(None) if groups == 1 else group
            expected = accumulate_rows(values[seed, part].reshape(-1, 4).numpy(), index[seed, part].flatten(), size)
            np.testing.assert_allclose(total[seed, group], expected, atol=1e-13)


@pytest.mark.parametrize("size", [5, 300])
@pytest.mark.parametrize("envs", [8, 5000])
def test_repeated_rows_add_up_exactly_where_sums_are_exact(size, envs):
    """Whole numbers in float32: not one of the transitions that hit a row is lost."""
    index = torch.arange(3 * envs).view(1, 3, envs) % 2
    total = cp.accumulate_rows(torch.ones(1, 3, envs, 2), index, size, 1)
    assert total[0, 0, 0].tolist() == [3 * envs / 2] * 2
    assert total[0, 0, 1].tolist() == [3 * envs / 2] * 2
    assert total[0, 0, 2:].abs().sum() == 0
