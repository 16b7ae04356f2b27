"""What warm starts save on the pendulum family: quadratic Q-functions into stlrq, and a Q-tensor back into lmi-qli.

    python benchmarks/warm_starts.py

Prints two Markdown tables and writes them to benchmarks/results/warm_starts.md, with the curves beside it as PNG.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import torchq
from torchq import families
from torchq.engines import torch_settings
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.presets import resolve
from torchq.runs.experiment import Experiment, prepare
from torchq.runs.study_results import by_samples, read_rows
from torchq.runs.warm_starts import start_low_rank
from torchq.versions import git_commit, versions

SEEDS, EPISODES, EVERY = 8, 200, 2
SAMPLES_PER_EPISODE = 100
CONSTANTS = (-10.0, -20.0, -50.0, -100.0, -200.0)
THRESHOLDS = (-130.0, -100.0)
WINDOW = 3
SIZES = (5, 8, 10, 15, 20, 50)


def study(out: Path, sizes: tuple[int, ...], **settings: object) -> None:
    """A run of lmi-qli on the pendulum family."""
    torchq.train(algo="lmi-qli", env="pendulum", num_seeds=SEEDS, sizes=sizes, out=out, **settings)


def prepared(**flags: object) -> Experiment:
    """The default stlrq run on the pendulum family, from a warm start where one is given."""
    config = resolve("stlrq", "pendulum", "default", {"num_seeds": SEEDS, **flags, "device": "cpu"})
    experiment = prepare(config, families.make("pendulum"), start_low_rank if config.warm_start else None)
    torch_settings.limit_threads(experiment.work)
    return experiment


def constant(experiment: Experiment, value: float) -> Experiment:
    """The experiment with Q near one value: its first component is that value everywhere."""
    learner = experiment.initial_state.learner
    factors = [factor.clone() for factor in learner.factors]
    for factor in factors:
        factor[..., 0] = abs(value) ** (1.0 / len(factors))
    factors[0][..., 0] *= np.sign(value)
    start = experiment.rollout.learner
    assert isinstance(start, LowRankQ)
    state = experiment.initial_state._replace(learner=start.start(learner, tuple(factors)))
    return replace(experiment, initial_state=state)


@torch.no_grad()
def curve(experiment: Experiment) -> np.ndarray:
    """Median over seeds of the greedy return per task, at 0 samples and every few episodes, (evaluations, tasks)."""
    state = experiment.initial_state
    policy = experiment.rollout.learner.policy(state.learner)
    medians = [experiment.evaluate(policy, 0).median(0).values.tolist()]
    for episode in range(EPISODES):
        state, policy = experiment.play(state, episode)
        if (episode + 1) % EVERY == 0:
            medians.append(experiment.evaluate(policy, episode + 1).median(0).values.tolist())
    return np.array(medians)


def samples_to(medians: np.ndarray, threshold: float) -> str:
    """Samples per task from which the mean over tasks stays above a threshold for some evaluations in a row."""
    means = medians.mean(1)
    for first in range(len(means) - WINDOW + 1):
        if (means[first : first + WINDOW] >= threshold).all():
            return f"{first * EVERY * SAMPLES_PER_EPISODE:,}"
    return f"> {EPISODES * SAMPLES_PER_EPISODE:,}"


def into_stlrq(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Table and curves of the starts of stlrq."""
    starts = {"cold": prepared()}
    starts |= {f"constant {value:g}": constant(prepared(), value) for value in CONSTANTS}
    for samples in (20, 200):
        name = folder / f"quadratic-{samples}"
        study(name, (samples,))
        starts[f"lmi-qli, {samples} samples a task"] = prepared(warm_start=str(name))
    curves = {name: curve(experiment) for name, experiment in starts.items()}
    heads = [f"samples to {threshold:g}" for threshold in THRESHOLDS]
    rows = [f"| start | return before training | {' | '.join(heads)} | last 10 evaluations |", "|---" * 5 + "|"]
    for name, medians in curves.items():
        before = " / ".join(f"{value:.0f}" for value in medians[0])
        reached = " | ".join(samples_to(medians, threshold) for threshold in THRESHOLDS)
        after = " / ".join(f"{value:.0f}" for value in medians[-10:].mean(0))
        rows.append(f"| {name} | {before} | {reached} | {after} |")
    return rows, curves


def into_lmi_qli(folder: Path) -> list[str]:
    """Gap to feedback linearisation with and without a start from a trained Q-tensor."""
    torchq.train(algo="stlrq", num_seeds=SEEDS, out=folder / "tensor")
    rows = ["| iterations | start | " + " | ".join(f"N = {size}" for size in SIZES) + " | unstable | failed |"]
    rows.append("|---" * (4 + len(SIZES)) + "|")
    for iterations in (1, 5, 20):
        for name, settings in (("cold", {}), ("stlrq", {"warm_start": folder / "tensor"})):
            out = folder / f"back-{iterations}-{name}"
            study(out, SIZES, iterations=iterations, **settings)
            results = read_rows(out / "metrics.csv")
            gaps = " | ".join(f"{entry['gap']['median']:.4f}" for entry in by_samples(results))
            shares = [statistics.mean(getattr(row, kind) for row in results) for kind in ("unstable", "failed")]
            rows.append(f"| {iterations} | {name} | {gaps} | {shares[0]:.1%} | {shares[1]:.1%} |")
    return rows


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Mean over tasks of the median returns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    samples = np.arange(EPISODES // EVERY + 1) * EVERY * SAMPLES_PER_EPISODE
    for name, medians in curves.items():
        style = {"linewidth": 1, "alpha": 0.5} if name.startswith("constant") else {"linewidth": 2}
        axis.plot(samples, medians.mean(1), label=name, **style)
    axis.set(xlabel="samples per task", ylabel="greedy return, mean over tasks", ylim=(-700, -50))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    results = Path(__file__).parent / "results"
    with tempfile.TemporaryDirectory() as name:
        forth, curves = into_stlrq(Path(name))
        back = into_lmi_qli(Path(name))
    where = f"{platform.machine()}; {versions()}; commit {git_commit()}"
    stlrq = (
        f"stlrq on pendulum, {SEEDS} seeds, median return of tasks 0/1/2/3; thresholds: their mean, {WINDOW} in a row"
    )
    qli = f"lmi-qli on pendulum, {SEEDS} runs of 4 tasks: median gap of the return to feedback linearisation"
    text = "\n".join(["# Warm starts", "", where, "", stlrq, "", *forth, "", qli, "", *back]) + "\n"
    print(text)
    (results / "warm_starts.md").write_text(text)
    draw(curves, results / "warm_starts.png")
