"""100,000 batteries learnt together: how much of the gap between tuned rules of thumb and the optimum is closed.

    python benchmarks/storage_fleet.py [--quick] [--tasks 100000] [--sample 500] [--episodes 8]

Trains one tensor with a mode for each parameter on all batteries, then plays the same weeks with its policy, with the
best rule of each battery (`envs/storage_rule.py`) and with the optimal policy, on a sample of the batteries. Writes
benchmarks/results/storage_fleet.md and storage_fleet.png.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs import base, storage_optimal, storage_rule
from envs.storage import Storage
from torchq.engines import torch_settings
from torchq.presets import resolve
from torchq.runs.experiment import Experiment, prepare
from torchq.versions import git_commit, versions

RESULTS = Path(__file__).parent / "results"
FLAGS: dict[str, Any] = {
    "task_modes": "linear", "rank": 150, "gamma": 0.99, "replay_ratio": 5, "replay_batch": 1, "replay_capacity": 400,
    "target_rate": 0.01, "learning_rate_half_life": 200.0, "epsilon_decay": 0.985, "epsilon_end": 0.1,
}  # fmt: skip
"""For few samples of each of many tasks: rates are counted by samples, and there are several updates a step."""
TEST_SEED, PART = 99, 125


def trained(tasks: int, episodes: int, seed: int, engine: str) -> tuple[Experiment, Any, float]:
    """A run over all batteries, its learner's state, and the seconds that it took."""
    given = {"num_seeds": 1, "seed": seed, "num_tasks": tasks, "episodes": episodes, "eval_every": episodes,
             "eval_episodes": 1, "device": "cpu", "engine": engine, **FLAGS}  # fmt: skip
    experiment = prepare(resolve("stlrq", "storage", "default", given), Storage())
    torch_settings.limit_threads(experiment.work)
    state, begun = experiment.initial_state, time.monotonic()
    for episode in range(episodes):
        state, _ = experiment.play_block(state, episode, 1)
        print(f"{episode + 1} of {episodes} weeks, {time.monotonic() - begun:.0f} s", flush=True)
    return experiment, state, time.monotonic() - begun


def played(experiment: Experiment, state: Any, numbers: list[int], weeks: int) -> dict[str, np.ndarray]:
    """Returns of some batteries in the same weeks, mean over weeks: learnt, by rule, and optimal."""
    env, rollout = experiment.rollout.env, experiment.rollout
    learner = rollout.learner.policy(state.learner)
    found: dict[str, list[torch.Tensor]] = {"learnt": [], "rule": [], "optimum": []}
    for first in range(0, len(numbers), PART):
        part = numbers[first : first + PART]
        given, index = [experiment.task_list[number] for number in part], torch.tensor(part)
        tasks = base.stack_tasks(given, dtype=torch.float32)
        uniforms = storage_rule.draws(env, len(part), weeks, TEST_SEED)
        rules = storage_rule.joined(storage_rule.tune(env, given, episodes=8))

        def learnt(here: Any, index: torch.Tensor = index) -> torch.Tensor:
            return rollout.learner.action_values(learner, rollout.index(here), index).argmax(-1)

        for name, policy in (("learnt", learnt), ("rule", rules.policy(env, tasks)),
                             ("optimum", storage_optimal.policy(env, given))):  # fmt: skip
            found[name].append(storage_rule.play(env, tasks, policy, uniforms)[0].mean(1))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def picture(tasks: list[Any], share: np.ndarray, path: Path) -> None:
    """How the share is spread, and over which batteries."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.hist(share.clip(-0.5, 1.05), bins=31, color="tab:blue")
    left.axvline(np.median(share), color="black", linestyle="--", label=f"median {np.median(share):.2f}")
    left.set(xlabel="share of the gap from rule to optimum", ylabel="batteries")
    left.legend(frameon=False)
    dots = right.scatter([task.hours for task in tasks], [task.wear for task in tasks], 12, share.clip(0, 1))
    right.set(xscale="log", xlabel="hours at full power", ylabel="wear, share of the price level")
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.minorticks_off()
    figure.colorbar(dots, label="share closed")
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, play, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few batteries and weeks, for the tests")
    parser.add_argument("--tasks", type=int, default=100_000, help="batteries that learn")
    parser.add_argument("--sample", type=int, default=500, help="batteries that are played")
    parser.add_argument("--episodes", type=int, default=8, help="weeks of each")
    parser.add_argument("--seed", type=int, default=100, help="of the run")
    args = parser.parse_args(arguments)
    count, sample, episodes, weeks = (8, 4, 1, 2) if args.quick else (args.tasks, args.sample, args.episodes, 64)
    experiment, state, seconds = trained(count, episodes, args.seed, "eager" if args.quick else "fused")
    numbers = sorted({number * count // sample for number in range(sample)})
    begun = time.monotonic()
    returns = played(experiment, state, numbers, weeks)
    share = (returns["learnt"] - returns["rule"]) / (returns["optimum"] - returns["rule"])
    hours = experiment.rollout.env.episode_length
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    flags = " ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in FLAGS.items())
    quantiles = " | ".join(f"{value:.2f}" for value in np.percentile(share, [5, 25, 50, 75, 95]))
    means = " | ".join(f"{np.median(returns[name] / returns['optimum']):.1%}" for name in ("rule", "learnt"))
    lines = [
        f"# {count:,} batteries",
        "",
        f"{platform.machine()}, {torch.get_num_threads()} threads; {versions()}; commit {git_commit()}; "
        f"`python benchmarks/storage_fleet.py --tasks {count} --episodes {episodes} --seed {args.seed}`",
        "",
        f"`--algo stlrq --env storage --num-tasks {count}` with {flags}: one run, {episodes * hours:,} hours of each "
        f"battery, {count * episodes * hours / 1e6:,.0f} million in all, {seconds:.0f} s of training, "
        f"{memory:.1f} GiB at most. Played: {len(numbers)} of them, evenly chosen, {weeks} weeks each, the same weeks "
        f"with all three policies ({time.monotonic() - begun:.0f} s, tuning of the rules included).",
        "",
        "Share of the gap between the tuned rule and the optimum that is closed, (learnt − rule) / (optimum − rule):",
        "",
        "| 5% | lower quartile | median | upper quartile | 95% |",
        "|---|---|---|---|---|",
        f"| {quantiles} |",
        "",
        f"Below the rule: {(share < 0).mean():.1%} of the batteries. Of all money: "
        f"{(returns['learnt'] - returns['rule']).sum() / (returns['optimum'] - returns['rule']).sum():.2f}.",
        "",
        "| return over the optimum's, median | rule | learnt |",
        "|---|---|---|",
        f"| | {means} |",
        "",
        "![Shares closed](storage_fleet.png)",
    ]
    print("\n".join(lines), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "storage_fleet.md").write_text("\n".join(lines) + "\n")
    picture([experiment.task_list[number] for number in numbers], share, RESULTS / "storage_fleet.png")


if __name__ == "__main__":
    main()
