"""The quadratic learners on linear-quadratic problems, whose optimal gain is known."""

import math

import pytest
import torch

from torchq import lqr, quadratic, sdp
from torchq.errors import SolverError
from torchq.learners import LMIQL, LSPI, LMIQLi
from torchq.quadratic import Sample

GAMMA = 0.95


def linear_quadratic(seed, samples=60):
    """Noise-free data of a random unstable system around an imperfect baseline; the true deviation gain, and P_b."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        A, B = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (2, 1))
        A *= 1.2 / torch.linalg.eigvals(A).abs().max()
        Q, R = torch.eye(2, dtype=torch.float64), torch.full((1, 1), 0.1, dtype=torch.float64)
        wrong = A + 0.05 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
        P_b, K_b = lqr.discounted_riccati(wrong, B, Q, R, GAMMA)
        if lqr.discounted_radius(A, B, K_b, GAMMA) < 0.99:
            break
    _, K = lqr.discounted_riccati(A, B, Q, R, GAMMA)
    x = torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    deviation = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    u = deviation - x @ K_b.T
    following = x @ A.T + u @ B.T
    reward = -quadratic.form(x, Q) - quadratic.form(u, R)
    value, next_value = -quadratic.form(x, P_b), -quadratic.form(following, P_b)
    return Sample(x, deviation, reward, following, value, next_value), K_b - K, P_b


def gain_error(fit, gain):
    return (quadratic.greedy_gain(fit.q) - gain).abs().max().item()


@pytest.mark.parametrize("seed", range(4))
def test_iterations_recover_the_riccati_gain(seed):
    sample, gain, P_b = linear_quadratic(seed)
    assert gain_error(LMIQLi(GAMMA, num_iterations=100).fit(sample, P_b), gain) < 1e-3


def test_the_data_penalty_recovers_the_riccati_gain():
    errors = []
    for seed in range(6):
        sample, gain, P_b = linear_quadratic(seed)
        errors.append(gain_error(LMIQL(GAMMA, "data").fit(sample, P_b), gain))
    assert sum(error < 1e-3 for error in errors) >= 5


def test_bounds_enclose_the_cost():
    sample, _, P_b = linear_quadratic(1)
    noisy = sample._replace(
        reward=sample.reward + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    )
    fit = LMIQL(GAMMA).fit(noisy, P_b)
    iterated = LMIQLi(GAMMA).fit(noisy, P_b)
    assert fit.lower_bound <= fit.cost + 1e-6
    assert fit.lower_bound <= iterated.cost + 1e-6
    assert fit.cost == pytest.approx(quadratic.bellman_cost(noisy, GAMMA, fit.q).item())


def test_lspi_recovers_the_riccati_gain():
    sample, gain, P_b = linear_quadratic(0)
    assert gain_error(LSPI(GAMMA).fit(sample, P_b), gain) < 1e-3


def test_programs_keep_their_constraints():
    sample, _, P_b = linear_quadratic(2)
    G, y = quadratic.residual_system(sample, GAMMA)
    solution = sdp.solve_relaxation(G, y, P_b, 0.01 * torch.eye(2, dtype=torch.float64), 2, 1)
    P, S, R = solution.q
    block = torch.cat((torch.cat((solution.W, S), 1), torch.cat((S.T, R), 1)))
    for matrix in (block, P_b - P - solution.W, R - sdp.CONTROL_FLOOR):
        assert torch.linalg.eigvalsh(matrix).min() > -1e-6
    cost = (G @ torch.cat([quadratic.to_triangle(P), S.flatten(), quadratic.to_triangle(R),
                           quadratic.to_triangle(solution.W)]) + y).abs().mean()  # fmt: skip
    assert solution.objective == pytest.approx((cost + 0.01 * solution.W.trace()).item(), abs=1e-6)


def test_nan_is_a_solver_error_and_a_fit_falls_back_to_the_baseline():
    sample, _, P_b = linear_quadratic(0)
    sample = sample._replace(reward=sample.reward * math.nan)
    G, y = quadratic.residual_system(sample, GAMMA)
    with pytest.raises(SolverError, match="expected finite numbers"):
        sdp.solve_relaxation(G, y, P_b, 0 * P_b, 2, 1)
    for learner in (LMIQL(GAMMA), LMIQLi(GAMMA), LSPI(GAMMA)):
        fit = learner.fit(sample, P_b)
        assert fit.failed
        assert quadratic.greedy_gain(fit.q).abs().max() == 0
