"""The first three questions of `benchmarks/sharing.py`: the rank, the number of tasks, and how related they are."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from sharing_runs import (
    COLOURS,
    Mark,
    OddTask,
    Plan,
    band,
    head,
    learn,
    named,
    optimum,
    panels,
    row,
    save,
    shown,
    ticks,
    with_own_components,
)
from sharing_text import ABOUT_NUMBERS, ABOUT_RANKS, ABOUT_RELATED

from envs import Pendulum

RANKS = (1, 2, 3, 5, 8, 15, 30, 60)
LADDER = (8, 15, 30, 60)
PILOT = (2000, 3000)
"""Samples per task of a pilot at which the last third begins, and at its end."""
RULES = {"TD error": 0.15, "return": 0.05}
"""Least relative improvement for which the rank is doubled once more."""


def chosen(rule: str, pilots: dict[int, Mark], runs: slice) -> tuple[int, int]:
    """The rank that a rule takes from the pilots of some runs, and how many pilots it has played."""
    ranks = sorted(pilots)
    for number, (low, high) in enumerate(pairwise(ranks)):
        if rule == "TD error":
            before, after = (pilots[rank].squared_error[runs].mean() for rank in (low, high))
            gain = (before - after) / before
        else:
            before, after = (pilots[rank].returns[runs].mean() for rank in (low, high))
            gain = (after - before) / abs(before)
        if gain < RULES[rule]:
            return low, number + 2
    return ranks[-1], len(ranks)


def ranks(plan: Plan) -> list[str]:
    """Returns against the rank, and two rules that choose it."""
    marks, tried = plan.pick((5000, 25000), (30, 40)), plan.pick(RANKS, (1, 2))
    table = head("env", "algo", "rank", *(f"{mark:,} samples per task" for mark in marks))
    rules = head("tasks", "rule", "runs asked together", "rank chosen (times)", "return with it",
                 f"return of rank {LADDER[-1]}", "largest loss of a run", "pilots, samples per task")  # fmt: skip
    figure, axes = panels(2, 2)
    for line, env in enumerate(("pendulum", "wireless")):
        family = plan.family(env)
        best = optimum(family, family.sample_tasks()).mean()
        for algo in ("stlrq", "lrq", "clrq"):
            found = {rank: learn(plan, family, marks, plan.seeds(16), algo=algo, rank=rank) for rank in tried}
            for rank in tried:
                table.append(row(env, algo, rank, *(shown(mark.mean) for mark in found[rank])))
            for column, (axis, mark) in enumerate(zip(axes[line], marks, strict=True)):
                gaps = [np.maximum(best - found[rank][column].mean, 0.5) for rank in tried]
                band(axis, tried, gaps, algo, color=COLOURS[algo])
                axis.set(xscale="log", yscale="log", title=f"{env}, {mark:,} samples per task", xlabel="rank",
                         ylabel="optimum − return")  # fmt: skip
                ticks(axis, tried)
        table.append(row(env, "optimum", "", *[f"{best:.0f}"] * 2))
        for count, most in ((4, 16), (16, 8)):
            rules += rule_rows(plan, family, count, most)
    save(figure, axes[0, 0], plan, "ranks")
    return [
        ABOUT_RANKS[0], "", "![Gap to the optimum against the rank](sharing-ranks.png)", "", *table, "",
        ABOUT_RANKS[1], "", *rules,
    ]  # fmt: skip


def rule_rows(plan: Plan, family: Any, num_tasks: int, most: int) -> list[str]:
    """What the rules choose, for runs that are asked eight together and one by one; on seeds of their own."""
    seeds = range(plan.first_seed + 100, plan.first_seed + 100 + len(plan.seeds(most)))
    marks = plan.pick((*PILOT, 25000), (10, 20, 40))
    found = {
        rank: learn(plan, family, marks, seeds, rank=rank, num_tasks=num_tasks) for rank in plan.pick(LADDER, (1, 2))
    }
    pilots, last, rows = {rank: at[1] for rank, at in found.items()}, found[max(found)][-1].mean, []
    for rule in RULES:
        for together in (8, 1):
            groups = [slice(first, first + together) for first in range(0, len(seeds), together)]
            picks = [chosen(rule, pilots, group) for group in groups]
            got = np.concatenate([found[rank][-1].mean[group] for (rank, _), group in zip(picks, groups, strict=True)])
            names = ", ".join(f"{rank} ({times})" for rank, times in sorted(Counter(rank for rank, _ in picks).items()))
            cost = pilots[min(pilots)].samples * np.mean([played for _, played in picks])
            rows.append(row(f"{num_tasks} {family.name}", rule, together, names, shown(got), shown(last),
                            f"{(last - got).max():.0f}", f"{cost:,.0f}"))  # fmt: skip
    return rows


def shared_rates(num_tasks: int) -> dict[str, Any]:
    """Rates by the samples of all tasks together, and updates for as many samples of each task as there are.

    The default's are for four tasks. More tasks play fewer steps for the same samples: each gets more updates, of fewer
    stored transitions of each task, and ε and η fall as much.
    """
    return {
        "replay_ratio": min(64, max(2, num_tasks // 16)), "replay_batch": min(16, max(1, 256 // num_tasks)),
        "epsilon_decay": 0.998 ** max(1.0, num_tasks / 4),
        "learning_rate_half_life": 10_000.0 * min(1.0, 4 / num_tasks),
    }  # fmt: skip


def numbers(plan: Plan) -> list[str]:
    """Gaps of the same tasks when more and more tasks learn from as many samples in all."""
    family, tested = plan.family("pendulum"), plan.pick(16, 2)
    totals = plan.pick((102_400, 409_600), (80, 160))
    counts = plan.pick((1, 4, 16, 64, 256, 1024), (1, 2, 4))
    seeds, every = plan.seeds(4), Pendulum.sample_tasks(1024)
    best = optimum(family, every[:tested])
    gaps: dict[tuple[str, int, int], np.ndarray] = {}
    each = sorted({total // count for total in totals for count in counts})
    few, fast = max(totals) // plan.pick(16, 2), {"epsilon_decay": 0.99, "learning_rate_half_life": 1000.0}
    nothing = [  # Of tasks that share nothing the tested alone need to be played, in one run for all numbers of tasks.
        learn(plan, family, [mark for mark in each if mark <= most], seeds, algo="lrq", tasks=named(every[:tested]),
              **changes)
        for most, changes in ((max(totals), {}), (few, {"replay_ratio": 8}), (few, {"replay_ratio": 8, **fast}))
    ]  # fmt: skip
    for total in totals:
        for count in counts:
            at = [mark for marks in nothing for mark in marks if mark.samples == total // count]
            gaps["lrq", total, count] = min(((best - mark.returns).mean(1) for mark in at), key=np.median)
            for modes in ("table", "linear"):
                if count == 1:
                    gaps[modes, total, count] = gaps["lrq", total, count]
                    continue
                groups = [every[first : first + count] for first in range(0, tested, count)]
                found = [
                    learn(plan, family, (total // count,), seeds, tasks=named(group), task_modes=modes,
                          **shared_rates(count))[0].returns[:, :tested]
                    for group in groups
                ]  # fmt: skip
                gaps[modes, total, count] = (best - np.concatenate(found, axis=1)).mean(1)
    names = {"table": "stlrq, a row per task", "linear": "stlrq, task modes linear", "lrq": "lrq"}
    table = head("samples in all", "tasks", "samples per task", *names.values())
    figure, axes = panels(1, 2)
    for axis, total in zip(axes[0], totals, strict=True):
        for count in counts:
            cells = [shown(gaps[name, total, count], 1) for name in names]
            table.append(row(f"{total:,}", f"{count:,}", f"{total // count:,}", *cells))
        for (name, label), colour in zip(names.items(), ("C0", "C3", "C1"), strict=True):
            band(axis, counts, [np.maximum(gaps[name, total, count], 0.5) for count in counts], label, color=colour)
        axis.set(xscale="log", yscale="log", xlabel="tasks that learn", ylabel="optimum − return, mean of 16 tasks",
                 title=f"{total:,} samples in all", ylim=(1, 1500))  # fmt: skip
        ticks(axis, counts)
    save(figure, axes[0, 0], plan, "numbers")
    return [
        ABOUT_NUMBERS, "", "![Gap against the number of tasks](sharing-numbers.png)", "", *table,
    ]  # fmt: skip


KINDS: dict[str, dict[str, float]] = {
    "torque reversed": {"torque_sign": -1.0}, "goal hanging": {"hanging": 1.0}, "reward ×10": {"scale": 10.0},
}  # fmt: skip
SHARES = {0: (), 2: (3, 11), 4: (1, 5, 9, 13), 8: tuple(range(1, 16, 2))}
"""Which of 16 tasks are odd, by how many are."""


def mixed(kind: str, odd: int, count: int) -> tuple[list[OddTask], np.ndarray]:
    """Pendulums of which some are of another kind, and which those are."""
    plain = Pendulum.sample_tasks(count)
    tasks = [OddTask(one.mass, one.length, **KINDS[kind] if i in SHARES[odd] else {}) for i, one in enumerate(plain)]
    return tasks, np.isin(np.arange(count), SHARES[odd])


def related(plan: Plan) -> list[str]:
    """Gaps of tasks of two kinds that learn together, and what helps."""
    family, marks = plan.family("odd"), plan.pick((1000, 2000, 5000), (10, 20, 30))
    seeds, count, both = plan.seeds(8), plan.pick(16, 6), plan.pick((6, 30), (2, 3))

    def gaps(kind: str, odd: int, **changes: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """At each mark those of the plain tasks, and of the odd ones in units of their own reward; (seeds,)."""
        tasks, mask = mixed(kind, odd, count)
        best, scale = optimum(family, tasks), np.array([task.scale for task in tasks])
        found = learn(plan, family, marks, seeds, tasks=named(tasks), **changes)
        apart = [(best - mark.returns) / scale for mark in found]
        return [(gap[:, ~mask].mean(1), gap[:, mask].mean(1) if odd else gap[:, ~mask].mean(1)) for gap in apart]

    table = head("odd tasks", "of 16", "rank", "algo", *(f"plain / odd at {mark:,}" for mark in marks))
    figure, axes = panels(2, len(KINDS))
    shares = plan.pick(tuple(SHARES), (0, 2))
    for column, kind in enumerate(KINDS):
        for line, rank in enumerate(both):
            for algo, colour in COLOURS.items():
                found = {odd: gaps(kind, odd, rank=rank, algo=algo) for odd in shares}
                for odd, values in found.items():
                    cells = [f"{shown(plain, 1)} / {shown(other, 1) if odd else '–'}" for plain, other in values]
                    table.append(row(kind, odd, rank, algo, *cells))
                for at, style in ((0, ":"), (-1, "-")):
                    values = [np.maximum(found[odd][at][0], 0.5) for odd in shares]
                    band(axes[line, column], [odd / count for odd in shares], values, f"{algo}, {marks[at]:,} samples",
                         color=colour, linestyle=style)  # fmt: skip
            axes[line, column].set(title=f"{kind}, rank {rank}", yscale="log", ylim=(1, 900),
                                   xlabel="share of odd tasks", ylabel="gap of the plain tasks")  # fmt: skip
    save(figure, axes[0, 0], plan, "related")
    return [
        ABOUT_RELATED[0], "", "![Gap of the plain tasks against the share of odd ones](sharing-related.png)", "",
        ABOUT_RELATED[1], "", *remedies(plan, gaps, marks, both), "", "<details><summary>All figures</summary>", "",
        *table, "", "</details>",
    ]  # fmt: skip


def remedies(plan: Plan, gaps: Any, marks: tuple[int, ...], both: tuple[int, ...]) -> list[str]:
    """Task weights and components of one task alone."""
    odd, count = plan.pick(8, 2), plan.pick(16, 6)
    lines = head("odd tasks", "learner", "rank", *(f"plain / odd at {mark:,}" for mark in marks))
    for kind in plan.pick(tuple(KINDS), ("reward ×10",)):
        _, mask = mixed(kind, odd, count)
        tried: list[tuple[str, int, dict[str, Any]]] = []
        for rank in both:
            tried.append(("stlrq", rank, {}))
            for weight in plan.pick((10.0, 0.1, 0.01), (0.01,)):
                weights = tuple(np.where(mask, weight, 1.0).tolist())
                tried.append((f"stlrq, λ = {weight:g} for odd tasks", rank, {"task_weights": weights}))
            tried.append(("lrq", rank, {"algo": "lrq"}))
        for shared, own in plan.pick(((6, 1), (14, 1), (30, 1), (30, 3)), ((2, 1),)):
            rank, product = shared + count * own, {"task_modes": "product"}
            tried.append((f"{shared} shared components, {own} of each task", rank,
                          {**product, "start": with_own_components(shared, own)}))  # fmt: skip
            tried.append(("all shared (control)", rank, product))
        for name, rank, changes in tried:
            found = gaps(kind, odd, rank=rank, **changes)
            lines.append(row(kind, name, rank, *(f"{shown(plain, 1)} / {shown(other, 1)}" for plain, other in found)))
    return lines
