import math

import pytest
import torch

import envs
from torchq import study
from torchq.excitation import diagnose, excitation
from torchq.quadratic import Sample

NAMES = ("θ", "ω", "sin θ")
GAMMA = 0.97


@pytest.fixture(scope="module")
def sample():
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    return study.dataset(env, envs.stack_tasks([task]), study.design(env, task), 0, 0, 200)


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


@pytest.mark.parametrize("field", Sample._fields)
def test_nan_is_named(sample, field):
    broken = getattr(sample, field).clone()
    broken[3] = math.nan
    with pytest.raises(ValueError, match=f"{field}: expected finite numbers"):
        diagnose(sample._replace(**{field: broken}), GAMMA)


def test_wrong_shapes_are_named(sample):
    with pytest.raises(ValueError, match=r"reward: expected shape .* = \(200,\), got \(199,\)"):
        diagnose(sample._replace(reward=sample.reward[1:]), GAMMA)
