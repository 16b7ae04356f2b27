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

SEEDS, FIRST_SEED, EPISODES, TESTS = 20, 100, 200, 8
SAMPLES_PER_EPISODE = 100
MARKS = (0, 500, 1000, 1500, 2000, 3000, 5000, 10_000, 20_000)
CONSTANTS = (-10.0, -20.0, -50.0, -100.0, -200.0)
THRESHOLDS = (-130.0, -100.0)
WINDOW = 3
SIZES = (5, 8, 10, 15, 20, 50)
ABOUT = """A quadratic Q-function from a few dozen samples near upright swings the pendulums up, but as values to
start from it is unlearnt before it is improved: it is far from consistent on the grid (V upright is −1 where
training finds −12 to −55), and one episode flips half of its greedy actions. A low ε or a low rate only slows that.
So it is a guide:

    π(s) = argmaxₐ Q̂(s, a) − m · [a ≠ a_G(s)],   a_G(s) = argmaxₐ G(s, a),   m = M · max(0, 1 − n/n₀)

with G the quadratic on the grid, kept as it is, and Q̂ learning from nothing, by Q-learning as ever, from what π
sees. M = 6 in units of reward (`--guide-margin`); n₀ = 8,000 samples a task in what is tested (`--guide-samples`),
a quarter of them in what behaves: with a guide for longer, behaviour lacks what lies off its way. *Its values* are
the start of old (`--guide-margin 0`). *Lowest* is how far the lowest evaluation lies below the start, for the worst
task and for the mean over tasks, of medians over runs with 8 tests each, at every 100 samples.

What was tried besides, and did worse, in prototypes of one run of ten seeds each that were not kept: moving within
one action of the guide, and within one more every 500 samples (to five times the start's cost); a margin in
proportion to the TD error (3 to 10% below the start); evaluating the guide first (10%); starting Q̂ from the
written-down values beside the guide (90%); the guide in the TD target too, and averaged iterates (no gain). M and
n₀ come from seeds 0 to 59.
"""


def study(out: Path, sizes: tuple[int, ...], **settings: object) -> None:
    """A run of lmi-qli on the pendulum family."""
    torchq.train(algo="lmi-qli", env="pendulum", num_seeds=SEEDS, seed=FIRST_SEED, sizes=sizes, out=out, **settings)


def prepared(**flags: object) -> Experiment:
    """The default stlrq run on the pendulum family, from a warm start where one is given."""
    given = {"num_seeds": SEEDS, "seed": FIRST_SEED, "eval_every": 1, "eval_episodes": TESTS, "device": "cpu", **flags}
    config = resolve("stlrq", "pendulum", "default", given)
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
    """Median over seeds of the greedy return per task, at 0 samples and after every episode, (evaluations, tasks)."""
    policy = experiment.rollout.learner.policy(experiment.initial_state.learner)
    _, evaluations = experiment.play_block(experiment.initial_state, 0, EPISODES)
    returns = [experiment.evaluate(policy, 0), *(evaluation.returns for evaluation in evaluations)]
    return np.median(torch.stack(returns).numpy(), axis=1)


def samples_to(medians: np.ndarray, threshold: float) -> str:
    """Samples per task from which the mean over tasks stays above a threshold for some evaluations in a row."""
    means = medians.mean(1)
    for first in range(len(means) - WINDOW + 1):
        if (means[first : first + WINDOW] >= threshold).all():
            return f"{first * SAMPLES_PER_EPISODE:,}"
    return f"> {EPISODES * SAMPLES_PER_EPISODE:,}"


def into_stlrq(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Tables and curves of the starts of stlrq."""
    starts = {"cold": prepared()}
    starts |= {f"constant {value:g}": constant(prepared(), value) for value in CONSTANTS}
    for samples in (20, 200):
        name = folder / f"quadratic-{samples}"
        study(name, (samples,))
        kind = f"lmi-qli, {samples} samples a task"
        starts[f"{kind}, its values"] = prepared(warm_start=str(name), guide_margin=0.0)
        starts[kind] = prepared(warm_start=str(name))
    curves = {name: curve(experiment) for name, experiment in starts.items()}
    heads = [f"samples to {threshold:g}" for threshold in THRESHOLDS]
    ends = "lowest, of the start's: a task, the mean | last 10 evaluations"
    rows = [f"| start | return before training | {' | '.join(heads)} | {ends} |", "|---" * 6 + "|"]
    for name, medians in curves.items():
        reached = " | ".join(samples_to(medians, threshold) for threshold in THRESHOLDS)
        after = _shown(medians[-10:].mean(0))
        rows.append(f"| {name} | {_shown(medians[0])} | {reached} | {lowest(medians)} | {after} |")
    rows += ["", "Medians at marks:", "", "| samples | " + " | ".join(curves) + " |", "|---" * (1 + len(curves)) + "|"]
    for mark in MARKS:
        found = " | ".join(_shown(medians[mark // SAMPLES_PER_EPISODE]) for medians in curves.values())
        rows.append(f"| {mark:,} | {found} |")
    return rows, curves


def lowest(medians: np.ndarray) -> str:
    """How much lower than at the start the lowest evaluation is, for the worst task and for the mean over tasks."""
    worst = [100.0 * (values / values[0] - 1.0).max() for values in (*medians.T, medians.mean(1))]
    return f"{-max(worst[:-1]):+.1f}%, {-worst[-1]:+.1f}%"


def _shown(values: np.ndarray) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def into_lmi_qli(folder: Path) -> list[str]:
    """Gap to feedback linearisation with and without a start from a trained Q-tensor."""
    torchq.train(algo="stlrq", num_seeds=SEEDS, seed=FIRST_SEED, out=folder / "tensor")
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
    samples = np.arange(EPISODES + 1) * SAMPLES_PER_EPISODE
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
    text = "\n".join(["# Warm starts", "", where, "", ABOUT, stlrq, "", *forth, "", qli, "", *back]) + "\n"
    print(text)
    (results / "warm_starts.md").write_text(text)
    draw(curves, results / "warm_starts.png")
