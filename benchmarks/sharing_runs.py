"""Runs of `benchmarks/sharing.py`: what a run has learnt by some samples, families made for its questions, pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs import Pendulum, Wireless, base, pendulum
from torchq.engines.rollout import Rollout
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq.runs.optimum import optimal_returns

COLOURS = {"stlrq": "C0", "lrq": "C1", "clrq": "C2"}


@dataclass(frozen=True)
class Plan:
    """How much to run: in full, or just enough to see that every question runs."""

    out: Path
    """Folder of the page and its pictures."""
    quick: bool = False
    first_seed: int = 100
    most_seeds: int = 16

    def seeds(self, count: int) -> range:
        """Seeds of so many runs at most."""
        return range(self.first_seed, self.first_seed + min(count, self.most_seeds))

    def pick(self, full: Any, quick: Any) -> Any:
        """What to run of the two."""
        return quick if self.quick else full

    def family(self, name: str) -> Any:
        """A family of the package, with short episodes in a quick run."""
        made = {"pendulum": Pendulum, "wireless": Wireless, "odd": OddPendulum}[name]
        return made(episode_length=10) if self.quick else made()


class Mark(NamedTuple):
    """What runs had learnt by a number of samples per task."""

    samples: int
    returns: np.ndarray
    """Mean over greedy test episodes, (seeds, tasks)."""
    squared_error: np.ndarray
    """Mean squared TD error of the transitions since the mark before, (seeds, tasks)."""
    policy: Any
    """What is tested and kept."""
    rollout: Rollout

    @property
    def mean(self) -> np.ndarray:
        """Mean return over tasks, (seeds,)."""
        return self.returns.mean(1)


def learn(
    plan: Plan,
    family: Any,
    marks: Sequence[int],
    seeds: range,
    start: Callable[..., Any] | None = None,
    **changes: Any,
) -> list[Mark]:
    """Play runs of the default protocol up to each mark, in samples per task, and test them there."""
    tests = plan.pick({"pendulum": 8, "wireless": 64}.get(family.name, 8), 1)
    given = {"algo": "stlrq", "num_seeds": len(seeds), "seed": seeds.start, "device": "cpu", "optimal": False,
             "eval_episodes": tests, "engine": plan.pick("fused", "eager")} | changes  # fmt: skip
    config = resolve(given.pop("algo"), family.name, "default", given)
    a_round = family.episode_length * config.num_envs
    rounds = [max(1, round(mark / a_round)) for mark in marks]
    run = prepare(config.replace(episodes=rounds[-1], eval_every=1), family, start)
    state, played, found = run.initial_state, 0, []
    for goal in rounds:
        before, evaluations = played, []
        part = dataclasses.replace(run, config=run.config.replace(eval_every=goal, episodes=goal))  # One test, at goal.
        while played < goal:
            count = min(run.longest_block, goal - played)
            state, evaluations = part.play_block(state, played, count)
            played += count
        errors = evaluations[-1].statistics.squared_error.numpy() / ((played - before) * family.episode_length)
        policy = run.rollout.learner.policy(state.learner)
        found.append(Mark(played * a_round, evaluations[-1].returns.numpy(), errors, policy, run.rollout))
    return found


def optimum(family: Any, tasks: list[Any]) -> np.ndarray:
    """Optimal return of each task."""
    return np.array(optimal_returns(family, tasks, torch.device("cpu")))


def named(tasks: list[Any]) -> tuple[dict[str, float], ...]:
    """Tasks as a configuration names them."""
    return tuple({name: float(value) for name, value in vars(task).items()} for task in tasks)


def quartiles(values: Any) -> np.ndarray:
    """Lower quartile, median and upper quartile over the first axis."""
    return np.percentile(np.asarray(values, dtype=float), [25, 50, 75], axis=0)


def shown(values: Any, digits: int = 0) -> str:
    """Median and quartiles of one number per run."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(*cells: Any) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells: str) -> list[str]:
    """The head of a Markdown table."""
    return [row(*cells), "|---" * len(cells) + "|"]


def panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A picture of several panels, (rows, columns)."""
    figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def band(axis: Any, x: Sequence[float], values: Sequence[Any], label: str, **style: Any) -> None:
    """A line of medians over runs, and their quartiles around it; one array of runs for each x."""
    low, middle, high = np.array([quartiles(one) for one in values]).T
    (line,) = axis.plot(x, middle, label=label, marker="o", markersize=3, **style)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def save(figure: Figure, axis: Any, plan: Plan, name: str) -> None:
    """Write a picture, with the legend of one of its panels below all."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize="small")
    figure.savefig(plan.out / f"sharing-{name}.png", dpi=110)


def ticks(axis: Any, values: Sequence[int]) -> None:
    """Just these marks along a logarithmic axis."""
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)


@dataclass(frozen=True)
class OddTask(pendulum.PendulumTask):
    """A pendulum that may differ in kind, or many of them as tensors shaped (tasks, 1)."""

    torque_sign: float | Tensor = 1.0
    """−1 where the motor is the other way round."""
    hanging: float | Tensor = 0.0
    """1 where the goal is to hang still, not to stand."""
    scale: float | Tensor = 1.0
    """Factor of the reward."""


@dataclass(frozen=True)
class OddPendulum(Pendulum):
    """Pendulums some of which differ in kind: u ← sign · u, r = −scale · (wrap(θ − π·hanging)² + 0.1 θ̇² + 0.1 u²)."""

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[pendulum.PendulumTask]:
        """The pendulums of the family, none of them odd."""
        return [OddTask(task.mass, task.length) for task in Pendulum.sample_tasks(num_tasks)]

    def step(
        self, tasks: Any, state: pendulum.PendulumState, action: Tensor, uniforms: Tensor
    ) -> tuple[pendulum.PendulumState, Tensor, Tensor, Tensor]:
        """One step of dt seconds; uses no random numbers."""
        theta, theta_dot, elapsed = state
        torque = self.torque(action, theta.dtype)
        off = torch.remainder(theta + math.pi * tasks.hanging + math.pi, 2.0 * math.pi) - math.pi
        cost = off * off + self.speed_weight * theta_dot * theta_dot + self.control_weight * torque * torque
        push = 3.0 * tasks.torque_sign * torque / (tasks.mass * tasks.length * tasks.length)
        theta_dot = theta_dot + (1.5 * self.gravity / tasks.length * torch.sin(theta) + push) * self.dt
        theta_dot = theta_dot.clamp(-self.max_speed, self.max_speed)
        theta = torch.remainder(theta + theta_dot * self.dt + math.pi, 2.0 * math.pi) - math.pi
        after, reward = pendulum.PendulumState(theta, theta_dot, elapsed + 1), -tasks.scale * cost
        return after, reward, base.never(reward), after.elapsed >= self.episode_length


def with_own_components(shared: int, own: int) -> Callable[..., Any]:
    """How to start a run of task modes "product" so that each task has components that no other has.

        Q(s, a, m) = Σ_{k shared} … + Σ_{k of m} …

    The rows of a task's mass and of its length, both its own, are zero in the components of others: the gradient of
    each is a multiple of the other, so both stay there.

    Args:
        shared: components of all tasks.
        own: components of each task; the rank is shared + own · tasks.
    """

    def start(config: Any, rollout: Any, cold: Any) -> Any:
        numbers = torch.arange(shared + own * rollout.num_tasks)
        owner = torch.div(numbers - shared, own, rounding_mode="floor")
        factors = [factor.clone() for factor in cold.factors]
        for mode in (0, 1):
            for task, place in enumerate(cold.task_places[mode].tolist()):
                factors[mode][:, 0, place] *= (numbers < shared) | (owner == task)
        return rollout.learner.start(cold, tuple(factors))

    return start


def sized(points: int, actions: int, episode_length: int) -> Pendulum:
    """The pendulums on a state grid of points × points, with so many torques."""
    fine = {
        "grid_sizes": (points, points),
        "dimensions": tuple(dataclasses.replace(one, points=points) for one in Pendulum.dimensions),
    }
    return type("SizedPendulum", (Pendulum,), fine)(num_actions=actions, episode_length=episode_length)
