import numpy as np
import torch

from torchq import TabularQ, Transition


def test_update_equals_a_plain_loop_over_the_batch(generator):
    """Errors are those before the step; repeated cells add up."""
    learner = TabularQ((2, 2), 2, 3)
    state = learner.init(torch.arange(2), device="cpu", dtype=torch.float64)
    state = state._replace(table=torch.randn(2, 3, 8, generator=generator, dtype=torch.float64))
    shape = (2, 3, 30)
    index, following = (tuple(torch.randint(2, shape, generator=generator) for _ in range(2)) for _ in range(2))
    action = torch.randint(2, shape, generator=generator)
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    discount = 0.9 * torch.randint(2, shape, generator=generator)
    expected = state.table.numpy().reshape(2, 3, 2, 2, 2).copy()
    before = expected.copy()
    for s, m, n in np.ndindex(*shape):
        i, j, a = index[0][s, m, n], index[1][s, m, n], action[s, m, n]
        best = before[s, m, following[0][s, m, n], following[1][s, m, n]].max()
        error = reward[s, m, n].item() + discount[s, m, n].item() * best - before[s, m, i, j, a]
        expected[s, m, i, j, a] += 0.1 * error
    new, _ = learner.update(
        state, Transition(index, action, reward, discount, following), torch.tensor(0.1, dtype=torch.float64)
    )
    np.testing.assert_allclose(new.table.reshape(expected.shape), expected, atol=1e-12)


def test_places_between_points_are_interpolated_in_all_dimensions(generator):
    """Values and updates of the four cells around a place, by the product of their weights."""
    learner = TabularQ((3, 4), 2, 1)
    state = learner.init(torch.arange(1), device="cpu", dtype=torch.float64)
    state = state._replace(table=torch.randn(1, 1, 24, generator=generator, dtype=torch.float64))
    place = tuple(torch.tensor([[[x]]], dtype=torch.float64) for x in (0.25, 2.5))
    corners = {(0, 2): 0.375, (0, 3): 0.375, (1, 2): 0.125, (1, 3): 0.125}
    table = state.table.view(3, 4, 2)
    expected = sum(weight * table[cell] for cell, weight in corners.items())
    np.testing.assert_allclose(learner.action_values(state, place)[0, 0, 0], expected)
    flat, task = tuple(one.flatten() for one in place), torch.zeros(1, dtype=torch.int64)
    np.testing.assert_allclose(learner.lookup(state, flat, task)[0, 0], expected)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    new, error = learner.update(state, Transition(place, one.long(), one, 0 * one, place), 0.1 * one.squeeze())
    moved = (new.table - state.table).view(3, 4, 2)
    for cell, weight in corners.items():
        np.testing.assert_allclose(moved[cell][1], 0.1 * weight * error.item())
    assert (moved != 0).sum() == 4
