"""What a tensor knows of tasks that it has hardly seen: tasks held out, new tasks from a few samples, a large fleet.

    python benchmarks/new_tasks.py [--quick] [--fleet]

Writes benchmarks/results/held_out.md and adaptation.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchq
from torchq import families
from torchq.engines import torch_settings
from torchq.presets import resolve
from torchq.runs.experiment import Experiment, prepare
from torchq.runs.optimum import optimal_returns
from torchq.versions import git_commit, versions

RESULTS = Path(__file__).parent / "results"
SEED, TESTS, TESTS_OF_NOISE = 100, 4, 32
ENGINE = {"engine": "auto"}
"""Of all runs; for tests the one that needs no compiler."""
Tasks = list[dict[str, float]]
ABOUT = """What tasks share stays as it is; the row of a new task is fitted by least-squares policy iteration to
all of its samples after each episode, with the rows of known tasks as a prior (`torchq/lowrank/row_fit.py`). Where
steps are not random the rows to start from are played first, an episode each: that of the task's parameters where
tasks have modes, that of the nearest known task, a mean of known rows by their distance, and those of the next; the
row whose episode went best is tested and kept. Where steps are random, the last fit is. *Way* is the share of the
way from the policy of the nearest known task to training on the task alone; where these are close it is noise.

What was tried besides, and did worse, in prototypes of four runs or fewer that were not kept: fitted Q-iteration
with a weak prior, step-by-step semi-gradients on the row (`--fit semi-gradient`), Bellman residuals, the best
convex combination of known rows by the first episode's Bellman error, the mean of all rows."""


def pendulums(count: int = 8) -> Tasks:
    """A grid of masses, log-spaced from 0.05 to 1 kg, and lengths from 0.5 to 1 m."""
    masses, lengths = np.geomspace(0.05, 1.0, count), np.linspace(0.5, 1.0, count)
    return [{"mass": float(mass), "length": float(length)} for mass, length in itertools.product(masses, lengths)]


def devices(count: int = 4) -> Tasks:
    """A grid of transmitters over the family's ranges."""
    ranges = {
        "harvest": (0.5, 3.0), "harvest_probability": (0.2, 0.8), "arrival": (1.0, 2.0),
        "arrival_probability": (0.2, 0.8),
    }  # fmt: skip
    axes = [np.linspace(*span, count).tolist() for span in ranges.values()]
    return [dict(zip(ranges, point, strict=True)) for point in itertools.product(*axes)]


def unseen(env: str, count: int) -> Tasks:
    """Tasks at random, none of which lies on the grids."""
    source = random.Random(7)
    if env == "pendulum":
        return [
            {"mass": math.exp(source.uniform(math.log(0.05), 0.0)), "length": source.uniform(0.5, 1.0)}
            for _ in range(count)
        ]
    spans = ((0.5, 3.0), (0.2, 0.8), (1.0, 2.0), (0.2, 0.8))
    return [dict(zip(devices()[0], (source.uniform(*span) for span in spans), strict=True)) for _ in range(count)]


def trained(env: str, tasks: Tasks, seeds: int, episodes: int, **flags: Any) -> tuple[Experiment, np.ndarray]:
    """A run of stlrq by the default protocol, and its last returns, (seeds, tasks)."""
    given = {"num_seeds": seeds, "seed": SEED, "tasks": tuple(tasks), "episodes": episodes, "eval_every": episodes,
             "eval_episodes": TESTS, "device": "cpu", **ENGINE, **flags}  # fmt: skip
    experiment = prepare(resolve("stlrq", env, "default", given), families.make(env))
    torch_settings.limit_threads(experiment.work)
    _, evaluations = experiment.play_block(experiment.initial_state, 0, episodes)
    return experiment, evaluations[-1].returns.numpy()


def order(experiment: Experiment, tasks: Tasks) -> list[int]:
    """Numbers of an experiment's tasks in a list of tasks."""
    return [tasks.index(vars(task)) for task in experiment.task_list]


class Cells:
    """Returns of some tasks and runs, and how far below the optimum they are."""

    def __init__(self) -> None:
        self.returns: list[np.ndarray] = []
        self.gaps: list[np.ndarray] = []

    def add(self, returns: np.ndarray, optimum: np.ndarray | None) -> None:
        """Returns (seeds, tasks), and the optimum of each task, where it is known."""
        self.returns.append(returns.ravel())
        if optimum is not None:
            self.gaps.append((returns - optimum).ravel())

    def row(self, name: str) -> str:
        """A line of the table."""
        values, gap = np.concatenate(self.returns), np.concatenate(self.gaps) if self.gaps else None
        fifth, low, median = np.percentile(values, [5, 25, 50])
        far = "–" if gap is None else f"{(gap < -50).mean():.1%} / {(gap < -100).mean():.1%}"
        return f"| {name} | {median:.1f} | {low:.1f} | {fifth:.0f} | {values.min():.0f} | {far} |"

    def quantile(self, percent: float) -> float:
        """Of all returns."""
        return float(np.percentile(np.concatenate(self.returns), percent))

    def below(self, bound: float) -> tuple[int, int]:
        """How many returns are below a bound, and how many of them though the optimum is not."""
        values, gap = np.concatenate(self.returns), np.concatenate(self.gaps)
        return int((values < bound).sum()), int(((values < bound) & (values - gap > bound)).sum())


def optimum_of(env: str, grid: Tasks) -> np.ndarray | None:
    """Optimal returns, where they are quickly known."""
    if env != "pendulum" or len(grid) < 64:
        return None
    family = families.make(env)
    return np.array(
        optimal_returns(family, [type(family.sample_tasks(1)[0])(**task) for task in grid], torch.device("cpu"))
    )


def held_out(env: str, grid: Tasks, draws: int, seeds: int, episodes: int) -> list[str]:
    """Tasks never trained on beside a row for each of all tasks, with the same total of samples."""
    optimum, held, table, learnt = optimum_of(env, grid), Cells(), Cells(), Cells()
    for draw in range(draws):
        shuffled = grid if draw == 0 else random.Random(draw).sample(grid, len(grid))
        seed = {"seed": SEED + draw * seeds}
        run, found = trained(env, shuffled, seeds, round(episodes * 4 / 3), task_modes="linear", held_out=0.25, **seed)
        _, whole = trained(env, grid, seeds, episodes, **seed)
        numbers, first = order(run, grid), run.task_set.num_trained
        best = None if optimum is None else optimum[numbers]
        held.add(found[:, first:], None if best is None else best[first:])
        learnt.add(found[:, :first], None if best is None else best[:first])
        table.add(whole[:, numbers[first:]], None if best is None else best[first:])
    length = families.make(env).episode_length
    off = [100.0 * (held.quantile(q) - table.quantile(q)) / abs(table.quantile(q)) for q in (50, 25)]
    lines = [
        f"{len(grid)} tasks, a quarter held out: {draws} draws of them, {seeds} runs each; {episodes * length:,} "
        "samples a task where each has a row, as many in all where not.",
        "",
        "| | median | lower quartile | 5% | worst | below the optimum by > 50 / > 100 |",
        "|---|---|---|---|---|---|",
        held.row("held out, a mode for each parameter"),
        table.row("the same tasks, a row for each and trained on"),
        learnt.row("trained on, a mode for each parameter"),
        "",
        f"Held out against a row for each: median {off[0]:+.1f}%, lower quartile {off[1]:+.1f}%.",
    ]
    if optimum is not None:
        (below, needless), (theirs, _) = held.below(-250.0), table.below(-250.0)
        lines.append(
            f"Below −250: {below}, of which {needless} though the optimum is above; with a row for each {theirs}."
        )
    return lines


def by_number(seeds: int, total: int, each: int, counts: Sequence[int]) -> list[str]:
    """Returns on 16 pendulums never trained on against how many are trained, corners first."""
    lines = [
        "| tasks trained | samples each | held out: median | lower quartile | samples each | median | lower quartile |",
        "|---|---|---|---|---|---|---|",
    ]
    whole, _ = trained("pendulum", pendulums(), 1, 1, task_modes="linear", held_out=0.25)
    known, test = ([vars(task) for task in part] for part in (whole.task_set.trained, whole.task_set.held_out))
    ends = [task for task in known if task["mass"] in (0.05, 1.0) and task["length"] in (0.5, 1.0)]
    rest = [task for task in known if task not in ends]
    learn = ends + random.Random(1).sample(rest, len(rest))
    for count in counts:
        parts = []
        for samples in (total // count, each):
            flags = {"task_modes": "linear", "test_tasks": tuple(test)}
            _, found = trained("pendulum", learn[:count], seeds, max(1, samples // 100), **flags)
            values = found[:, count:]
            parts.append(f"{samples:,} | {np.median(values):.1f} | {np.percentile(values, 25):.1f}")
        lines.append(f"| {count} | {' | '.join(parts)} |")
    return lines


def fleet(seeds: int, count: int, episodes: int) -> list[str]:
    """A large fleet: a row for each beside modes of parameters after a tenth of the samples."""
    tasks = [vars(task) for task in families.make("pendulum").sample_tasks(count)]
    quick = {"replay_ratio": 16, "replay_batch": 1, "epsilon_decay": 0.985, "target_rate": 0.01, "rank": 45}
    lines = ["| | samples a task | mean | median | lower quartile |", "|---|---|---|---|---|"]
    cases = {"a row for each": (episodes, {}), "modes, the same settings": (episodes // 10, {"task_modes": "linear"}),
             "modes, " + ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in quick.items()): (
                 episodes // 10, {"task_modes": "linear", **quick})}  # fmt: skip
    for name, (length, flags) in cases.items():
        _, found = trained("pendulum", tasks, seeds, length, **flags)
        low, median = np.percentile(found, [25, 50])
        lines.append(f"| {name} | {length * 100:,} | {found.mean():.1f} | {median:.1f} | {low:.1f} |")
    return lines


def way(returns: np.ndarray, near: np.ndarray, full: np.ndarray) -> str:
    """Share of the way from the nearest task's policy to full training: where that is 2% or more, and of all sums."""
    far = full - near > 0.02 * np.abs(full)
    there = (returns - near)[far] / (full - near)[far]
    return f"{np.median(there):.2f} | {(returns - near).sum() / (full - near).sum():.2f}"


def adaptation(env: str, grid: Tasks, count: int, seeds: int, episodes: int, full_episodes: int) -> list[str]:
    """Returns of new tasks against samples, from a source with a row per task and from one with modes."""
    length, tasks = families.make(env).episode_length, unseen(env, count)
    marks = [mark for mark in (200, 500, 1000, 2000) if mark % length == 0 and episodes > 10] or [length]
    tests = TESTS_OF_NOISE if env == "wireless" else TESTS
    new_episodes = 2000 // length if episodes > 10 else 1
    common = {"env": env, "num_seeds": seeds, "seed": SEED, "optimal": False, "device": "cpu", "progress": False,
              **ENGINE}  # fmt: skip
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def alone(label: str, episodes: int) -> np.ndarray:
            run = torchq.train(algo="lrq", tasks=tasks, episodes=episodes, eval_every=episodes, eval_episodes=tests,
                               out=folder / label, **common)  # fmt: skip
            return run.metrics.returns[-1]

        full = alone("full", full_episodes)
        nothing = alone("nothing", new_episodes)
        for kind in ("table", "linear"):
            torchq.train(algo="stlrq", tasks=grid, task_modes=kind, episodes=episodes, eval_every=episodes,
                         out=folder / kind, **common)  # fmt: skip
            run = torchq.train(adapt_from=folder / kind, tasks=tasks, episodes=new_episodes, eval_episodes=tests,
                               out=folder / f"new-{kind}", **common)  # fmt: skip
            rows[kind] = {int(n): r for n, r in zip(run.metrics.samples, run.metrics.returns, strict=True)}
            if kind == "table":
                near = nearest_returns(run)
    lines = [
        f"{count} tasks at random, {seeds} runs; sources of {len(grid)} tasks with {episodes * length:,} samples each.",
        "",
        "| | samples | mean | median | worst | way, where it is 2% or more | way of sums |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = [("the nearest known task's policy", 0, near), ("from nothing", 2000, nothing)]
    for kind, words in (("table", "a row per task"), ("linear", "a mode per parameter")):
        cases += [(f"adapted, {words}", mark, rows[kind][mark]) for mark in marks]
    cases.append(("full training", full_episodes * length, full))
    for words, mark, found in cases:
        numbers = f"{found.mean():.1f} | {np.median(found):.1f} | {found.min():.0f}"
        lines.append(f"| {words} | {mark:,} | {numbers} | {way(found, near, full)} |")
    return lines


def nearest_returns(run: torchq.Run) -> np.ndarray:
    """Returns of the rows of the nearest known tasks, (seeds, tasks)."""
    from torchq.runs.adaptation import known_rows, nearest, read_source

    family, source_folder = families.make(run.config.env), Path(str(run.config.adapt_from))
    source = read_source(source_folder, family)
    known, shared = known_rows(source)
    experiment = prepare(run.config.replace(engine="eager"), family)
    rows = known[:, nearest(source.tasks.tasks, experiment.task_list, family)].unsqueeze(1)
    state = experiment.initial_state.learner._replace(factors=(rows, *shared), fit=())
    return experiment.evaluate(experiment.rollout.learner.policy(state), 10_000).numpy()


def write(name: str, title: str, parts: dict[str, list[str]]) -> None:
    """One page."""
    where = f"{platform.machine()}; {versions()}; commit {git_commit()}; `python benchmarks/new_tasks.py`"
    lines = [f"# {title}", "", where]
    for head, body in parts.items():
        lines += ["", f"## {head}", "", *body]
    print("\n".join(lines) + "\n", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text("\n".join(lines) + "\n")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, or little of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tasks, runs and episodes, for the tests")
    parser.add_argument("--few", action="store_true", help="adapt from 16 known tasks, too")
    parser.add_argument("--fleet", action="store_true", help="4,096 pendulums too: ten minutes more")
    quick, from_few, large = vars(parser.parse_args(arguments)).values()
    ENGINE["engine"] = "eager" if quick else "auto"
    draws, seeds, share = (1, 2, 1000) if quick else (4, 5, 1)
    grid, fields = pendulums(4 if quick else 8), devices(2 if quick else 4)
    held = {
        "Pendulums of 0.05 to 1 kg and 0.5 to 1 m": held_out("pendulum", grid, draws, seeds, max(1, 50 // share)),
        "Transmitters": held_out("wireless", fields, draws, seeds, max(1, 20 // share)),
    }
    if not quick:
        held["Against how many pendulums are trained on"] = by_number(20, 320_000, 6_700, (4, 8, 16, 32, 48))
    if large:
        held["4,096 pendulums"] = fleet(2, 4096, 50)
    write("held_out.md", "Tasks that are never trained on", held)
    count, runs = (2, 2) if quick else (20, 4)
    adapted = {
        "Pendulums": adaptation("pendulum", grid, count, runs, max(1, 200 // share), max(1, 1000 // share)),
        "Transmitters": adaptation(
            "wireless", devices(2 if quick else 3), count, runs, max(1, 100 // share), max(1, 500 // share)
        ),
    }
    if from_few:
        adapted["Pendulums, from 16 known"] = adaptation("pendulum", pendulums(4), count, runs, 200, 1000)
        adapted["Transmitters, from 16 known"] = adaptation("wireless", devices(2), count, runs, 100, 500)
    write("adaptation.md", "New tasks from a few samples", {"How": ABOUT.splitlines(), **adapted})


if __name__ == "__main__":
    main()
