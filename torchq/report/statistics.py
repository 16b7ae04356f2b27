"""How runs compare over seeds and tasks, with intervals: small numbers of runs deserve no bare means.

Interquartile means and the probability of improvement are those of Agarwal et al. (*Deep reinforcement learning at the
edge of the statistical precipice*, NeurIPS 2021), whose bootstrap draws runs apart for each task. Tasks that share a
tensor are not independent within a run, so whole runs are drawn here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_BATCH_ENTRIES = 1 << 22


class Estimate(NamedTuple):
    """A number with the ends of its 95% bootstrap interval; both None of a single run."""

    value: float
    low: float | None
    high: float | None


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of the scores along an axis: as robust as a median, and steadier."""
    from scipy.stats import trim_mean

    return trim_mean(scores, 0.25, axis=axis)


def interquartile_estimate(scores: np.ndarray) -> Estimate:
    """Interquartile mean over all runs and tasks.

    Args:
        scores: (runs, tasks), in one unit.
    """
    return _estimate(lambda rows: interquartile_mean(scores[rows].reshape(*rows.shape[:-1], -1)), scores)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """How probable it is that a run of ours does better on a task than one of theirs: mean over tasks of

        P(X > Y) + ½ P(X = Y)                                                        [Mann and Whitney 1947]

    Args:
        ours: (runs, tasks).
        theirs: (runs, tasks); the runs need not be as many.
    """
    better = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])
    share = better.mean(-1)  # (ours, theirs)
    return _estimate(lambda a, b: share[a[..., :, None], b[..., None, :]].mean((-2, -1)), ours, theirs)


def _estimate(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> Estimate:
    """A statistic of numbers of runs, and its percentile interval over runs drawn again."""
    from scipy.stats import bootstrap

    rows = tuple(np.arange(len(sample)) for sample in samples)
    value = float(statistic(*rows))
    if min(map(len, rows)) < 2:
        return Estimate(value, None, None)
    batch = max(1, _BATCH_ENTRIES // max(int(np.prod([len(sample) for sample in samples])), samples[0].size))
    found = bootstrap(
        rows, lambda *index, axis: statistic(*index), n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", vectorized=True, axis=-1, batch=batch, rng=np.random.default_rng(0),
    )  # fmt: skip
    interval = found.confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
