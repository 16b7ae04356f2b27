"""Each of these is held to the whole tensor, which is small here."""

import numpy as np
import pytest
import torch

from torchq.lowrank import cp, structure

SIZES = (5, 4, 3, 6)
TASKS = 3


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 7, generator=generator, dtype=torch.float64) for size in SIZES]


def unfolded(factors, mode):
    return cp.dense(factors).movedim(mode, 0).flatten(1)


@pytest.mark.parametrize("mode", range(4))
def test_slices_are_compared_as_those_of_the_whole_tensor(factors, mode):
    rows = unfolded(factors, mode)
    torch.testing.assert_close(structure.inner_products(factors, mode), rows @ rows.mT)
    torch.testing.assert_close(structure.means(factors, mode), rows.mean(1))
    torch.testing.assert_close(structure.correlation(factors, mode).numpy(), np.corrcoef(rows.numpy()))


def test_the_correlation_of_tasks_does_not_change_with_scale_offset_or_sign_of_components(factors):
    before = structure.correlation(factors, TASKS)
    scaled = [factors[0] * 3.0, factors[1], factors[2] * -1.0, factors[3] * torch.rand(6, 1, dtype=torch.float64)]
    torch.testing.assert_close(structure.correlation(scaled, TASKS), before)


def test_a_constant_slice_has_no_correlation():
    ones = [torch.ones(size, 1, dtype=torch.float64) for size in SIZES]
    assert structure.correlation(ones, TASKS).abs().max() == 0.0


def test_advantages_are_values_less_their_mean_over_actions(factors):
    whole = cp.dense(factors)
    found = cp.dense(structure.advantages(factors, 2))
    torch.testing.assert_close(found, whole - whole.mean(2, keepdim=True))


@pytest.mark.parametrize("mode", range(4))
def test_singular_values_are_those_of_the_unfolding(factors, mode):
    values = torch.linalg.svdvals(unfolded(factors, mode))
    found = structure.singular_values(factors, mode)
    torch.testing.assert_close(found, values[: len(found)])


def test_the_effective_rank_counts_equal_singular_values_and_hardly_small_ones():
    assert structure.effective_rank(torch.ones(4)) == pytest.approx(4.0)
    assert 1.0 < structure.effective_rank(torch.tensor([1.0, 0.01])) < 1.1
    assert structure.effective_rank(torch.zeros(3)) == 0.0


def test_components_are_the_tensor_again(factors):
    weights, columns = structure.components(factors)
    assert (weights.diff() <= 0).all()
    assert all(column.norm(dim=0).allclose(torch.ones(7, dtype=torch.float64)) for column in columns)
    assert all((column.sum(0) >= 0).all() for column in columns[:-1])
    torch.testing.assert_close(cp.dense([columns[0] * weights, *columns[1:]]), cp.dense(factors))
