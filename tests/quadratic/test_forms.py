import math

import pytest
import torch

from torchq import LMIQL, LSPI, LMIQLi
from torchq.quadratic import forms, lqr
from torchq.quadratic.forms import Quadratic, Sample


def random_problem(generator, p=3, m=2, samples=9):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    P, R = normal(p, p), normal(m, m)
    q = Quadratic(P + P.T, normal(p, m), R @ R.T + torch.eye(m, dtype=torch.float64))
    sample = Sample(
        normal(samples, p), normal(samples, m), normal(samples), normal(samples, p), normal(samples), normal(samples)
    )
    return q, sample


def value(q, phi, deviation):
    """Eq. (10) without V_b, term by term."""
    return phi @ q.P @ phi + 2 * phi @ q.S @ deviation - deviation @ q.R @ deviation


def pack(q, *more):
    parts = [forms.to_triangle(q.P), q.S.flatten(), forms.to_triangle(q.R), *map(forms.to_triangle, more)]
    return torch.cat(parts)


def test_features_give_the_value(generator):
    q, sample = random_problem(generator)
    features = forms.action_features(sample.phi, sample.deviation)
    for row, phi, deviation in zip(features, sample.phi, sample.deviation, strict=True):
        torch.testing.assert_close(row @ pack(q), value(q, phi, deviation))


def test_packing_is_undone(generator):
    q, _ = random_problem(generator)
    for ours, theirs in zip(forms.unpack(pack(q), 3, 2), q, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_greedy_control_maximises_the_value(generator):
    q, sample = random_problem(generator)
    for phi in sample.phi:
        best = forms.greedy_gain(q) @ phi
        top = value(q, phi, best)
        torch.testing.assert_close(top, forms.form(phi, q.P + forms.coupling(q)))
        for _ in range(20):
            assert value(q, phi, best + torch.randn(2, generator=generator, dtype=torch.float64)) < top


def test_residuals_equal_their_definition(generator):
    """With W = S R⁻¹ Sᵀ the relaxed and the fitted system both give eq. (8)."""
    q, sample = random_problem(generator)
    expected = torch.stack([
        v + value(q, phi, u) - r - 0.9 * (next_v + value(q, next_phi, forms.greedy_gain(q) @ next_phi))
        for phi, u, r, next_phi, v, next_v in zip(*sample, strict=True)
    ])  # fmt: skip
    G, y = forms.residual_system(sample, 0.9)
    torch.testing.assert_close(G @ pack(q, forms.coupling(q)) + y, expected)
    G, y = forms.fitted_system(sample, 0.9, q)
    torch.testing.assert_close(G @ pack(q) + y, expected)
    G, y = forms.fitted_system(sample, 0.9, q._replace(P=0 * q.P), hold="coupling")
    torch.testing.assert_close(G @ pack(q) + y, expected)
    torch.testing.assert_close(forms.bellman_cost(sample, 0.9, q), expected.abs().mean())


def test_baseline_has_the_baselines_greedy_control():
    assert forms.greedy_gain(forms.baseline(3, 2)).abs().max() == 0


def test_scalar_riccati_has_its_closed_form():
    """P = q + γa²P − γ²a²b²P²/(r + γb²P) is a quadratic equation in P."""
    a, b, q, r, gamma = 1.1, 0.5, 2.0, 0.3, 0.9
    A, B, Q, R = (torch.tensor([[x]], dtype=torch.float64) for x in (a, b, q, r))
    P, K = lqr.discounted_riccati(A, B, Q, R, gamma)
    second, first, constant = gamma * b**2, r - gamma * (a**2 * r + q * b**2), -q * r
    root = (-first + math.sqrt(first**2 - 4 * second * constant)) / (2 * second)
    assert P.item() == pytest.approx(root, rel=1e-12)
    assert K.item() == pytest.approx(gamma * a * b * root / (r + gamma * b**2 * root), rel=1e-12)
    assert lqr.discounted_radius(A, B, K, gamma) < 1


def test_riccati_gain_is_greedy_for_its_value(generator):
    A = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    B = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    Q, R = torch.eye(3, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
    P, K = lqr.discounted_riccati(A, B, Q, R, 0.95)
    x = torch.randn(3, generator=generator, dtype=torch.float64)

    def cost(u):
        following = A @ x + B @ u
        return x @ Q @ x + u @ R @ u + 0.95 * following @ P @ following

    assert cost(-K @ x).item() == pytest.approx((x @ P @ x).item(), rel=1e-9)
    assert cost(-K @ x + 0.1) > cost(-K @ x)


@pytest.mark.parametrize("learner", [LSPI(0.9), LMIQL(0.9), LMIQLi(0.9)])
def test_samples_of_none_or_of_other_shapes_are_told(learner):
    rows = torch.rand(5, 3, dtype=torch.float64)
    sample = forms.Sample(rows, rows[:, :1], rows[:, 0], rows, rows[:, 1], rows[:, 2])
    bound = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="sample: expected at least one transition, got none"):
        learner.fit(forms.Sample(*(field[:0] for field in sample)), bound)
    with pytest.raises(ValueError, match=r"sample.reward: expected the shape \(5,\), got \(5, 1\)"):
        learner.fit(sample._replace(reward=rows[:, :1]), bound)
    with pytest.raises(ValueError, match=r"sample.next_phi: expected the shape \(5, 3\), got \(5, 2\)"):
        learner.fit(sample._replace(next_phi=rows[:, :2]), bound)
