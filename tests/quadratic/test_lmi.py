"""The quadratic learners on linear-quadratic problems, whose optimal gain is known."""

import dataclasses
import math

import pytest
import torch

from torchq.errors import SolverError
from torchq.quadratic import forms, sdp
from torchq.quadratic.forms import Sample
from torchq.quadratic.lmi_ql import LMIQL
from torchq.quadratic.lmi_qli import LMIQLi
from torchq.quadratic.lqr import discounted_riccati, noise_free_problem
from torchq.quadratic.lspi import LSPI
from torchq.quadratic.programs import CONTROL_FLOOR
from torchq.quadratic.solvers import SOLVERS

GAMMA = 0.95


def gain_error(fit, gain):
    return (forms.greedy_gain(fit.q) - gain).abs().max().item()


@pytest.mark.parametrize("seed", range(4))
def test_iterations_recover_the_riccati_gain(seed):
    sample, gain, P_b = noise_free_problem(seed)
    assert gain_error(LMIQLi(GAMMA, num_iterations=100).fit(sample, P_b), gain) < 1e-3


def test_the_data_penalty_recovers_the_riccati_gain():
    errors = []
    for seed in range(6):
        sample, gain, P_b = noise_free_problem(seed)
        errors.append(gain_error(LMIQL(GAMMA, "data").fit(sample, P_b), gain))
    assert sum(error < 1e-3 for error in errors) >= 5


def test_iterations_with_a_free_value_recover_it_too():
    """And in fewer steps from a baseline that is wrong: its P needs no iterations of its own."""
    sample, gain, P_b = noise_free_problem(0)
    assert gain_error(LMIQLi(GAMMA, num_iterations=100, hold="coupling").fit(sample, P_b), gain) < 1e-3
    errors = [gain_error(LMIQLi(GAMMA, 2, hold=hold).fit(sample, P_b), gain) for hold in ("coupling", "all")]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("learner", [LMIQL(GAMMA), LMIQL(GAMMA, "data"), LMIQLi(GAMMA)])
def test_both_solvers_learn_the_same(learner):
    for seed in range(3):
        sample, _, P_b = noise_free_problem(seed)
        noise = torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noisy = sample._replace(reward=sample.reward + 0.1 * noise)
        ours, theirs = (dataclasses.replace(learner, solver=solver).fit(noisy, P_b) for solver in SOLVERS)
        assert ours.cost == pytest.approx(theirs.cost, rel=1e-4)
        assert str(ours.lower_bound) == "nan" or ours.lower_bound == pytest.approx(theirs.lower_bound, abs=1e-6)
        torch.testing.assert_close(forms.greedy_gain(ours.q), forms.greedy_gain(theirs.q), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("learner", [LMIQL(GAMMA), LMIQLi(GAMMA), LSPI(GAMMA)])
def test_a_batch_equals_its_data_sets_and_a_bad_one_is_told_for_itself(learner):
    problems = [noise_free_problem(seed) for seed in range(3)]
    spoilt = problems[1].sample._replace(reward=problems[1].sample.reward * math.nan)
    samples = [problems[0].sample, spoilt, problems[2].sample]
    bounds = torch.stack([problem.value for problem in problems])
    batch = Sample(*(torch.stack(fields) for fields in zip(*samples, strict=True)))
    fits = learner.fit_batch(batch, bounds)
    assert [fit.failed for fit in fits] == [False, True, False]
    assert "reward: expected finite numbers" in fits[1].failure
    for fit, sample, bound in zip(fits, samples, bounds, strict=True):
        alone = learner.fit(sample, bound)
        assert all(map(torch.equal, fit.q, alone.q))


def test_bounds_enclose_the_cost():
    sample, _, P_b = noise_free_problem(1)
    noisy = sample._replace(
        reward=sample.reward + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    )
    fit = LMIQL(GAMMA).fit(noisy, P_b)
    iterated = LMIQLi(GAMMA).fit(noisy, P_b)
    assert fit.lower_bound <= fit.cost + 1e-6
    assert fit.lower_bound <= iterated.cost + 1e-6
    assert fit.cost == pytest.approx(forms.bellman_cost(noisy, GAMMA, fit.q).item())


def test_lspi_recovers_the_riccati_gain():
    sample, gain, P_b = noise_free_problem(0)
    assert gain_error(LSPI(GAMMA).fit(sample, P_b), gain) < 1e-3


def test_programs_keep_their_constraints():
    sample, _, P_b = noise_free_problem(2)
    G, y = forms.residual_system(sample, GAMMA)
    solution = sdp.solve_relaxation(G, y, P_b, 0.01 * torch.eye(2, dtype=torch.float64), 2, 1)
    P, S, R = solution.q
    block = torch.cat((torch.cat((solution.W, S), 1), torch.cat((S.T, R), 1)))
    for matrix in (block, P_b - P - solution.W, R - CONTROL_FLOOR):
        assert torch.linalg.eigvalsh(matrix).min() > -1e-6
    cost = (G @ torch.cat([forms.to_triangle(P), S.flatten(), forms.to_triangle(R),
                           forms.to_triangle(solution.W)]) + y).abs().mean()  # fmt: skip
    assert solution.objective == pytest.approx((cost + 0.01 * solution.W.trace()).item(), abs=1e-6)


def test_nan_is_a_solver_error_and_a_fit_falls_back_to_the_baseline():
    sample, _, P_b = noise_free_problem(0)
    sample = sample._replace(reward=sample.reward * math.nan)
    G, y = forms.residual_system(sample, GAMMA)
    with pytest.raises(SolverError, match="expected finite numbers"):
        sdp.solve_relaxation(G, y, P_b, 0 * P_b, 2, 1)
    for learner in (LMIQL(GAMMA), LMIQLi(GAMMA), LSPI(GAMMA)):
        fit = learner.fit(sample, P_b)
        assert fit.failed
        assert forms.greedy_gain(fit.q).abs().max() == 0


def test_a_start_with_an_indefinite_control_block_is_refused():
    sample, _, P_b = noise_free_problem(0)
    start = forms.baseline(2, 1)._replace(R=torch.tensor([[-1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"start: expected R with positive eigenvalues, got \[\[-1.0\]\]"):
        LMIQLi(GAMMA).fit(sample, P_b, start)


def test_riccati_refuses_control_costs_that_are_not_positive():
    A, B, R = torch.eye(2).double(), torch.ones(2, 1).double(), torch.zeros(1, 1).double()
    with pytest.raises(ValueError, match="R: expected a symmetric matrix with positive eigenvalues"):
        discounted_riccati(A, B, A, R, GAMMA)
