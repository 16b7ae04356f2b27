"""The case study of [LMI]: quadratic learners on data sets of growing size, beside the yardstick and the baseline."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq.config import Config
from torchq.quadratic import excitation, forms
from torchq.quadratic.forms import Fit, Quadratic, Sample
from torchq.quadratic.lmi_ql import LMIQL
from torchq.quadratic.lmi_qli import LMIQLi
from torchq.quadratic.lspi import LSPI
from torchq.runs.control_tasks import Case, Design, datasets, test_episodes


class Row(NamedTuple):
    """One line of metrics.csv: one run, task and size."""

    episode: str
    samples: int
    seed: int
    task: int
    episode_return: float
    optimal_return: float
    """Of the yardstick, feedback linearisation with LQR, from the same start and with the same noise."""
    baseline_return: float
    unstable: int
    failed: int
    penalty_weight: float
    cost: float
    lower_bound: float


def fit(config: Config, gamma: float, sample: Sample, bound: Tensor, start: Quadratic | None = None) -> list[Fit]:
    """Fits of the configured learner to several data sets, (runs, samples, …); only `lmi-qli` begins at a `start`."""
    if sample.phi.shape[1] == 0:
        p, m = sample.phi.shape[-1], sample.deviation.shape[-1]
        return [Fit(forms.baseline(p, m), math.nan, math.nan, math.nan)] * len(sample.phi)
    if config.algo == "lmi-ql":
        return LMIQL(gamma, config.penalty, config.solver).fit_batch(sample, bound)
    if config.algo == "lmi-qli":
        return LMIQLi(gamma, config.iterations, config.solver, config.hold).fit_batch(sample, bound, start)
    return LSPI(gamma, config.iterations).fit_batch(sample, bound)


def value_bound(constraint: str, plan: Design, p: int) -> Tensor:
    """B of the programs: zero for `dev`, EᵀP_bE with x = Eφ for `tot`; the first features are x."""
    bound = torch.zeros(p, p, dtype=torch.float64)
    if constraint == "tot":
        n = len(plan.value)
        bound[:n, :n] = plan.value
    return bound


class Outcome(NamedTuple):
    """What one run of the study leaves."""

    rows: list[Row]
    """By task, then by size."""
    learnt: list[np.ndarray]
    """P, S and R, (tasks, sizes, …)."""
    seconds: np.ndarray
    """Wall time of each fit, (tasks, sizes)."""
    failures: list[str]
    """One line for each failed solve."""
    findings: list[str]
    """What the diagnosis says of each task's largest data set."""


def run_seeds(config: Config, cases: list[Case], starts: Quadratic | None, seeds: Sequence[int]) -> list[Outcome]:
    """All sizes of some runs, for each task; the programs of one size of all runs are solved together.

    Args:
        config: learner and sizes.
        cases: the tasks.
        starts: where `lmi-qli` begins, (starts, tasks, …); run s takes number s modulo their count. None: the baseline.
        seeds: of the runs.
    """
    return [_joined(parts) for parts in zip(*(_of_case(config, case, starts, seeds) for case in cases), strict=True)]


def _of_case(config: Config, case: Case, starts: Quadratic | None, seeds: Sequence[int]) -> list[Outcome]:
    """Outcomes of one task, by run."""
    numbers = torch.tensor(seeds)
    everything = datasets(case, numbers, max(config.sizes))
    bound = value_bound(config.constraint, case.design, everything.phi.shape[-1])
    start = None
    if starts is not None:
        start = Quadratic(*(part[numbers % len(part), case.task_index] for part in starts))
    by_size, seconds = [], []
    for size in config.sizes:
        begun = time.perf_counter()
        by_size.append(fit(config, case.env.gamma, Sample(*(x[:, :size] for x in everything)), bound, start))
        seconds.append((time.perf_counter() - begun) / len(seeds))
    learnt = Quadratic(*(
        torch.stack([torch.stack([getattr(one.q, name) for one in fits]) for fits in by_size], 1)
        for name in Quadratic._fields
    ))  # (seeds, sizes, …)  # fmt: skip
    returns, unstable = test_episodes(case, learnt, numbers)
    constraint = "tot" if config.algo == "lspi" else config.constraint  # LSPI keeps to none.
    rough = forms.listed(excitation.least_squares_iteration(everything, case.env.gamma))
    outcomes = []
    for index, seed in enumerate(seeds):
        fits = [of_size[index] for of_size in by_size]
        where = f"run {seed}, task {case.task_index}"
        failures = [f"{where}, {n} samples: {f.failure}" for n, f in zip(config.sizes, fits, strict=True) if f.failed]
        own = Sample(*(field[index] for field in everything))
        said = excitation.diagnose(own, case.env.gamma, constraint=constraint, rough=rough[index])
        outcomes.append(
            Outcome(
                _rows(config, case, fits, seed, returns[index], unstable[index]),
                [part[index].unsqueeze(0).numpy() for part in learnt],
                np.array([seconds]),
                failures,
                [f"{where}, {max(config.sizes)} samples: {sentence}" for sentence in said],
            )
        )
    return outcomes


def _joined(parts: Sequence[Outcome]) -> Outcome:
    """The outcome of one run, its tasks one after the other."""
    return Outcome(
        [row for part in parts for row in part.rows],
        [np.concatenate(arrays) for arrays in zip(*(part.learnt for part in parts), strict=True)],
        np.concatenate([part.seconds for part in parts]),
        [line for part in parts for line in part.failures],
        [line for part in parts for line in part.findings],
    )


def _rows(config: Config, case: Case, fits: list[Fit], seed: int, returns: Tensor, unstable: Tensor) -> list[Row]:
    optimal, base = returns[:2].tolist()
    return [
        Row("", size, seed, case.task_index, value, optimal, base, int(fell), int(f.failed), f.penalty_weight, f.cost,
            f.lower_bound)
        for size, f, value, fell in zip(config.sizes, fits, returns[2:].tolist(), unstable[2:].tolist(), strict=True)
    ]  # fmt: skip
