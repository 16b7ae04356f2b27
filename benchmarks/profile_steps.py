"""Where the time of a step goes on a CPU, before and after the fused engine.

    python benchmarks/profile_steps.py

Prints a Markdown table of microseconds per transition, and the operations that eager mode spends most time in;
benchmarks/PROFILE.md says what follows from it.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from torchq import families
from torchq.engines.contract import Rates, Statistics
from torchq.engines.cpu.engine import CppEngine
from torchq.presets import resolve
from torchq.runs.experiment import Experiment, prepare
from torchq.versions import git_commit, versions

REPEATS, WARM_UP = 5, 5
STAGES = (("environment", 1.0, False), ("+ act", 0.1, False), ("+ update", 0.1, True))


def make(env: str, preset: str, engine: str, **flags: int) -> Experiment:
    """A stlrq run in memory."""
    config = resolve("stlrq", env, preset, {"engine": engine, "optimal": False, **flags})
    return prepare(config.replace(device="cpu"), families.make(env))


def microseconds(action: Callable[[], object], transitions: int) -> float:
    """Median over repeats after one warm-up, per transition."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[1:]) / transitions


def round_of(experiment: Experiment) -> float:
    """Microseconds per transition of a whole round."""
    shape = experiment.initial_state.statistics.reward.shape
    count = shape.numel() * experiment.config.num_envs * experiment.rollout.env.episode_length
    return microseconds(lambda: experiment.play(experiment.initial_state, 0), count)


def stages(experiment: Experiment, task: int | None) -> list[float]:
    """Microseconds per transition of the fused program, stage by stage, after some rounds of training."""
    rollout, state = experiment.rollout, experiment.initial_state
    for episode in range(WARM_UP):
        state, _ = experiment.play(state, episode)
    engine, steps = CppEngine(rollout), rollout.env.episode_length
    nothing = Statistics.zeros(*state.env.elapsed.shape[:2], "cpu", rollout.dtype)
    batch, state = rollout.batch(task), state._replace(statistics=nothing)
    found = []
    for _, epsilon, updates in STAGES:
        rates = Rates(*(torch.full((steps,), value, dtype=rollout.dtype) for value in (epsilon, 1e-3)))
        train = partial(engine.train, batch, state, rates, 0, updates=updates)
        found.append(microseconds(train, state.env.elapsed.numel() * steps))
    return found


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{platform.machine()}, one thread; {versions()}; commit {git_commit()}\n")
    print("| microseconds per transition | eager | compile | fused: environment | + act | + update |")
    print("|---|---|---|---|---|---|")
    cases = [
        ("paper, pendulum, 100 runs", ("pendulum", "paper"), {"num_seeds": 100}),
        ("paper, wireless, 100 runs", ("wireless", "paper"), {"num_seeds": 100}),
        ("batched, pendulum, rank 8", ("pendulum", "default"), {"num_seeds": 1, "num_envs": 4096, "rank": 8}),
        ("batched, pendulum, rank 30", ("pendulum", "default"), {"num_seeds": 1, "num_envs": 4096, "rank": 30}),
    ]  # fmt: skip
    for label, (env, preset), flags in cases:
        slow = [round_of(make(env, preset, engine, **flags)) for engine in ("eager", "compile")]
        task = 0 if preset == "paper" else None
        cells = " | ".join(f"{value:.3g}" for value in (*slow, *stages(make(env, preset, "fused", **flags), task)))
        print(f"| {label} | {cells} |", flush=True)
    experiment = make("pendulum", "paper", "eager", num_seeds=100)
    with torch.profiler.profile() as profiler:
        experiment.play(experiment.initial_state, 0)
    events = profiler.key_averages()
    print(f"\nOperations per eager step: {sum(event.count for event in events) / 400:.0f}\n")
    print(events.table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=30))


if __name__ == "__main__":
    main()
