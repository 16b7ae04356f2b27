import numpy as np
import pytest
from scipy import stats

from torchq.report.statistics import interquartile_estimate, interquartile_mean, probability_of_improvement


@pytest.fixture
def scores():
    return np.random.default_rng(1).normal(size=(12, 3))


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0])) == pytest.approx(3.5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says(scores):
    covered = 0
    for seed in range(60):
        drawn = np.random.default_rng(seed).normal(size=(20, 2))
        found = interquartile_estimate(drawn)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.0 <= found.high
    assert covered >= 50


def test_runs_are_drawn_whole(scores):
    """Tasks that say the same thing twice do not narrow the interval."""
    one, twice = interquartile_estimate(scores[:, :1]), interquartile_estimate(np.repeat(scores[:, :1], 2, axis=1))
    assert twice.high - twice.low == pytest.approx(one.high - one.low, rel=0.2)


def test_the_probability_of_improvement_is_that_of_mann_and_whitney(scores):
    other = np.random.default_rng(2).normal(0.5, size=(7, 3))
    expected = np.mean([stats.mannwhitneyu(scores[:, m], other[:, m]).statistic / (12 * 7) for m in range(3)])
    found = probability_of_improvement(scores, other)
    assert found.value == pytest.approx(expected)
    assert probability_of_improvement(other, scores).value == pytest.approx(1 - expected)
    assert probability_of_improvement(scores, scores).value == pytest.approx(0.5)
    assert 0.0 <= found.low < found.value < found.high <= 1.0


def test_a_single_run_has_no_interval(scores):
    assert interquartile_estimate(scores[:1])[1:] == (None, None)
    assert probability_of_improvement(scores[:1], scores)[1:] == (None, None)


def test_many_tasks_need_little_memory():
    assert interquartile_estimate(np.random.default_rng(0).normal(size=(8, 5000))).low is not None
