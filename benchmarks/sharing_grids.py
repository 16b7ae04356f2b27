"""The last two questions of `benchmarks/sharing.py`: the size of the grid, and how near values come to the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sharing_runs import Mark, Plan, band, head, learn, optimum, panels, row, save, shown, sized, ticks
from sharing_text import ABOUT_CONVERGENCE, ABOUT_GRIDS
from torch import Tensor

from envs import Gridworld, Wireless, base, optimal
from envs.wireless import WirelessState

LEARNERS: dict[str, dict[str, Any]] = {
    "interpolated": {},
    "cells, a mode per dimension": {"features": "cells"},
    "cells, one joint mode": {"state_modes": "joint"},
}


def grids(plan: Plan) -> list[str]:
    """Gaps against the number of points and of actions."""
    marks = plan.pick((5000, 25000), (10, 20))
    sizes, actions = plan.pick((8, 16, 32, 64), (4,)), plan.pick((5, 10, 20), (3,))
    names, length = list(LEARNERS), plan.pick(100, 10)
    gaps: dict[tuple[str, int, int], list[np.ndarray]] = {}
    for number in actions:
        for size in sizes:
            family = sized(size, number, length)
            best = optimum(family, family.sample_tasks()).mean()
            for name in names:
                # Every row of the joint mode moves at every update.
                seeds = plan.seeds(4 if name == names[-1] and size > 32 else 8)
                found = learn(plan, family, marks, seeds, rank=30, **LEARNERS[name])
                gaps[name, size, number] = [best - mark.mean for mark in found]
    figure, axes = panels(2, len(actions))
    table = head("actions", "points", "entries of Q per task", "samples", *names)
    for column, number in enumerate(actions):
        for line, mark in enumerate(marks):
            axis = axes[line, column]
            for name, style in zip(names, ("-", "--", ":"), strict=True):
                values = [np.maximum(gaps[name, size, number][line], 0.3) for size in sizes]
                band(axis, sizes, values, name, linestyle=style)
            for size in sizes:
                cells = [shown(gaps[name, size, number][line], 1) for name in names]
                table.append(row(number, f"{size} × {size}", f"{size * size * number:,}", f"{mark:,}", *cells))
            axis.set(xscale="log", yscale="log", ylim=(0.8, 1000), xlabel="points per dimension",
                     ylabel="optimum − return", title=f"{number} actions, {mark:,} samples")  # fmt: skip
            ticks(axis, sizes)
    save(figure, axes[0, 0], plan, "grids")
    return [
        ABOUT_GRIDS, "", "![Gap against the number of points](sharing-grids.png)", "", *table,
    ]  # fmt: skip


def discounted(env: Wireless, task: Any, gamma: float, num_gains: int = 16, rounds: int = 250) -> tuple[Tensor, Tensor]:
    """V* of a transmitter by value iteration, (gains, 2, queue, battery), and the gains.

        V(s) = maxₐ E[ r(s, a) + γ V(s′) ]

    On the grid of `envs.optimal.wireless`, whose return is undiscounted and of a finite horizon.
    """
    queues, batteries = 21, 41
    gains, transition = optimal._gain_chain(env, num_gains, torch.device("cpu"))
    shape = (num_gains, 2, queues, batteries)
    evenly = [torch.linspace(0, env.capacity, size, dtype=torch.float64) for size in (queues, batteries)]
    axes = torch.meshgrid(gains, torch.arange(2.0, dtype=torch.float64), *evenly, indexing="ij")
    gain, occupied, queue, battery = (axis.reshape(1, 1, -1) for axis in axes)
    none = torch.zeros_like(gain)
    state, backups = WirelessState(gain.sqrt(), none, occupied, queue, battery, none.int()), []
    for action in range(env.num_actions):
        reward, ahead = torch.zeros(shape, dtype=torch.float64), []
        for probability, harvested, arrived in optimal._outcomes(task):
            uniforms = torch.stack([none, none, none, none + (not harvested), none + (not arrived)], dim=-1)
            after, gained, _, _ = env.step(task, state, none.long() + action, uniforms)
            share = probability[0] * probability[1]
            reward += share * gained.view(shape)
            q, q_weight = optimal._interpolation(after.queue.view(num_gains, -1), 0.0, env.capacity, queues)
            b, b_weight = optimal._interpolation(after.battery.view(num_gains, -1), 0.0, env.capacity, batteries)
            for up, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (q_weight if up else 1 - q_weight) * (b_weight if right else 1 - b_weight)
                ahead.append(((q + up) * batteries + b + right, share * weight))
        backups.append((reward.float(), ahead))
    value, p = torch.zeros(shape), env.occupied_probability
    for _ in range(rounds):
        following = (transition @ ((1 - p) * value[:, 0] + p * value[:, 1]).flatten(1)).contiguous()
        futures = [sum(weight * following.gather(1, index) for index, weight in ahead) for _, ahead in backups]
        value = torch.stack(
            [reward + gamma * future.view(shape) for (reward, _), future in zip(backups, futures, strict=True)]
        ).amax(0)
    return value, gains


def value_at(value: Tensor, gains: Tensor, observation: Tensor, capacity: float) -> Tensor:
    """V* at observations (…, 4) of one task: linear between the points, and along the gain between their means."""
    gain, occupied, queue, battery = observation.double().unbind(-1)
    left = (torch.searchsorted(gains, gain.contiguous()) - 1).clamp(0, len(gains) - 2)
    weights = [((gain - gains[left]) / (gains[left + 1] - gains[left])).clamp(0.0, 1.0)]
    corners = [left]
    for x, size in ((queue, value.shape[2]), (battery, value.shape[3])):
        place, weight = optimal._interpolation(x, 0.0, capacity, size)
        corners.append(place)
        weights.append(weight.double())
    found = torch.zeros_like(gain)
    for corner in range(8):
        bits = [corner >> bit & 1 for bit in range(3)]
        share = math.prod(weight if bit else 1 - weight for weight, bit in zip(weights, bits, strict=True))
        g, q, b = (place + bit for place, bit in zip(corners, bits, strict=True))
        found += share * value[g, occupied.long(), q, b]
    return found


def behaviour(mark: Mark, length: int, epsilon: float = 0.1) -> Iterator[tuple[WirelessState, Tensor]]:
    """Every fifth state of the ε-greedy policy of runs, (seeds, tasks, 16), and the action taken there."""
    rollout, generator = mark.rollout, torch.Generator().manual_seed(0)
    env, size = rollout.env, (len(rollout.seeds), rollout.num_tasks, 16)
    state = env.reset(rollout.tasks, torch.rand(*size, env.num_reset_uniforms, generator=generator))
    for step in range(length):
        values = rollout.learner.action_values(mark.policy, rollout.index(state))
        random = torch.randint(env.num_actions, size, generator=generator)
        action = torch.where(torch.rand(size, generator=generator) < epsilon, random, values.argmax(-1))
        if step % 5 == 4:
            yield state, action
        state = env.step(rollout.tasks, state, action, torch.rand(*size, env.num_step_uniforms, generator=generator))[0]


def visited(mark: Mark, length: int) -> Tensor:
    """Observations of the ε-greedy policy of runs, (seeds, tasks, states, 4)."""
    return torch.cat([mark.rollout.env.observe(state) for state, _ in behaviour(mark, length)], dim=2)


def chance(mark: Mark, length: int, values: list[tuple[Tensor, Tensor]], copies: int = 16) -> float:
    """The TD error that V* itself has: root of the mean variance of r + γ V*(s′) given state and action."""
    rollout, generator, found = mark.rollout, torch.Generator().manual_seed(1), []
    for state, action in behaviour(mark, length):
        again = type(state)(*(field.repeat_interleave(copies, 2) for field in state))
        uniforms = torch.rand(*again.queue.shape, rollout.env.num_step_uniforms, generator=generator)
        after, reward, _, _ = rollout.env.step(rollout.tasks, again, action.repeat_interleave(copies, 2), uniforms)
        seen = rollout.env.observe(after)
        ahead = torch.stack([value_at(*one, seen[:, m], rollout.env.capacity) for m, one in enumerate(values)], dim=1)
        found.append((reward + rollout.gamma * ahead).unflatten(2, (-1, copies)).var(-1).mean())
    return float(torch.stack(found).mean().sqrt())


def anywhere(mark: Mark, env: Wireless, count: int) -> Tensor:
    """Observations spread over the stationary gains, occupancy, queue and battery, (seeds, tasks, states, 4)."""
    points = torch.tensor(base.spread(count, (0.0,) * 4, (1.0,) * 4))
    gain, occupied = -env.snr * torch.log1p(-points[:, :1]), points[:, 1:2] < env.occupied_probability
    seen = torch.cat([gain, occupied.to(gain), env.capacity * points[:, 2:]], dim=1)
    return seen.expand(len(mark.rollout.seeds), mark.rollout.num_tasks, -1, -1)


def convergence(plan: Plan) -> list[str]:
    """TD errors and distances to the true values, with learning rates that stay and that decay."""
    figure, axes = panels(2, 3)
    lines = [*gridworld(plan, axes[0]), "", *wireless(plan, axes[1])]
    for axis in (axes[0, 0], axes[1, 0]):
        axis.legend(fontsize="x-small")
    figure.savefig(plan.out / "sharing-convergence.png", dpi=110)
    return [
        ABOUT_CONVERGENCE, "", "![TD errors and distances to the true values](sharing-convergence.png)", "", *lines,
    ]  # fmt: skip


def gridworld(plan: Plan, axes: Any) -> list[str]:
    """Distances to Q* in closed form."""
    family = Gridworld(episode_length=plan.pick(50, 10))
    marks = plan.pick((1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000), (40, 80))
    table = head("gridworld", "rank", "samples per task", "TD error", "RMS of Q − Q*", "largest error", "return")
    tried = {"η constant (preset)": {}, "η halves by 5,000": {"learning_rate_half_life": 5000.0}}
    for name, changes in tried.items():
        for rank in plan.pick((10, 30), (2,)):
            found = learn(plan, family, marks, plan.seeds(8), rank=rank, **changes)
            true = family.optimal_action_values(found[0].rollout.tasks, found[0].rollout.gamma)
            goals = [(int(task.goal_row), int(task.goal_column)) for task in family.sample_tasks(len(true))]
            keep = torch.ones(true.shape[:3], dtype=torch.bool)
            for task, (at_row, at_column) in enumerate(goals):
                keep[task, at_row, at_column] = False
            errors, largest = [], []
            for mark in found:
                tensors = [mark.rollout.learner.to_qtensor(mark.policy, run) for run in range(len(mark.returns))]
                apart = torch.stack([tensor.dense().movedim(-1, 0) - true for tensor in tensors])[:, keep]
                errors.append(apart.square().mean((1, 2)).sqrt().numpy())
                largest.append(apart.abs().amax((1, 2)).numpy())
                table.append(row(name, rank, f"{mark.samples:,}", shown(np.sqrt(mark.squared_error.mean(1)), 3),
                                 shown(errors[-1], 3), shown(largest[-1], 3), shown(mark.mean, 2)))  # fmt: skip
            draw(axes, found, errors, largest, f"{name}, rank {rank}", "-" if "constant" in name else "--")
    for axis, what in zip(axes, ("TD error", "RMS of Q − Q*", "largest error"), strict=True):
        axis.set(title=f"gridworld, {what}")
    return table


def draw(axes: Any, found: list[Mark], first: list[Any], second: list[Any], label: str, style: str) -> None:
    """One run's TD error and two distances over its samples."""
    columns = [[np.sqrt(mark.squared_error.mean(1)) for mark in found], first, second]
    for axis, values in zip(axes, columns, strict=True):
        band(axis, [mark.samples for mark in found], values, label, linestyle=style)
        axis.set(xscale="log", yscale="log", xlabel="samples per task")


def wireless(plan: Plan, axes: Any) -> list[str]:
    """Distances of max Q to V* of the discounted problem."""
    family = plan.family("wireless")
    marks = plan.pick((1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000), (20, 40))
    table = head("wireless", "rank", "samples per task", "TD error", "RMS on visited states", "mean of max Q − V*",
                 "RMS anywhere", "return")  # fmt: skip
    tried = {"η constant": {"learning_rate_half_life": None}, "η halves by 5,000 (preset)": {}}
    values: list[tuple[Tensor, Tensor]] = []
    for name, changes in tried.items():
        for rank in plan.pick((16, 60), (2,)):
            found = learn(plan, family, marks, plan.seeds(8), rank=rank, epsilon_end=0.1, **changes)
            tasks, gamma = family.sample_tasks(), found[0].rollout.gamma
            size = plan.pick({}, {"num_gains": 4, "rounds": 5})
            values = values or [discounted(family, base.stack_tasks([task]), gamma, **size) for task in tasks]
            last = found[-1]
            states = {"visited": visited(last, family.episode_length), "anywhere": anywhere(last, family, 1000)}
            true = {
                where: torch.stack([value_at(*values[m], seen[:, m], family.capacity) for m in range(len(tasks))], 1)
                for where, seen in states.items()
            }
            near: dict[str, list[np.ndarray]] = {"visited": [], "anywhere": [], "mean": []}
            for mark in found:
                for where, seen in states.items():
                    rollout = mark.rollout
                    best = rollout.learner.action_values(mark.policy, rollout.grid.index(seen.float())).amax(-1)
                    apart = best - true[where]
                    near[where].append(apart.square().mean((1, 2)).sqrt().numpy())
                    if where == "visited":
                        near["mean"].append(apart.mean((1, 2)).numpy())
                cells = [shown(near[key][-1], 2) for key in ("visited", "mean", "anywhere")]
                table.append(row(name, rank, f"{mark.samples:,}", shown(np.sqrt(mark.squared_error.mean(1)), 3), *cells,
                                 shown(mark.mean)))  # fmt: skip
            style = "-" if "constant" in name else "--"
            draw(axes, found, near["visited"], near["anywhere"], f"{name}, rank {rank}", style)
    for axis, what in zip(axes, ("TD error", "RMS on visited states", "RMS anywhere"), strict=True):
        axis.set(title=f"wireless, {what}")
    noise = chance(found[-1], family.episode_length, values)
    spread = torch.cat([value.flatten() for value, _ in values])
    return [f"V* of wireless (γ of the run) is {spread.mean():.0f} on average over the grid of all tasks, standard "
            f"deviation {spread.std():.0f}; its own TD error, the chance of what follows, is {noise:.2f} under the "
            "policy learnt at last.", "", *table]  # fmt: skip
