"""Least squares for the rows of new tasks: against normal equations by hand, and where the answer is known."""

import pytest
import torch

from torchq.lowrank import row_fit


def samples(generator, count=400, rank=4, actions=3):
    here, landed = (torch.randn(count, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    table = torch.randn(actions, rank, generator=generator, dtype=torch.float64)
    return here, landed, table, torch.randint(actions, (count,), generator=generator)


def test_without_a_future_it_is_ridge_regression(generator):
    here, landed, table, action = samples(generator)
    phi = here * table[action]
    reward, centre = torch.randn(400, generator=generator, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    pull = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    found = row_fit.lstd(here, landed, table, action, reward, torch.zeros(400, dtype=torch.float64), centre, pull)
    expected = torch.linalg.solve(phi.mT @ phi + pull, phi.mT @ reward + pull @ centre)
    torch.testing.assert_close(found, expected)


def test_it_solves_the_bellman_equation_of_its_own_greedy_policy(generator):
    """Rewards made from a row: r = φᵀw − γ maxₐ φ(s′, a)ᵀw, of which w is the fixed point."""
    here, landed, table, action = samples(generator)
    row = torch.randn(4, generator=generator, dtype=torch.float64)
    reward = (here * table[action]) @ row - 0.5 * ((landed * row) @ table.mT).amax(-1)
    discount, tiny = torch.full((400,), 0.5, dtype=torch.float64), 1e-9 * torch.eye(4, dtype=torch.float64)
    near = row + 0.05 * torch.randn(4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(row_fit.lstd(here, landed, table, action, reward, discount, near, tiny), row)


def test_a_strong_pull_keeps_the_row(generator):
    here, landed, table, action = samples(generator)
    centre, numbers = torch.ones(4, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)
    found = row_fit.lstd(here, landed, table, action, numbers, numbers, centre, 1e9 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found, centre, atol=1e-5, rtol=0)


def test_batches_are_fitted_one_by_one(generator):
    one, other = samples(generator), samples(generator)
    reward, discount = torch.randn(400, generator=generator, dtype=torch.float64), torch.full((400,), 0.9).double()
    centre, pull = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    alone = [row_fit.lstd(*each[:2], one[2], each[3], reward, discount, centre, pull) for each in (one, other)]
    here, landed, action = (torch.stack((one[i], other[i])) for i in (0, 1, 3))
    shape = (2, 400)
    found = row_fit.lstd(
        here,
        landed,
        one[2].unsqueeze(0),
        action,
        reward.expand(shape),
        discount.expand(shape),
        centre.expand(2, 4),
        pull,
    )
    torch.testing.assert_close(found, torch.stack(alone))


def test_the_prior_is_the_covariance_of_known_rows(generator):
    known = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    fit = row_fit.begin(torch.zeros(2, 5, 3, 4, dtype=torch.float64), known)
    for seed in range(2):
        covariance = torch.cov(known[seed].mT, correction=0)
        own = 0.01 * covariance.diagonal().mean() * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(fit.precision[seed], torch.linalg.inv(covariance + own))
    assert fit.best.shape == (2, 3, 4)
    assert (fit.best_return < -1e300).all()


def test_rows_are_judged_by_the_mean_of_episodes():
    """Two hundred steps of +1: one episode, or with nine terminations ten."""
    reward, discount = torch.ones(2, 3, 200), torch.ones(2, 3, 200)
    discount[1, :, 19:199:20] = 0.0
    found = row_fit.mean_return(reward, discount)
    assert found.tolist() == [[200.0] * 3, [20.0] * 3]


@pytest.mark.parametrize(("noisy", "expected"), [(True, 1), (False, 5)])
def test_where_steps_are_random_there_is_one_row_to_begin_with(noisy, expected):
    assert row_fit.num_starts(noisy) == expected
