"""A million machines, each a little different, learnt together on the cores of one computer.

    python benchmarks/million.py [--tasks 1000000] [--families pendulum,wireless] [--runs DIR] [--no-sizes] [--out NAME]

Trains a row for each task of each family with one environment a task, in a process of its own whose peak memory is
read, or goes on with what lies in DIR/FAMILY; then plays new episodes of 64 tasks beside their optimum, and of 10,000
pendulums for a map of return over mass and length; then measures bytes and seconds per transition from 10^3 to 10^6
tasks. Writes benchmarks/results/million.md and million.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import torchq
from torchq import families
from torchq.versions import git_commit

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--algo", "stlrq", "--num-seeds", "1", "--num-envs", "1", "--replay-ratio", "2", "--replay-batch", "2",
    "--eval-tasks", "64", "--no-optimal", "--no-progress", "--device", "cpu",
)  # fmt: skip
LENGTHS = {"pendulum": ("14", "200"), "wireless": ("8", "100")}
"""And the transitions of each task that are drawn from: what 24 GB hold."""
MAPPED, TEST_EPISODES = 10_000, 8
SIZES = ((1000, 1), (10_000, 1), (100_000, 1), (1_000_000, 1), (1000, 10), (1000, 100), (1000, 1000))
"""Tasks, and environments of each."""
MEASURE = """
import json, sys, time, torch
from torchq.engines.contract import Rates
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq import families
tasks, envs = map(int, sys.argv[1:])
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
before = peak()
run = prepare(resolve("stlrq", "pendulum", "default", {"num_seeds": 1, "num_tasks": tasks, "num_envs": envs,
              "engine": "fused", "replay_ratio": 0, "eval_tasks": 1, "device": "cpu", "episodes": 10**6}),
              families.make("pendulum"))
steps = max(2, min(100, 20_000_000 // (tasks * envs)))
rates = Rates(torch.full((steps,), 0.1), torch.full((steps,), 1e-3))
state, times = run.initial_state, []
for _ in range(5):
    begun = time.perf_counter()
    state = run.engine.train(run.rollout.batch(), state, rates, 0)
    times.append((time.perf_counter() - begun) / steps)
after = peak()  # Not of getrusage, which begins with the parent's.
print(json.dumps({"seconds": sorted(times)[2], "bytes": (after - before) << 10}))
"""


def train(family: str, tasks: int, folder: Path) -> dict[str, float]:
    """Train, or go on, in a process of its own; hours, and the largest memory that a process took."""
    begun, path = time.monotonic(), folder / family
    if not (path / "summary.json").exists():
        episodes, capacity = LENGTHS[family]
        given = ["--resume"] if (path / "config.json").exists() else [
            *FLAGS, "--env", family, "--num-tasks", str(tasks), "--episodes", episodes,
            "--replay-capacity", capacity]  # fmt: skip
        subprocess.run([sys.executable, str(ROOT / "train.py"), *given, "--out", str(path)], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        (path / "process.json").write_text(json.dumps({"peak": peak, "seconds": time.monotonic() - begun}))
    known = path / "process.json"
    return json.loads(known.read_text()) if known.exists() else {}


def played(family: str, folder: Path) -> dict[str, Any]:
    """New episodes of the tested tasks beside their optimum."""
    run = torchq.load(folder / family)
    learnt = run.evaluate(TEST_EPISODES)[0]
    env = families.make(family)
    with np.errstate(all="ignore"):
        optimal = np.array(env.optimal_returns(run.tasks.tested, "cpu"))
    return {"run": run, "learnt": learnt, "optimal": optimal}


def described(family: str, found: dict[str, Any], spent: dict[str, float]) -> list[str]:
    """A table of a family."""
    run, learnt, optimal = found["run"], found["learnt"], found["optimal"]
    summary, shares = run.summary, [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]
    lines = [f"## {summary['num_tasks']:,} tasks of {family}", "",
             f"{summary['samples_per_task']:,} samples of each, {summary['transitions']:,} in all, "
             f"{summary['wall_time_s'] / 60:.0f} minutes of training ({summary['transitions_per_s'] / 1e6:.2f} million "
             f"transitions/s).", ""]  # fmt: skip
    if spent:
        lines += [f"The process took {spent['peak'] / 2**30:.1f} GiB at most.", ""]
    heads = " | ".join(f"{share:.0%}" for share in shares)
    lines += [
        f"| of {len(learnt)} tasks, {TEST_EPISODES} new episodes each | {heads} |",
        "|---|" + "---|" * len(shares),
    ]
    rows = {"return": learnt, "optimum": optimal, "below the optimum by": optimal - learnt}
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in np.quantile(values, shares)) + " |")
    return [*lines, ""]


def drawn(found: dict[str, Any], path: Path) -> None:
    """A map of the return of pendulums over mass and length, and learnt beside optimal returns."""
    from matplotlib.figure import Figure

    run = found["run"]
    known = len(run.tasks.tasks)
    numbers = sorted(np.random.default_rng(0).choice(known, min(known, MAPPED), replace=False).tolist())
    returns = run.evaluate(1, tasks=numbers)[0]
    tasks = [run.tasks.tasks[number] for number in numbers]
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    first, second = figure.subplots(1, 2, width_ratios=(1.5, 1.0))
    points = first.scatter([t.mass for t in tasks], [t.length for t in tasks], c=returns, s=4, cmap="viridis",
                           linewidths=0, vmin=np.quantile(returns, 0.01))  # fmt: skip
    first.set(xscale="log", xlabel="mass / kg", ylabel="length / m",
              title=f"return of {len(numbers):,} of {len(run.tasks.tasks):,} pendulums")  # fmt: skip
    figure.colorbar(points, ax=first, extend="min")
    order = found["optimal"].argsort()
    second.plot(found["optimal"][order], color="0.35", linestyle="--", label="optimum")
    second.plot(found["learnt"][order], ".", label="learnt")
    second.set(xlabel=f"{len(order)} of them, by their optimum", ylabel="return", title="beside the optimum")
    second.legend()
    second.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def sizes(most: int) -> list[str]:
    """Seconds and bytes per transition, from few tasks to many."""
    lines = [
        "## From a thousand tasks to a million",
        "",
        "The fused engine without replay: a step of all environments, median of five, and what the process grew by.",
        "",
        "| tasks | environments of each | step, ms | ns a transition | bytes an environment |",
        "|---|---|---|---|---|",
    ]
    for tasks, envs in SIZES:  # fmt: skip
        if tasks > most:
            continue
        done = subprocess.run([sys.executable, "-c", MEASURE, str(tasks), str(envs)], check=True, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        found = json.loads(done.stdout)
        each = tasks * envs
        lines.append(f"| {tasks:,} | {envs:,} | {found['seconds'] * 1e3:.2f} | {found['seconds'] / each * 1e9:.0f} "
                     f"| {found['bytes'] / each:,.0f} |")  # fmt: skip
    return [*lines, ""]


def main() -> None:
    """Train, play, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--families", default="pendulum,wireless")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--sizes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", default="million")
    given = parser.parse_args()
    results = ROOT / "benchmarks" / "results"
    lines = ["# A million machines", "", f"Commit {git_commit()}, {platform.machine()}, {os.cpu_count()} cores; "
             "`python benchmarks/million.py`.", ""]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        for family in given.families.split(","):
            spent = train(family, given.tasks, folder)
            found = played(family, folder)
            lines += described(family, found, spent)
            if family == "pendulum":
                drawn(found, results / f"{given.out}.png")
                lines += [f"![return over mass and length]({given.out}.png)", ""]
    lines += sizes(given.tasks) if given.sizes else []
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    (results / f"{given.out}.md").write_text(text)


if __name__ == "__main__":
    main()
