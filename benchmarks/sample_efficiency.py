"""Greedy returns by samples per task of the default protocol, and what each of its parts gives.

    python benchmarks/sample_efficiency.py [--envs pendulum,wireless] [--seeds 20] [--first-seed 100] [--no-parts]

First the default protocol at its marks, on seeds that it was not tuned on; then one part after the other left out or
changed, at the first three marks, on the seeds that it was tuned on (0 to 19). Medians over seeds of the mean of 64
(pendulum: 8) test episodes at the mark itself. Prints Markdown, and writes it to results/sample_efficiency.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchq import families
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq.runs.optimum import optimal_returns
from torchq.versions import git_commit, versions

MARKS = (5_000, 10_000, 25_000, 100_000)
TEST_EPISODES = {"pendulum": 8, "wireless": 64}
PARTS: dict[str, dict[str, Any]] = {
    "the default protocol": {},
    "without replay": {"replay_ratio": 0},
    "without the target tensor": {"target_rate": None},
    "cells in the place of interpolation": {"features": "cells"},
    "draws from all that is stored": {"replay_recent": 1.0},
    "the latest 5,000 stored": {"replay_capacity": 5_000},
    "one update a step": {"replay_ratio": 1},
    "one update a step, from twice as many": {"replay_ratio": 1, "replay_batch": 32},
    "four updates a step": {"replay_ratio": 4},
    "eight updates of four": {"replay_ratio": 8, "replay_batch": 4},
    "four environments a task": {"num_envs": 4},
    "Adamax": {"optimizer": "adamax"},
    "one factor after the other": {"update": "block"},
    "target rate 0.02": {"target_rate": 0.02},
    "rank 8": {"rank": 8},
    "rank 60": {"rank": 60},
    "a tensor for each task (lrq)": {"algo": "lrq"},
    "one tensor for all (clrq)": {"algo": "clrq"},
}


def returns_at(
    env: str, marks: tuple[int, ...], seeds: range, changes: dict[str, Any]
) -> tuple[list[np.ndarray], float]:
    """Mean test returns at each mark, (seeds, tasks), and processor seconds of training and tests, per seed."""
    family, changed = families.make(env), dict(changes)
    algo = changed.pop("algo", "stlrq")
    given = {"num_seeds": len(seeds), "seed": seeds.start, "eval_episodes": TEST_EPISODES.get(env, 8), "device": "cpu"}
    config = resolve(algo, env, "default", {"engine": "fused", "optimal": False, **given, **changed})
    a_round = family.episode_length * config.num_envs
    run = prepare(config.replace(episodes=marks[-1] // a_round, eval_every=1), family)
    state, played, found, begun = run.initial_state, 0, [], time.process_time()
    for mark in marks:
        rounds = mark // a_round
        # One test, at the mark.
        part = dataclasses.replace(run, config=run.config.replace(eval_every=rounds, episodes=rounds))
        while played < rounds:
            count = min(run.longest_block, rounds - played)
            state, evaluations = part.play_block(state, played, count)
            played += count
        found.append(evaluations[-1].returns.numpy())
    return found, (time.process_time() - begun) / len(seeds)


def shown(values: np.ndarray) -> str:
    """Returns of the tasks."""
    return " / ".join(f"{value:.0f}" for value in values)


def mark_table(envs: list[str], seeds: range) -> list[str]:
    """The default protocol at its marks."""
    lines = ["| env | samples per task | median, tasks 0/1/2/3 | lower quartile | upper quartile |", "|---" * 5 + "|"]
    for env in envs:
        found, _ = returns_at(env, MARKS, seeds, {})
        for mark, values in zip(MARKS, found, strict=True):
            low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
            lines.append(f"| {env} | {mark:,} | {shown(middle)} | {shown(low)} | {shown(high)} |")
        family = families.make(env)
        optimum = optimal_returns(family, family.sample_tasks(), torch.device("cpu"))
        lines.append(f"| {env} | optimum | {shown(np.array(optimum))} | | |")
    return lines


def part_table(env: str, seeds: range) -> list[str]:
    """One change after the other."""
    marks = MARKS[:3]
    lines = ["| " + " | ".join(["change", *(f"{mark:,}" for mark in marks), "processor s per run"]) + " |"]
    lines.append("|---" * 5 + "|")
    for name, changes in PARTS.items():
        found, seconds = returns_at(env, marks, seeds, changes)
        cells = [f"{shown(np.median(values, 0))} [{np.median(values.mean(1)):.0f}]" for values in found]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", default="pendulum,wireless")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True)
    chosen = parser.parse_args()
    envs, seeds = chosen.envs.split(","), range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    lines = ["# Returns by samples", "", f"{platform.machine()}; {versions()}; commit {git_commit()}", ""]
    lines += [f"## The default protocol, seeds {seeds.start} to {seeds.stop - 1}", "", *mark_table(envs, seeds)]
    for env in envs if chosen.parts else ():
        heading = f"## {env}: one change at a time, seeds 0 to 19; in brackets the median of the mean over tasks"
        lines += ["", heading, "", *part_table(env, range(20))]
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "sample_efficiency.md").write_text(text)


if __name__ == "__main__":
    with torch.no_grad():
        main()
