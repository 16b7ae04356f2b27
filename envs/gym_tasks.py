"""A family of tasks out of environments of Gymnasium: a list of them, or one id with other parameters in each task."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from . import base, films, random_ranges, transition_tables
from .blame import where
from .building import REWARD_WEIGHTS, build, whole_keys
from .simulators import Making, Simulators
from .spaces import Actions, alike, axes

NO_LIMIT = 1000
"""Steps of an episode where the environment has no limit of its own."""
_RANDOM_STEPS, _LOOKED_AT = 2000, 16


class GymState(NamedTuple):
    """Where episodes stand, and how to get there again: reset with the seed, and repeat the actions."""

    observation: Tensor
    """(seeds, tasks, envs, dimensions); zeros until the environments have been started."""
    elapsed: Tensor
    """Steps since the reset, int32."""
    seed: Tensor
    """Of the reset, int64."""
    actions: Tensor
    """Since the reset, int32, (seeds, tasks, envs, episode_length)."""


class GymTasks:
    """Environments of Gymnasium as a family; they step in processes of their own, in `torchq`'s engine "external".

        GymTasks("CartPole-v1", tasks=[{"length": 0.25}, {"length": 1.0}])
        GymTasks([lambda: MyEnv(weight=1), lambda: MyEnv(weight=2)])

    Observations: the numbers of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple spaces in order. Actions:
    discrete ones, or levels of continuous ones; each axis of several is a mode of the Q-tensor (`action_sizes`).
    Episodes end where the environment says so, `terminated` and `truncated` apart.

    Args:
        source: an id, or what makes each task's environment, called without arguments.
        tasks: parameters of each task by name, see `envs.building`; for a list of environments names and values that
            tell them apart, or none.
        ranges: (low, high) of dimensions of the observation by name or number: those that the space leaves unbounded
            are taken from a short random run otherwise.
        points: between which a learner interpolates along a continuous dimension.
        levels: of each continuous action; None: 11 of one, 5 each of two, 3 each of more.
        episode_length: steps until an episode is truncated; None: the environment's own limit, or 1,000.
        workers: processes; None: as many as processors, 0: none.
        options: keyword arguments of all environments of the id.

    Raises:
        ValueError: if an environment cannot be made or used, spaces differ between tasks, or ranges name no dimension.
    """

    terminates = True
    num_reset_uniforms = 2
    num_step_uniforms = 0

    def __init__(
        self,
        source: str | Sequence[Callable[[], gymnasium.Env]],
        tasks: Sequence[Mapping[str, float]] = (),
        *,
        ranges: Mapping[str, Sequence[float]] | None = None,
        points: int = 12,
        levels: int | None = None,
        episode_length: int | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        if "max_episode_steps" in options:
            own = options.pop("max_episode_steps")
            episode_length = own if episode_length is None else episode_length
        self.source, self.options = source, {name: whole_keys(value) for name, value in options.items()}
        self._named = bool(tasks)
        self.given = [dict(task) for task in tasks] or [{"number": float(i)} for i in range(_count(source))]
        if not isinstance(source, str) and len(self.given) != len(source):
            raise ValueError(f"tasks: expected one for each of {len(source)} environments, got {len(self.given)}")
        if odd := [task for task in self.given if task.keys() != self.given[0].keys()]:
            raise ValueError(f"tasks: expected {', '.join(self.given[0])} of each, got {', '.join(odd[0]) or 'none'}")
        if not isinstance(source, str) and any(self.given.count(task) > 1 for task in self.given):
            raise ValueError("tasks: expected values that tell the environments apart, got some twice")
        if both := [name for name in self.given[0] if name in options]:
            raise ValueError(f"tasks: expected no constants among the parameters, got {both[0]} as both")
        self.task_type = dataclasses.make_dataclass("GymTask", [(name, float) for name in self.given[0]], frozen=True)
        self.name = source if isinstance(source, str) else "gym-tasks"
        if workers is not None and (not isinstance(workers, int) or workers < 0):
            raise ValueError(f"workers: expected a whole number of at least 0, got {workers!r}")
        if episode_length is not None and (not isinstance(episode_length, int) or episode_length < 1):
            raise ValueError(f"episode_length: expected a whole number of at least 1, got {episode_length!r}")
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        self.notes: list[str] = []
        self._limit = episode_length
        self.space: Any = None
        first = self._made(self.given[0])
        own = episode_length or getattr(first.spec, "max_episode_steps", None)
        if own is None:
            limit = f"{NO_LIMIT:,} steps count as an episode, in which what ends earlier starts again"
            self.notes.append(f"{self.name} says no time limit: {limit}; or give `env_option` episode_length=…")
        self.episode_length = self._limit = own or NO_LIMIT
        self.space, self.actions = first.observation_space, Actions(first.action_space, levels)
        self.num_actions, self.action_sizes = int(np.prod(self.actions.sizes)), self.actions.sizes
        self.axes = axes(self.space)
        first.close()
        for task in self._some_tasks()[1:]:
            self._made(task).close()  # With the same spaces, or it raises.
        self.ranges = self._bounds(ranges or {})
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points: expected an integer of at least 2, got {points!r}")
        self.dimensions = tuple(
            base.Dimension(axis.low, axis.high, int(axis.high - axis.low) + 1, "category")
            if axis.category
            else base.Dimension(*self.ranges[axis.name], points)
            for axis in self.axes
        )
        self.grid_low, self.grid_high = (tuple(getattr(d, end) for d in self.dimensions) for end in ("low", "high"))
        self.grid_sizes = tuple(dimension.points for dimension in self.dimensions)

    def __repr__(self) -> str:
        """What decides the optimum."""
        return f"GymTasks({self.name!r}, {self.options}, episode_length={self.episode_length})"

    @property
    def resolved(self) -> dict[str, Any]:
        """Arguments that give this family again, whatever a random run sees."""
        return {
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "episode_length": self.episode_length,
        }

    @property
    def action_levels(self) -> list[list[float]] | None:
        """What an environment is given for each action, by axis; None where it is their numbers."""
        return self.actions.levels

    def dimension_name(self, name: str) -> str:
        """The name of a dimension that is called by its name or number."""
        numbered = {str(number): known for number, known in enumerate(self.observation_names)}
        return name if name in numbered.values() else numbered.get(name, name)

    def sample_tasks(self, num_tasks: int | None = None) -> list[Any]:
        """The first tasks, or all.

        Raises:
            ValueError: if there are not so many.
        """
        if num_tasks is not None and num_tasks > len(self.given):
            raise ValueError(f"num_tasks: expected at most {len(self.given)}, as many as are given, got {num_tasks}")
        return [self.task_type(**task) for task in self.given[:num_tasks]]

    def reset(self, tasks: Any, uniforms: Tensor) -> GymState:
        """Episodes to be started, from uniforms shaped (seeds, tasks, envs, 2): two halves of a seed."""
        high, low = (torch.floor(uniforms[..., half].double() * (1 << 16)).long() for half in range(2))
        seed, dtype = high * (1 << 16) + low, base.dtype_of(tasks)
        return GymState(
            torch.zeros(*seed.shape, len(self.axes), device=seed.device, dtype=dtype),
            torch.zeros_like(seed, dtype=torch.int32),
            seed,
            torch.zeros(*seed.shape, self.episode_length, device=seed.device, dtype=torch.int32),
        )

    def observe(self, state: GymState) -> Tensor:
        """Observations as they are, (seeds, tasks, envs, dimensions)."""
        return state.observation

    def step(self, tasks: Any, state: GymState, action: Tensor, uniforms: Tensor) -> Any:
        """Not to be called: see `open`."""
        raise NotImplementedError("environments of Gymnasium step in processes of their own: open() them")

    def open(self, tasks: Sequence[Any], num_seeds: int, num_envs: int) -> Simulators:
        """Live environments, numbered as a batch (seeds, tasks, envs) in a row."""
        each = [self._making(self._nearest(vars(task))) for task in tasks]
        return Simulators([making for _ in range(num_seeds) for making in each for _ in range(num_envs)], self.workers)

    def _nearest(self, rounded: Mapping[str, float]) -> Mapping[str, float]:
        """The task that is given and differs from this one by its rounding alone; else this one."""
        known = (
            task for task in self.given
            if task.keys() == rounded.keys() and all(math.isclose(task[n], v, rel_tol=1e-5) for n, v in rounded.items())
        )  # fmt: skip
        return min(known, key=lambda task: sum(abs(task[n] - v) for n, v in rounded.items()), default=rounded)

    def optimal_returns(self, tasks: list[Any], device: torch.device | str = "cpu") -> list[float] | None:
        """Optimal returns of environments that publish their transitions, see `transition_tables`; else None."""
        found = []
        for task in tasks:
            env = self._made(vars(task))
            value = transition_tables.optimal_return(env, self.episode_length)
            env.close()
            if value is None:
                return None
            found.append(value)
        return found

    def film(self, task: Any, act: Callable[[np.ndarray, int], int], seed: int = 0) -> Iterator[np.ndarray]:
        """Pictures of an episode of a policy in one task, see `films`."""
        env = self._made(self._nearest(vars(task)), render_mode="rgb_array")
        yield from films.film(env, self.actions, act, seed, self.episode_length)
        env.close()

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Of the numbers of an observation."""
        return tuple(axis.name for axis in self.axes)

    def _making(self, parameters: Mapping[str, float]) -> Making:
        numbered = {name.rpartition("__")[2]: v for name, v in parameters.items() if name.startswith(REWARD_WEIGHTS)}
        if sorted(numbered) != sorted(map(str, range(len(numbered)))):
            expected = f"{REWARD_WEIGHTS}.0, {REWARD_WEIGHTS}.1 and so on, one for each reward"
            raise ValueError(f"tasks: expected {expected}, got {', '.join(parameters)}")
        weights = tuple(numbered[str(number)] for number in range(len(numbered)))
        words = ",".join(f"{name.replace('__', '.')}={value:.7g}" for name, value in parameters.items())
        return Making(f"task {words}", partial(self._made, parameters), self.actions, len(self.axes), weights)

    def _made(self, parameters: Mapping[str, float], **more: Any) -> gymnasium.Env:
        """The environment of a task; an id takes more options.

        Raises:
            ValueError: if it cannot be made, or has other spaces than the first.
        """
        try:
            if isinstance(self.source, str):
                named = parameters if self._named else {}
                env = build(self.source, named, {**self.options, **more}, self._limit)
            else:
                env = self.source[self.given.index(dict(parameters))]()
                env = env if self._limit is None else gymnasium.wrappers.TimeLimit(env, self._limit)
        except Exception as error:  # Whatever a user's environment raises.
            reason = str(error).strip().partition("\n")[0]
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(f"{self.name} cannot be made: {kind}{reason}") from error
        if self.space is not None:
            self._check_spaces(env, parameters)
        return env

    def _check_spaces(self, env: gymnasium.Env, parameters: Mapping[str, float]) -> None:
        pairs = {"observations": (self.space, env.observation_space), "actions": (self.actions.space, env.action_space)}
        for what, (ours, theirs) in pairs.items():
            if not alike(ours, theirs):
                expected = f"expected {what} of the same space in all tasks, {ours}"
                raise ValueError(f"{expected}, got {theirs} of {parameters}")

    def _bounds(self, given: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        """The range of each continuous dimension: given, the space's, or a random run's."""
        if not isinstance(given, Mapping):
            raise ValueError(f"ranges: expected a mapping such as {{'1': [-3, 3]}}, got {given!r}")
        for name, ends in given.items():
            if not (np.shape(ends) == (2,) and np.isfinite(ends).all() and ends[0] < ends[1]):
                raise ValueError(f"ranges: expected two finite numbers, low < high, of {name}, got {ends!r}")
        continuous = {axis.name: axis for axis in self.axes if not axis.category}
        named = {self.dimension_name(name): ends for name, ends in given.items()}
        if unknown := [name for name in named if name not in continuous]:
            raise ValueError(f"ranges: expected dimensions {', '.join(continuous)}, got {unknown[0]!r}")
        unbounded = [name for name, axis in continuous.items() if name not in named and not axis.bounded]
        seen = self._seen() if unbounded else np.zeros((1, len(self.axes)))
        for name in unbounded:
            low, high = random_ranges.widened(seen[:, self.axes.index(continuous[name])])
            self.notes.append(f"dimension {name} of {self.name} has no bounds: taken from a random run, {low:.4g} to "
                              f"{high:.4g}; or give `ranges` {name}=LOW:HIGH")  # fmt: skip
            named[name] = (low, high)
        pairs = {name: named.get(name, (axis.low, axis.high)) for name, axis in continuous.items()}
        return {name: (float(low), float(high) if high > low else low + 1.0) for name, (low, high) in pairs.items()}

    def _some_tasks(self) -> list[dict[str, float]]:
        """Evenly spread tasks, all if there are few: making an environment can take a while."""
        return self.given[:: -(-len(self.given) // _LOOKED_AT)]

    def _seen(self) -> np.ndarray:
        """Observations of random runs in some of the tasks, (steps, dimensions), the same each time."""
        chosen, rows = self._some_tasks(), []
        for number, task in enumerate(chosen):
            env = self._made(task)
            try:
                rows += random_ranges.observations(env, self.space, number, _RANDOM_STEPS // len(chosen))
            except Exception as error:  # Whatever a user's environment raises.
                reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                raise ValueError(f"{self.name} fails in a random run: {reason}{where(error)}") from error
            env.close()
            if not np.isfinite(rows[-1]).all():
                which = f"a random run of {task or 'it'}"
                raise ValueError(f"{self.name} gives observations that are not finite in {which}")
        return np.array(rows)


def _count(source: str | Sequence[Any]) -> int:
    if not isinstance(source, str) and not len(source):
        raise ValueError("source: expected an id or at least one environment, got none")
    return 1 if isinstance(source, str) else len(source)
