"""Transitions per second of every engine: environment, + act, + update; and how near the machine's limits that is.

    python benchmarks/throughput.py [--engines eager,compile,graph,fused] [--batches 8,12,16,20] [--tasks] [--out NAME]

Batched protocol on cells, without replay, stlrq, float32, one run of four tasks, 2^b environments in all; then task
counts at 2^20 environments; then updates from replay beside updates without, as transitions that are learnt from; then
the paper's protocol, 100 runs in float64, evaluation not counted. Prints Markdown and writes it, with JSON beside
it, to benchmarks/results/throughput-DEVICE.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reference import transitions_per_second
from torch import Tensor

from torchq import families
from torchq.engines import graph, torch_settings
from torchq.engines.compiled import program
from torchq.engines.contract import Batch, Rates, RunState
from torchq.engines.cpu.engine import CppEngine
from torchq.engines.eager import Stepwise
from torchq.engines.graph import GraphEngine
from torchq.engines.rollout import Draws, Rollout
from torchq.engines.select import build
from torchq.lowrank.exploration import epsilon_greedy
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.native import num_threads
from torchq.presets import resolve
from torchq.runs.experiment import Experiment, prepare
from torchq.versions import git_commit, versions

STAGES = ("environment", "+ act", "+ update")
RANKS = (8, 30)
REPEATS = 10
SECONDS_PER_REPEAT = 0.05
SECONDS_PER_CELL = 40.0


PLAIN = {"features": "cells", "replay_ratio": 0, "target_rate": None, "optimizer": "adamax"}
"""The batched protocol with one update from each step's own transitions."""
REPLAY_SHAPES = ((8, 1, 2, 16), (1, 64, 1, 64), (1, 1024, 1, 1024), (1, 16384, 1, 16384))
"""Seeds, environments of each task, updates a step and stored transitions of each task; the first is the default's."""

SECTIONS = {
    "batched": "Batched protocol",
    "task_counts": "Task counts at 2^20 environments",
    "replay": "Updates from replay, and without (rank of the default protocol)",
    "paper": "The paper's protocol, 100 runs, float64, evaluation not counted",
    "deterministic": "With --deterministic",
}


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
    flags |= PLAIN
    return prepare(resolve("stlrq", env, "default", {**flags, "device": device}), families.make(env))


def make_online(env: str, algo: str, engine: str, device: str) -> Experiment:
    """100 runs in the paper's protocol."""
    return prepare(
        resolve(algo, env, "paper", {"num_seeds": 100, "engine": engine, "device": device}), families.make(env)
    )


def stepper(experiment: Experiment, name: str, stage: str) -> Callable[[int], None]:
    """A function that plays some steps with an engine; the environment alone takes random actions."""
    rollout, state = experiment.rollout, experiment.initial_state
    epsilon = torch.full((), 1.0 if stage == STAGES[0] else 0.1, device=rollout.device, dtype=rollout.dtype)
    rate = torch.full((), 1e-3, device=rollout.device, dtype=rollout.dtype)
    play, last, batch = trainer(rollout, name, stage), [state], rollout.batch()

    def steps_of(count: int) -> None:
        rates = Rates(epsilon.expand(count).contiguous(), rate.expand(count).contiguous())
        last[0] = play(batch, last[0]._replace(statistics=state.statistics), rates, 0)
        if rollout.device.type == "cuda":
            torch.cuda.synchronize()

    return steps_of


def trainer(rollout: Rollout, name: str, stage: str) -> Callable[..., RunState]:
    """`train` of an engine, or only the first stages of its steps."""
    engine = build(rollout, name)
    if stage == STAGES[2]:
        return engine.train
    if isinstance(engine, CppEngine):
        return partial(engine.train, updates=False)
    if isinstance(engine, GraphEngine) and not isinstance(engine.inner, Stepwise):
        engine.inner.train = partial(engine.inner.train, updates=False)
        return engine.train
    stepwise = engine.inner if isinstance(engine, GraphEngine) else engine
    assert isinstance(stepwise, Stepwise)
    function = partial(environment, rollout) if stage == STAGES[0] else partial(act, rollout)
    stepwise.step = function if name == "eager" else program(function)
    return engine.train


def environment(rollout: Rollout, batch: Batch, state: RunState, draws: Draws, *_: Tensor) -> RunState:
    """The environment alone."""
    return state._replace(env=rollout.env.step(batch.tasks, state.env, draws.random_action, draws.step)[0])


def act(rollout: Rollout, batch: Batch, state: RunState, draws: Draws, epsilon: Tensor, _: Tensor) -> RunState:
    """Behaviour policy and environment."""
    values = rollout.learner.action_values(state.learner, rollout.index(state.env), None)
    action = epsilon_greedy(values, epsilon, draws.explore, draws.random_action)
    return state._replace(env=rollout.env.step(batch.tasks, state.env, action, draws.step)[0])


def measure(env: str, name: str, stage: str, rank: int, batch: int, tasks: int, device: str) -> Cell | None:
    """Median and extremes over repeats after a warm-up; None where a repeat would take too long."""
    if name == "fused" and device == "cuda" and stage == STAGES[0]:
        return None  # Its kernel always acts.
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
        steps = -(-max(steps, 50) // graph.MAX_STEPS) * graph.MAX_STEPS
    return Cell(env, name, stage, rank, batch, tasks, *spread(lambda: play(steps), batch * steps))


def spread(action: Callable[[], Any], transitions: int) -> tuple[float, float, float]:
    """Median, lowest and highest rate over repeats after a warm-up."""
    action()
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        rates.append(transitions / (time.perf_counter() - start))
    return statistics.median(rates), min(rates), max(rates)


def measure_online(env: str, algo: str, name: str, device: str) -> Cell:
    """The paper's protocol, whole rounds of training as in `train.py` but without its test episodes."""
    torch.compiler.reset()
    experiment = make_online(env, algo, name, device)
    last = [experiment.initial_state]

    def play() -> None:
        last[0] = experiment.play(last[0], 0)[0]
        if device == "cuda":
            torch.cuda.synchronize()

    play()
    batch = last[0].statistics.reward.numel()
    found = spread(play, batch * experiment.rollout.env.episode_length)
    return Cell(env, name, f"paper, {algo}", experiment.config.rank, batch, len(experiment.task_list), *found)


def measure_replay(
    env: str, name: str, shape: tuple[int, int, int, int], device: str, transitions: int | None = None
) -> list[Cell]:
    """Transitions learnt from per second: each once, as it comes; then with stored ones beside it."""
    seeds, envs, ratio, again = shape
    cells = []
    for ratio_now in (0, ratio):
        given = {"num_seeds": seeds, "num_envs": envs, "replay_ratio": ratio_now, "engine": name, "device": device}
        given |= {"replay_batch": again} if ratio_now else {}
        experiment = prepare(resolve("stlrq", env, "default", given), families.make(env))
        play, learnt = stepper(experiment, name, STAGES[2]), envs + again if ratio_now else envs
        per_step = seeds * len(experiment.task_list) * learnt * max(1, ratio_now)
        steps = max(100, (transitions or 4_000_000) // per_step // 100 * 100)
        found = spread(lambda play=play, steps=steps: play(steps), per_step * steps)  # type: ignore[misc]
        kind = f"{ratio_now} updates a step, {learnt} a task" if ratio_now else "without"
        cells.append(Cell(env, name, kind, experiment.config.rank, seeds * envs * 4, 4, *found))
    return cells


class Limits(NamedTuple):
    """What the machine can do, measured in this run."""

    copy: float
    """Bytes read and written per second by a large copy."""
    peak: float
    """Floating-point operations per second of a large float32 matrix product."""


def limits(device: str, size: int = 1 << 26, side: int = 2048) -> Limits:
    """Best of ten copies of so many numbers, and of ten products of square matrices."""
    source = torch.empty(size, device=device)
    target, square = torch.empty_like(source), torch.randn(side, side, device=device)

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
    return Limits(copied, 2 * side**3 / best(lambda: square @ square))


def cost(experiment: Experiment, stage: str) -> tuple[float, float]:
    """Bytes that a transition must move through memory, and its floating-point operations, by counting.

    Memory: the environment's state, read and written; the transition, written and read, where there is an update. Rows
    of factors stay in caches. Operations: weights of the visited rows, action values, the prediction, and for each mode
    a cofactor and its sum; random numbers and the environment itself are not counted.
    """
    learner = experiment.rollout.learner
    assert isinstance(learner, LowRankQ)
    modes, rank, actions = len(learner.sizes), learner.rank, experiment.rollout.env.num_actions
    moved = 2.0 * 4 * len(experiment.initial_state.env._fields)
    values = (modes - 2) * rank + 2 * rank * actions
    if stage == STAGES[0]:
        return moved, 0.0
    if stage == STAGES[1]:
        return moved, values
    return moved + 2.0 * 4 * (2 * (modes - 2) + 2), 2 * values + 2 * rank + modes * modes * rank


def table(cells: list[Cell], bounds: Limits | None) -> list[str]:
    """One line a cell; the limit, in million/s, is what copying or arithmetic alone would allow."""
    rows = ["| env | engine | stage | rank | batch | tasks | million/s | range |"]
    rows[0] += " bytes | of copy | flop | of peak | limit |" if bounds else ""
    rows.append("|---" * (13 if bounds else 8) + "|")
    for cell in cells:
        row = (
            f"| {cell.env} | {cell.engine} | {cell.stage} | {cell.rank} | {cell.batch:,} | {cell.tasks:,} "
            f"| {cell.median / 1e6:.3g} | {cell.low / 1e6:.3g}–{cell.high / 1e6:.3g} |"
        )
        if bounds:
            moved, operations = cost(make(cell.env, cell.rank, cell.tasks, cell.tasks, "cpu"), cell.stage)
            shares = cell.median * moved / bounds.copy, cell.median * operations / bounds.peak
            limit = cell.median / max(shares) / 1e6
            row += f" {moved:.0f} | {shares[0]:.1%} | {operations:.0f} | {shares[1]:.1%} | {limit:.0f} |"
        rows.append(row)
    return rows


def measure_all(engines: list[str], exponents: list[int], task_counts: list[int], device: str) -> dict[str, list[Cell]]:
    """Every cell, by section."""
    update, largest = STAGES[2], 1 << 20
    found: dict[str, list[Cell]] = {name: [] for name in SECTIONS}

    def add(section: str, cell: Cell | None) -> None:
        print(cell, flush=True)
        found[section] += [cell] if cell else []

    for env in ("pendulum", "wireless"):
        for name in engines:
            for stage in STAGES:
                for rank in RANKS if stage != STAGES[0] else RANKS[:1]:
                    for exponent in exponents:
                        add("batched", measure(env, name, stage, rank, 1 << exponent, 4, device))
    for count in task_counts:
        add("task_counts", measure("pendulum", engines[-1], update, 8, largest, count, device))
    for env in ("pendulum", "wireless"):
        for shape in REPLAY_SHAPES:
            for cell in measure_replay(env, engines[-1], shape, device):
                add("replay", cell)
    for env, algo in (("pendulum", "stlrq"), ("pendulum", "lrq"), ("wireless", "stlrq"), ("wireless", "lrq")):
        for name in engines:
            add("paper", measure_online(env, algo, name, device))
    if device == "cuda":  # On a CPU the order of additions is always the same.
        with torch_settings.deterministic(True, "cuda"):
            for name in engines:
                add("deterministic", measure("pendulum", name, update, 8, largest, 4, device))
    return found


def report(found: dict[str, list[Cell]], bounds: Limits, slow: float, machine: str) -> str:
    """The measurements as Markdown."""
    learning = [cell for cell in found["batched"] if (cell.env, cell.stage) == ("pendulum", STAGES[2])]
    best = {rank: max((cell.median for cell in learning if cell.rank == rank), default=0.0) for rank in RANKS}
    measured = (f"rank {rank}: {rate / slow:,.0f} times" for rank, rate in best.items() if rate)
    ratios = ", ".join(measured) or "not measured"
    lines = [
        "# Throughput", "", machine, "",
        f"Measured in this run: copy {bounds.copy / 1e9:.1f} GB/s, matrix product {bounds.peak / 1e9:.0f} Gflop/s; one",
        f"transition at a time (benchmarks/reference.py, one thread) {slow:.0f} transitions/s. Best batched rate on",
        f"pendulum against that: {ratios}.",
    ]  # fmt: skip
    for name, title in SECTIONS.items():
        if found[name]:
            lines += ["", f"## {title}", "", *table(found[name], None if name in ("paper", "replay") else bounds)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--engines", default="eager,compile,fused" if device == "cpu" else "eager,compile,graph,fused")
    parser.add_argument("--batches", default="8,12,16,20", help="exponents of two")
    parser.add_argument("--tasks", default="4,64,1024,16384,65536", help="task counts at 2^20 environments")
    parser.add_argument("--out", default=f"throughput-{device}")
    chosen, commit = parser.parse_args(), git_commit()
    exponents, counts = (list(map(int, filter(None, given.split(",")))) for given in (chosen.batches, chosen.tasks))
    bounds, slow = limits(device), transitions_per_second(seconds=5.0)
    found = measure_all(chosen.engines.split(","), exponents, counts, device)
    processor = f"{platform.machine()}, {num_threads()} threads"
    processor = torch.cuda.get_device_name() if device == "cuda" else processor
    text = report(found, bounds, slow, f"{processor}; {versions()}; commit {commit}")
    print(text)
    results = Path(__file__).parent / "results"
    (results / f"{chosen.out}.md").write_text(text)
    cells = {name: [cell._asdict() for cell in section] for name, section in found.items()}
    machine = {"machine": processor, "versions": versions(), "commit": commit, "limits": bounds._asdict()}
    (results / f"{chosen.out}.json").write_text(json.dumps({**machine, "reference": slow, **cells}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
