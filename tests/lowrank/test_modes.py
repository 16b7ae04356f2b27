import math

import jaxtyping
import pytest
import torch

from torchq.lowrank import cp
from torchq.lowrank.modes import KINDS, Grid, Mode


def test_index_rounds_half_to_even():
    grid = Grid.cells((0.0,), (10.0,), (11,))
    x = torch.tensor([0.5, 1.5, 2.5, 3.49, 3.51]).unsqueeze(-1)
    assert grid.index(x)[0].tolist() == [0, 2, 2, 3, 4]


def test_observations_outside_are_clipped():
    grid = Grid.cells((-1.0,), (1.0,), (5,))
    x = torch.tensor([-9.0, 9.0, float("inf"), -float("inf")]).unsqueeze(-1)
    assert grid.index(x)[0].tolist() == [0, 4, 4, 0]


def test_nan_falls_on_a_valid_row():
    assert 0 <= Grid.cells((0.0,), (1.0,), (7,)).index(torch.tensor([[float("nan")]]))[0].item() < 7


def test_grid_points_are_their_own_neighbours():
    grid = Grid.cells((-3.0, 0.0), (2.0, 20.0), (6, 9))
    for dimension in range(2):
        observation = torch.zeros(grid.sizes[dimension], 2, dtype=torch.float64)
        observation[:, dimension] = grid.modes[dimension].points()
        assert grid.index(observation)[dimension].tolist() == list(range(grid.sizes[dimension]))


def test_joint_index_counts_the_last_dimension_fastest():
    separate, joint = (Grid.cells((0.0, 0.0), (2.0, 4.0), (3, 5), joint=j) for j in (False, True))
    observation = torch.tensor([[1.0, 3.0]])
    assert joint.mode_sizes == (15,)
    assert joint.index(observation)[0].item() == 1 * 5 + 3
    assert [i.item() for i in separate.index(observation)] == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.0,), (1.0, 2.0), (3,)), "expected one value per dimension"),
        (((0.0,), (1.0,), (0,)), "expected at least 1 point per dimension, got 0"),
        (((1.0,), (1.0,), (3,)), "expected low < high, got 1.0 and 1.0"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Grid.cells(*arguments)


def test_points_are_places_of_their_own_on_every_kind_of_mode():
    for kind in KINDS:
        mode = Mode(0.1 if kind == "log" else -3.0, 5.0, 9, kind)
        torch.testing.assert_close(mode.place(mode.points()), torch.arange(9.0).to(mode.place(mode.points())))


def test_places_between_points_are_fractions():
    assert Mode(0.0, 10.0, 6, "linear").place(torch.tensor([3.0, -1.0, 99.0])).tolist() == [1.5, 0.0, 5.0]
    around = Mode(-1.0, 1.0, 4, "periodic").place(torch.tensor([-1.0, 0.75, 1.0, 1.25, -1.25]))
    assert around.tolist() == [0.0, 3.5, 0.0, 0.5, 3.5]
    root = Mode(0.0, 100.0, 11, "quadratic")
    torch.testing.assert_close(root.points(), torch.arange(11.0, dtype=torch.float64).square())
    assert root.place(torch.tensor([2.25])).item() == pytest.approx(1.5)
    decades = Mode(0.01, 100.0, 5, "log")
    torch.testing.assert_close(decades.points(), torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64))
    assert decades.place(torch.tensor([10.0**0.5, 0.001])).tolist() == pytest.approx([2.5, 0.0])
    assert Mode(2.0, 2.0, 1, "linear").place(torch.tensor([7.0])).dtype == torch.int64


def test_logarithms_need_numbers_above_0():
    with pytest.raises(ValueError, match=r"low: expected a number above 0 for a log dimension, got 0\.0"):
        Mode(0.0, 1.0, 3, "log")


def test_whole_numbers_are_observations_too():
    for kind in KINDS:
        mode = Mode(0.5, 3.25, 16, kind)
        torch.testing.assert_close(mode.place(torch.tensor([1, 2])), mode.place(torch.tensor([1.0, 2.0])))


def test_hat_functions_sum_to_one_and_reproduce_what_is_linear():
    mode = Mode(-2.0, 6.0, 5, "linear")
    x = torch.linspace(-2.0, 6.0, 33, dtype=torch.float64)
    below, above, weight = cp.neighbours(mode.place(x), 5)
    hats = torch.zeros(33, 5, dtype=torch.float64)
    hats.scatter_add_(1, below[:, None], 1 - weight[:, None]).scatter_add_(1, above[:, None], weight[:, None])
    torch.testing.assert_close(hats.sum(-1), torch.ones(33, dtype=torch.float64))
    torch.testing.assert_close(hats @ (3.0 * mode.points() - 1.0), 3.0 * x - 1.0)


def test_a_periodic_factor_is_continuous_where_it_closes():
    mode, factor = Mode(-math.pi, math.pi, 7, "periodic"), torch.randn(7, 3, dtype=torch.float64)
    ends = torch.tensor([math.pi - 1e-9, math.pi, -math.pi + 1e-9], dtype=torch.float64)
    rows = cp.interpolate(factor.__getitem__, mode.place(ends), 7)
    torch.testing.assert_close(rows, factor[:1].expand(3, 3), atol=1e-6, rtol=0)


def test_nan_between_points_touches_valid_rows_only():
    for kind in KINDS[1:]:
        below, above, _ = cp.neighbours(Mode(0.1, 1.0, 7, kind).place(torch.tensor([float("nan")])), 7)
        assert 0 <= below.item() < 7
        assert 0 <= above.item() < 7


def test_one_joint_factor_cannot_interpolate():
    with pytest.raises(ValueError, match="joint: expected modes of cells"):
        Grid((Mode(0.0, 1.0, 3, "linear"),), joint=True)


def test_a_kind_that_there_is_not_is_named():
    jaxtyping.config.update("jaxtyping_disable", True)  # It would be the first to see it.
    try:
        with pytest.raises(
            ValueError, match="kind: expected one of cells, linear, periodic, quadratic, log, got 'cubic'"
        ):
            Mode(0.0, 1.0, 3, "cubic")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
