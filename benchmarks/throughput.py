"""Transitions per second of every engine: environment, + act, + update; and how near the machine's limits that is.

    python benchmarks/throughput.py [--engines eager,compile,graph,fused] [--batches 8,12,16,20] [--tasks] [--out NAME]

Batched protocol, stlrq, float32, one run of four tasks, 2^b environments in all; then task counts at 2^20 environments.
Prints Markdown and writes it, with JSON beside it, to benchmarks/results/throughput-DEVICE.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reference import transitions_per_second

import envs
from torchq import engine, execution, fused
from torchq.experiment import Experiment, prepare
from torchq.exploration import epsilon_greedy
from torchq.learners import LowRankQ
from torchq.presets import resolve
from torchq.protocols import Tables
from torchq.versions import git_commit, versions

STAGES = ("environment", "+ act", "+ update")
RANKS = (8, 30)
REPEATS = 10
SECONDS_PER_REPEAT = 0.05
SECONDS_PER_CELL = 40.0


class Cell(NamedTuple):
    """One measurement."""

    env: str
    engine: str
    stage: str
    rank: int
    batch: int
    tasks: int
    median: float
    """Transitions per second."""
    low: float
    high: float


def make(env: str, rank: int, batch: int, tasks: int, device: str) -> Experiment:
    """One run with this many environments in all."""
    flags = {"num_seeds": 1, "num_tasks": tasks, "num_envs": max(1, batch // tasks), "rank": rank, "engine": "eager"}
    return prepare(replace(resolve("stlrq", env, "default", flags), device=device), envs)


def stepper(experiment: Experiment, name: str, stage: str) -> Callable[[int], None]:
    """A function that plays some steps with an engine; the environment alone takes random actions."""
    problem, tasks, state = experiment.problem, experiment.tasks, experiment.initial_state
    device, dtype = problem.seeds.device, problem.dtype
    epsilon = torch.full((), 1.0 if stage == STAGES[0] else 0.1, device=device, dtype=dtype)
    rate = torch.full((), 1e-3, device=device, dtype=dtype)
    numbers = torch.arange(len(experiment.task_list), device=device)
    if name in ("fused", "graph"):
        play = fused.FusedProgram(problem).train if device.type == "cpu" else execution.build(problem, name).advance
        options = {"updates": stage == STAGES[2]} if device.type == "cpu" else {}
        last = [state]

        def episode(steps: int) -> None:
            rates = Tables(epsilon.expand(steps).contiguous(), rate.expand(steps).contiguous())
            given = (tasks, last[0].learner, last[0].env, state.statistics, 0, rates, None)
            learner, env, _ = play(*given, **options)
            last[0] = last[0]._replace(learner=learner, env=env)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return episode

    def environment(tasks: Any, learner: Any, env_state: Any, statistics: Any, draws: Any, *_: Any) -> Any:
        return learner, problem.env.step(tasks, env_state, draws.random_action, draws.step)[0], statistics

    def act(tasks: Any, learner: Any, env_state: Any, statistics: Any, draws: Any, epsilon: Any, *_: Any) -> Any:
        values = problem.learner.action_values(learner, problem.index(env_state), None)
        action = epsilon_greedy(values, epsilon, draws.explore, draws.random_action)
        return learner, problem.env.step(tasks, env_state, action, draws.step)[0], statistics

    function = engine.prepare({"environment": environment, "+ act": act, "+ update": problem.step}[stage], name)

    def steps_of(count: int) -> None:
        nonlocal state
        for step in range(count):
            draws = type(one)(*(x[0] for x in problem.draw(torch.tensor([step], device=device), numbers)))
            learner, env, seen = function(tasks, state.learner, state.env, state.statistics, draws, epsilon, rate, None)
            state = state._replace(learner=learner, env=env, statistics=seen)
        if device.type == "cuda":
            torch.cuda.synchronize()

    one = problem.draw(torch.tensor([0], device=device), numbers)
    return steps_of


def measure(env: str, name: str, stage: str, rank: int, batch: int, tasks: int, device: str) -> Cell | None:
    """Median and extremes over repeats after a warm-up; None where a repeat would take too long."""
    if name in ("fused", "graph") and device == "cuda" and stage != STAGES[2]:
        return None  # There these engines only train.
    torch.compiler.reset()
    play = stepper(make(env, rank, batch, tasks, device), name, stage)
    play(1)
    start = time.perf_counter()
    play(1)
    once = time.perf_counter() - start
    if once * REPEATS > SECONDS_PER_CELL:
        return None
    steps = max(1, min(500, int(SECONDS_PER_REPEAT / once)))
    if name in ("fused", "graph"):  # A call copies the factors: give it steps enough to be about the steps.
        steps = max(steps, 50)
    play(steps)
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        play(steps)
        rates.append(batch * steps / (time.perf_counter() - start))
    return Cell(env, name, stage, rank, batch, tasks, statistics.median(rates), min(rates), max(rates))


class Limits(NamedTuple):
    """What the machine can do, measured in this run."""

    copy: float
    """Bytes read and written per second by a large copy."""
    peak: float
    """Floating-point operations per second of a large float32 matrix product."""


def limits(device: str) -> Limits:
    """Best of ten."""
    source = torch.empty(1 << 26, device=device)
    target, square = torch.empty_like(source), torch.randn(2048, 2048, device=device)

    def best(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            action()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    copied = 2 * source.numel() * source.element_size() / best(lambda: target.copy_(source))
    return Limits(copied, 2 * 2048**3 / best(lambda: square @ square))


def cost(experiment: Experiment, stage: str) -> tuple[float, float]:
    """Bytes that a transition must move through memory, and its floating-point operations, by counting.

    Memory: the environment's state, read and written; the transition, written and read, where there is an update. Rows
    of factors stay in caches. Operations: weights of the visited rows, action values, the prediction, and for each mode
    a cofactor and its sum; random numbers and the environment itself are not counted.
    """
    problem = experiment.problem
    learner = problem.learner
    assert isinstance(learner, LowRankQ)
    modes, rank, actions = len(learner.sizes), learner.rank, problem.env.num_actions
    moved = 2.0 * 4 * len(experiment.initial_state.env._fields)
    values = (modes - 2) * rank + 2 * rank * actions
    if stage == STAGES[0]:
        return moved, 0.0
    if stage == STAGES[1]:
        return moved, values
    return moved + 2.0 * 4 * (2 * (modes - 2) + 2), 2 * values + 2 * rank + modes * modes * rank


def table(cells: list[Cell], bounds: Limits) -> list[str]:
    """One line a cell."""
    rows = ["| env | engine | stage | rank | batch | tasks | million/s | range | bytes | of copy | flop | of peak |"]
    rows.append("|---" * 12 + "|")
    for cell in cells:
        moved, operations = cost(make(cell.env, cell.rank, cell.tasks, cell.tasks, "cpu"), cell.stage)
        shares = cell.median * moved / bounds.copy, cell.median * operations / bounds.peak
        rows.append(
            f"| {cell.env} | {cell.engine} | {cell.stage} | {cell.rank} | {cell.batch:,} | {cell.tasks:,} "
            f"| {cell.median / 1e6:.2f} | {cell.low / 1e6:.2f}–{cell.high / 1e6:.2f} | {moved:.0f} "
            f"| {shares[0]:.1%} | {operations:.0f} | {shares[1]:.1%} |"
        )
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--engines", default="eager,compile,fused" if device == "cpu" else "eager,compile,graph,fused")
    parser.add_argument("--batches", default="8,12,16,20", help="exponents of two")
    parser.add_argument("--tasks", default="4,64,1024,16384,65536", help="task counts at 2^20 environments")
    parser.add_argument("--out", default=f"throughput-{device}")
    chosen = parser.parse_args()
    bounds = limits(device)
    slow = transitions_per_second(seconds=5.0)
    cells = []
    for env in ("pendulum", "wireless"):
        for name in chosen.engines.split(","):
            for stage in STAGES:
                for rank in RANKS if stage != STAGES[0] else RANKS[:1]:
                    for exponent in map(int, chosen.batches.split(",")):
                        cell = measure(env, name, stage, rank, 1 << exponent, 4, device)
                        print(cell, flush=True)
                        cells += [cell] if cell else []
    fastest = chosen.engines.split(",")[-1]
    counts = []
    for count in map(int, filter(None, chosen.tasks.split(","))):
        cell = measure("pendulum", fastest, STAGES[2], 8, 1 << 20, count, device)
        print(cell, flush=True)
        counts += [cell] if cell else []
    best = {
        rank: max(c.median for c in cells if (c.rank, c.stage, c.env) == (rank, STAGES[2], "pendulum"))
        for rank in RANKS
    }
    processor = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {fused.num_threads()} threads"
    )
    ratios = ", ".join(f"rank {rank}: {rate / slow:,.0f} times" for rank, rate in best.items())
    text = "\n".join([
        "# Throughput", "", f"{processor}; {versions()}; commit {git_commit()}", "",
        f"Measured in this run: copy {bounds.copy / 1e9:.1f} GB/s, matrix product {bounds.peak / 1e9:.0f} Gflop/s; one",
        f"transition at a time (benchmarks/reference.py, one thread) {slow:.0f} transitions/s. Best batched rate on",
        f"pendulum against that: {ratios}.", "", *table(cells, bounds), "",
        "Task counts at 2^20 environments:", "", *table(counts, bounds),
    ]) + "\n"  # fmt: skip
    print(text)
    results = Path(__file__).parent / "results"
    (results / f"{chosen.out}.md").write_text(text)
    measured = {"cells": [c._asdict() for c in cells], "task_counts": [c._asdict() for c in counts]}
    machine = {"machine": processor, "versions": versions(), "commit": git_commit(), "limits": bounds._asdict()}
    described = {**machine, "reference": slow, **measured}
    (results / f"{chosen.out}.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
