"""Gymnasium's cart with a pole, mountain car and acrobot by the default preset, and carts in many contexts.

    python benchmarks/classic_control.py [--quick]

Writes benchmarks/results/classic_control.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import envs
from torchq.engines import torch_settings
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq.versions import git_commit, versions

RESULTS = Path(__file__).parent / "results"
SEED, TESTS = 100, 100
FAMILIES = {family.name: family for family in (envs.CartPole, envs.MountainCar, envs.Acrobot)}
KNOWN = {
    "cartpole": ("CartPole-v1", "≥ 495", "500, the most there is"),
    "mountain-car": ("MountainCar-v0", "≥ −105", "−104.8 SARSA(λ) with tile coding, −100.8 DQN"),
    "acrobot": ("Acrobot-v1", "≥ −85", "−69.1 QR-DQN"),
}
"""Gymnasium's name, what was asked for, and what others report."""
INSIDE = ((4.9, 14.7), (0.4, 0.7))
WIDE = ((0.98, 19.6), (0.1, 1.0))
"""Gravity and length."""
Tasks = list[dict[str, float]]
HOW = """Carts with 4 × 4 values of gravity and length, all else as in Gymnasium, trained together by the same preset.
Returns are divided by those of *experts*: `lrq`, a tensor for each context alone, trained twice as long; the best of
its runs, at any third, or 500 from 495 on. *Mean* is over contexts, its median, lower quartile and worst over runs;
*worst context* is the lowest median of a context; *solved* the share of contexts and runs of at least 0.95."""


class Trained(NamedTuple):
    """What a run comes to."""

    returns: np.ndarray
    """(evaluations, seeds, tasks), the means of the test episodes."""
    samples: int
    """Of each task, to the end."""
    seconds: float


def trained(env: str, plan: Plan, algo: str = "stlrq", longer: int = 1, **flags: Any) -> Trained:
    """A run by the default preset, tested after each third of it."""
    family, config = FAMILIES[env](**plan.constants), resolve(algo, env, "default", {})
    episodes = max(1, config.episodes * longer // plan.share)
    given = {"episodes": episodes, "eval_every": max(1, episodes // 3), "eval_episodes": plan.tests, "seed": SEED,
             "device": "cpu", "engine": plan.engine, **flags}  # fmt: skip
    experiment = prepare(resolve(algo, env, "default", given), family)
    torch_settings.limit_threads(experiment.work)
    start = time.perf_counter()
    _, found = experiment.play_block(experiment.initial_state, 0, episodes)
    returns = np.stack([evaluation.returns.numpy() for evaluation in found])
    return Trained(returns, episodes * family.episode_length, time.perf_counter() - start)


class Plan(NamedTuple):
    """How much of everything."""

    seeds: int
    context_seeds: int
    share: int
    tests: int
    engine: str
    points: int
    constants: dict[str, Any]
    """Of the families."""


def defaults(plan: Plan) -> list[str]:
    """Gymnasium's own tasks, trained together with three others."""
    lines = [
        "Four tasks trained together; returns on the first, Gymnasium's own, over runs, and the medians of the others.",
        "",
        "| task | asked for | others report | samples a task | median | lower quartile | worst | best | others | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for env, (title, asked, others) in KNOWN.items():
        found = trained(env, plan, num_seeds=plan.seeds)
        last = found.returns[-1]
        worst, low, median, best = np.percentile(last[:, 0], [0, 25, 50, 100])
        rest = " / ".join(f"{value:.1f}" for value in np.median(last[:, 1:], axis=0))
        lines.append(f"| {title} | {asked} | {others} | {found.samples:,} | {median:.1f} | {low:.1f} | {worst:.1f} | "
                     f"{best:.1f} | {rest} | {found.seconds:.0f} |")  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def contexts(spans: Sequence[tuple[float, float]], points: int) -> Tasks:
    """A grid of carts."""
    fixed = {name: value for name, value in vars(envs.CartPoleTask()).items() if name not in ("gravity", "length")}
    axes = [np.linspace(*span, points).tolist() for span in spans]
    return [{"gravity": gravity, "length": length, **fixed} for gravity, length in itertools.product(*axes)]


def outside(task: dict[str, float]) -> bool:
    """Whether a cart is beyond the inner range."""
    return any(not low <= task[name] <= high for name, (low, high) in zip(("gravity", "length"), INSIDE, strict=True))


def experts(tasks: Tasks, plan: Plan) -> np.ndarray:
    """Return of an expert for each context."""
    seeds = max(2, plan.context_seeds // 2)
    found = trained("cartpole", plan, "lrq", longer=2, num_seeds=seeds, tasks=tuple(tasks)).returns
    best = found.max((0, 1))
    return np.where(best >= 495.0, 500.0, best)


def row(name: str, samples: int, shares: np.ndarray) -> str:
    """A line of the table, from normalised returns (seeds, tasks)."""
    worst, low, median = np.percentile(shares.mean(1), [0, 25, 50])
    lowest, solved = np.median(shares, axis=0).min(), (shares >= 0.95).mean()
    return f"| {name} | {samples:,} | {median:.3f} | {low:.3f} | {worst:.3f} | {lowest:.3f} | {solved:.1%} |"


def carts(plan: Plan) -> list[str]:
    """Sixteen contexts, inside the family's range and beyond it."""
    inner, wide = contexts(INSIDE, plan.points), contexts(WIDE, plan.points)
    beyond = [task for task in wide if outside(task)]
    best = {name: experts(tasks, plan) for name, tasks in (("inner", inner), ("wide", wide))}
    of_beyond = best["wide"][[outside(task) for task in wide]]
    head = "| contexts | samples each | mean | lower quartile | worst run | worst context | solved |"
    lines = [*HOW.splitlines(), "", head, "|---|---|---|---|---|---|---|"]
    flags: dict[str, Any] = {"num_seeds": plan.context_seeds}
    spans = {"inner": "gravity 4.9–14.7, length 0.4–0.7", "wide": "gravity 0.98–19.6, length 0.1–1.0"}
    last = {}
    for name, tasks in (("inner", inner), ("wide", wide)):
        found = trained("cartpole", plan, tasks=tuple(tasks), **flags)
        last[name] = np.median(found.returns[-1] / best[name], axis=0)
        for part, returns in enumerate(found.returns):
            samples = found.samples * (part + 1) // len(found.returns)
            lines.append(row(f"{spans[name]}, a row each", samples, returns / best[name]))
            print(lines[-1], flush=True)
    found = trained("cartpole", plan, tasks=tuple(inner), test_tasks=tuple(beyond), task_modes="linear", **flags)
    returns = found.returns[-1]
    shares = {f"{spans['inner']}, a mode for each parameter": returns[:, : len(inner)] / best["inner"],
              f"{spans['wide']}, the {len(beyond)} beyond that, never trained on":
                  returns[:, len(inner) :] / of_beyond}  # fmt: skip
    for name, share in shares.items():
        lines.append(row(name, found.samples, share))
        print(lines[-1], flush=True)
    for name, tasks, values in (
        ("inner", inner, last["inner"]),
        ("wide", wide, last["wide"]),
        ("beyond", beyond, np.median(returns[:, len(inner) :] / of_beyond, axis=0)),
    ):
        title = {"inner": "Trained on", "wide": "Trained on", "beyond": "Never trained on"}[name]
        expert = of_beyond if name == "beyond" else best[name]
        lines += [
            "",
            f"{title}, medians by context (and the expert, where it is not 500):",
            "",
            *grid(tasks, values, expert),
        ]
    return lines


def grid(tasks: Tasks, values: np.ndarray, expert: np.ndarray) -> list[str]:
    """Normalised returns by gravity and length."""
    lengths, rows = sorted({task["length"] for task in tasks}), []
    cells = {(task["gravity"], task["length"]): f"{value:.2f}" + ("" if best == 500 else f" ({best:.0f})")
             for task, value, best in zip(tasks, values, expert, strict=True)}  # fmt: skip
    for gravity in sorted({task["gravity"] for task in tasks}):
        line = " | ".join(cells.get((gravity, length), "–") for length in lengths)
        rows.append(f"| {gravity:.2f} | {line} |")
    return ["| gravity \\ length | " + " | ".join(f"{length:.2f}" for length in lengths) + " |",
            "|---" * (len(lengths) + 1) + "|", *rows]  # fmt: skip


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, or little of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, contexts and short episodes, for the tests")
    quick = parser.parse_args(arguments).quick
    plan = Plan(2, 2, 100, 2, "eager", 2, {"episode_length": 20}) if quick else Plan(20, 10, 1, TESTS, "auto", 4, {})
    where = f"{platform.machine()}, {os.cpu_count()} cores; {versions()}; commit {git_commit()}"
    what = (f"`python benchmarks/classic_control.py{' --quick' * quick}`; {plan.seeds} runs, of contexts "
            f"{plan.context_seeds}, seeds from {SEED}; each return is the mean of {plan.tests} greedy episodes. "
            "Presets were chosen with seeds 0 to 9.")  # fmt: skip
    lines = ["# Gymnasium's classic control", "", where, "", what, "", "## Gymnasium's own tasks", "", *defaults(plan)]
    lines += ["", "## Carts in contexts", "", *carts(plan)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "classic_control.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
