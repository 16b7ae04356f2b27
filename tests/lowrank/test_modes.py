import pytest
import torch

from torchq.lowrank.modes import Grid


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
