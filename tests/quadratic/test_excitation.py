import math

import pytest
import torch

import envs
from torchq.quadratic import forms
from torchq.quadratic.excitation import diagnose, excitation, explain, least_squares_iteration
from torchq.quadratic.forms import Sample
from torchq.quadratic.lmi_ql import LMIQL
from torchq.quadratic.lqr import noise_free_problem
from torchq.runs import control_tasks

NAMES = ("θ", "ω", "sin θ")
GAMMA = 0.97


@pytest.fixture(scope="module")
def sample():
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    return control_tasks.dataset(control_tasks.make_case(env, task, envs.stack_tasks([task]), 0), 0, 200)


def test_a_well_explored_data_set_has_full_rank(sample):
    found = excitation(sample, GAMMA, NAMES)
    assert (found.num_samples, found.num_distinct, found.num_parameters, found.rank) == (200, 200, 10, 10)
    assert diagnose(sample, GAMMA, NAMES) == []


def test_too_few_samples_are_counted(sample):
    few = Sample(*(x[:6] for x in sample))
    assert any("6 distinct samples interpolate 10 parameters" in line for line in diagnose(few, GAMMA, NAMES))


def test_copies_are_counted(sample):
    copied = Sample(*(torch.cat([x[:40]] * 5) for x in sample))
    assert any("only 40 of 200 samples are distinct" in line for line in diagnose(copied, GAMMA, NAMES))


def test_missing_exploration_names_the_control(sample):
    still = sample._replace(deviation=1e-9 * sample.deviation)
    (line,) = [line for line in diagnose(still, GAMMA, NAMES) if "do not excite" in line]
    assert "ũ1" in line
    assert "rank 6 of 10" in line


def test_a_feature_that_repeats_another_is_named(sample):
    """At small angles sin θ is θ."""
    phi = sample.phi.clone()
    phi[:, 0] *= 1e-5
    phi[:, 2] = torch.sin(phi[:, 0])
    (line,) = [line for line in diagnose(sample._replace(phi=phi), GAMMA, NAMES) if "do not excite" in line]
    assert "θ" in line


def test_a_baseline_that_diverges_is_suspected(sample):
    fast = sample._replace(next_phi=1.2 * sample.phi)
    assert any("the baseline seems not to stabilise (√γ·ρ is about 1.18)" in line for line in diagnose(fast, GAMMA))


def test_a_pessimistic_baseline_explains_why_dev_fails():
    """On noise-free problems `dev` loses the gain where V_b is pessimistic, and the diagnosis says so."""
    lost = told = 0
    for seed in range(12):
        problem = noise_free_problem(seed)
        q = LMIQL(0.95, "data").fit(problem.sample, torch.zeros_like(problem.value)).q
        if (forms.greedy_gain(q) - problem.gain).abs().max() > 1e-3:
            lost += 1
            told += any("V_b seems pessimistic" in s for s in diagnose(problem.sample, 0.95, constraint="dev"))
        assert not any("pessimistic" in s for s in diagnose(problem.sample, 0.95, constraint="tot"))
    assert lost >= 7
    assert told >= lost - 1


def test_least_squares_iteration_finds_riccatis_gain_without_noise():
    problem = noise_free_problem(3)
    q = least_squares_iteration(problem.sample, 0.95)
    torch.testing.assert_close(forms.greedy_gain(q), problem.gain, atol=1e-9, rtol=0)


def test_a_q_that_is_not_concave_in_the_control_is_named(sample):
    """Rewards that grow with the square of the control have no best control."""
    wrong = sample._replace(reward=sample.reward + sample.deviation.square().sum(-1))
    assert any("not concave in the control" in line for line in diagnose(wrong, GAMMA))


def test_a_failed_solve_is_explained(sample):
    few = Sample(*(x[:6] for x in sample))
    assert explain("solver failed", few, GAMMA).startswith(
        "solver failed; 6 distinct samples interpolate 10 parameters"
    )
    assert (
        explain("solver failed", sample, GAMMA) == "solver failed; the data show no fault: scale them to the order of 1"
    )
    broken = sample._replace(reward=sample.reward * math.nan)
    assert explain("solver failed", broken, GAMMA).startswith("solver failed; reward: expected finite numbers")


@pytest.mark.parametrize("field", Sample._fields)
def test_nan_is_named(sample, field):
    broken = getattr(sample, field).clone()
    broken[3] = math.nan
    with pytest.raises(ValueError, match=f"{field}: expected finite numbers"):
        diagnose(sample._replace(**{field: broken}), GAMMA)


def test_wrong_shapes_are_named(sample):
    with pytest.raises(ValueError, match=r"reward: expected shape .* = \(200,\), got \(199,\)"):
        diagnose(sample._replace(reward=sample.reward[1:]), GAMMA)
