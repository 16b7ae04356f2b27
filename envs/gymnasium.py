"""The families as Gymnasium's environments: one copy of one task, NumPy in and out; `vector_env` has many at once.

    gymnasium.make("torchq/Pendulum-v0", task={"mass": 0.3, "length": 0.7})
    gymnasium.make_vec("torchq/Pendulum-v0", num_envs=1024, vectorization_mode="vector_entry_point")

Importing `envs` registers the ids; Gymnasium does it by itself where they are written "envs:torchq/Pendulum-v0".
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch

from . import base, sketches

IDS = {
    "torchq/Pendulum-v0": "pendulum:Pendulum",
    "torchq/Wireless-v0": "wireless:Wireless",
    "torchq/Gridworld-v0": "gridworld:Gridworld",
    "torchq/CartPole-v0": "cartpole:CartPole",
    "torchq/MountainCar-v0": "mountain_car:MountainCar",
    "torchq/Acrobot-v0": "acrobot:Acrobot",
    "torchq/Storage-v0": "storage:Storage",
    "torchq/DampedPendulum-v0": "damped_pendulum:DampedPendulum",
    "torchq/LinearQuadratic-v0": "linear_quadratic:LinearQuadratic",
    "torchq/UprightPendulum-v0": "upright:UprightPendulum",
}
FPS = 20
CONTROL = 10.0
"""Bound of a control of a family that does not say its `max_torque`."""


def family_of(name: str, **constants: Any) -> Any:
    """The family of an id, with other constants."""
    module, _, kind = IDS[name].partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), kind)(**constants)


def one_task(env: Any, task: Any) -> Any:
    """A parameters dataclass from the number of a default task, a mapping of parameters, or one itself.

    Raises:
        ValueError: if there is no such task.
    """
    available = env.sample_tasks()
    kind = type(available[0])
    if isinstance(task, Mapping):
        names = [field.name for field in dataclasses.fields(kind)]
        required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        if set(task) - set(names) or set(required) - set(task):
            raise ValueError(f"task: expected the parameters {', '.join(names)}, got {dict(task)}")
        try:
            numbers = {name: float(value) for name, value in task.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"task: expected numbers, got {dict(task)}") from error
        return _possible(env, kind(**numbers))
    if isinstance(task, int | np.integer) and not isinstance(task, bool):
        if not 0 <= task < len(available):
            raise ValueError(f"task: expected a number from 0 to {len(available) - 1}, got {task}")
        return available[int(task)]
    if not isinstance(task, kind):
        raise ValueError(f"task: expected a number, {kind.__name__} or a mapping of its parameters, got {task!r}")
    return _possible(env, task)


def _possible(env: Any, task: Any) -> Any:
    """A task whose parameters are finite, and above 0 where they count by orders of magnitude."""
    values = dataclasses.astuple(task)
    said = getattr(env, "parameters", ())
    signs = [one.kind == "log" or one.low > 0.0 for one in said] or [False] * len(values)
    for field, value, positive in zip(dataclasses.fields(task), values, signs, strict=True):
        if not np.isfinite(value) or (positive and value <= 0.0):
            expected = "a number above 0" if positive else "a number"
            raise ValueError(f"task: expected {expected} for {field.name}, got {value}")
    return task


def observation_box(env: Any, tasks: list[Any], context: bool) -> gymnasium.spaces.Box:
    """Bounds of the observation, and of the parameters of the task behind it where they are observed too."""
    state = env.reset(base.stack_tasks(tasks[:1]), torch.zeros(1, 1, 1, env.num_reset_uniforms))
    count = env.observe(state).shape[-1]
    low = list(getattr(env, "observation_low", (-np.inf,) * count))
    high = list(getattr(env, "observation_high", (np.inf,) * count))
    if context:
        columns = list(zip(*map(dataclasses.astuple, tasks), strict=True))
        said = getattr(env, "parameters", None)
        low += [min(said[i].low, *column) if said else -np.inf for i, column in enumerate(columns)]
        high += [max(said[i].high, *column) if said else np.inf for i, column in enumerate(columns)]
    return gymnasium.spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32), dtype=np.float32)


def action_space_of(env: Any) -> gymnasium.spaces.Space[Any]:
    """Discrete, or a Box of one control in N·m or the like."""
    if not hasattr(env, "features"):
        return gymnasium.spaces.Discrete(env.num_actions)
    bound = float(getattr(env, "max_torque", CONTROL))
    return gymnasium.spaces.Box(-bound, bound, (1,), dtype=np.float32)


class SingleTaskEnv(gymnasium.Env[np.ndarray, Any]):
    """One task of a family as a Gymnasium environment.

    Observation: Box of the raw state, float32. Action: Discrete, or Box of a control.

    Args:
        env: the batched environment.
        task: number of one of the family's default tasks, its parameters by name, or a parameters dataclass.
        render_mode: "rgb_array", or None.
        context: whether the observation ends with the parameters of the task.
        own_limit: whether `truncated` follows the family's `episode_length`; not so for the registered ids, unless
            they are given a shorter one, for they have a limit that wrappers see, `max_episode_steps`.

    Raises:
        ValueError: if there is no such task, render mode, or, in `step`, action.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self, env: Any, task: Any = 0, render_mode: str | None = None, context: bool = False, own_limit: bool = True
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected rgb_array or None, got {render_mode!r}")
        self.batched_env, self.render_mode, self.context, self.own_limit = env, render_mode, context, own_limit
        self._choose(one_task(env, task))
        self._state: Any = None
        self.observation_space = observation_box(env, [self.task], context)
        self.action_space = action_space_of(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start of an episode; `seed` seeds the generator of this environment.

        Args:
            seed: None goes on with the generator as it is.
            options: {"task": another task} from this episode on.
        """
        super().reset(seed=seed)
        if unknown := set(options or {}) - {"task"}:
            raise ValueError(f"options: expected task alone, got {', '.join(map(str, unknown))}")
        if options:
            self._choose(one_task(self.batched_env, options["task"]))
        self._state = self.batched_env.reset(self._tasks, self._uniforms(self.batched_env.num_reset_uniforms))
        return self._observation(), {"task": dataclasses.asdict(self.task)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step() before reset(): call reset() first")
        self._state, reward, terminated, truncated = self.batched_env.step(
            self._tasks,
            self._state,
            self._checked(action),
            self._uniforms(self.batched_env.num_step_uniforms),
        )
        return self._observation(), float(reward), bool(terminated), bool(truncated) and self.own_limit, {}

    def render(self) -> np.ndarray | None:
        """The environment as it stands, (320, 320, 3), uint8."""
        if self.render_mode is None or self._state is None:
            return None
        seen = self.batched_env.observe(self._state).reshape(-1).tolist()
        return sketches.picture(self.batched_env, seen, self.task)

    def _choose(self, task: Any) -> None:
        self.task, self._tasks = task, base.stack_tasks([task])

    def _checked(self, action: Any) -> torch.Tensor:
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            number = np.asarray(action)
            if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() < self.action_space.n:
                raise ValueError(f"action: expected a whole number from 0 to {self.action_space.n - 1}, got {action!r}")
            return torch.full((1, 1, 1), int(number.item()))
        control = np.asarray(action, dtype=np.float64)
        bound = float(self.action_space.high[0])  # type: ignore[attr-defined]
        if control.size != 1 or not np.abs(control).max() <= bound * (1.0 + 1e-6):
            raise ValueError(f"action: expected one control between {-bound:g} and {bound:g}, got {action!r}")
        return torch.full((1, 1, 1), control.item(), dtype=torch.float64)

    def _uniforms(self, count: int) -> torch.Tensor:
        return torch.from_numpy(self.np_random.random((1, 1, 1, count)))

    def _observation(self) -> np.ndarray:
        box = self.observation_space
        assert isinstance(box, gymnasium.spaces.Box)
        observation = self.batched_env.observe(self._state).reshape(-1).numpy().astype(np.float32)
        seen = np.clip(observation, box.low[: len(observation)], box.high[: len(observation)])
        context = dataclasses.astuple(self.task) if self.context else ()
        return np.concatenate([seen, np.array(context, dtype=np.float32)])


def make(
    family: str,
    task: Any = 0,
    render_mode: str | None = None,
    context: bool = False,
    own_limit: bool = True,
    **constants: Any,
) -> SingleTaskEnv:
    """Entry point of the registered ids; further arguments are constants of the family, such as `num_actions`.

    Raises:
        ValueError: if they say an `episode_length` that the limit of an id would cut.
    """
    if not own_limit and (length := constants.get("episode_length")) is not None:
        if length > (most := family_of(family).episode_length):
            raise ValueError(f"episode_length: give max_episode_steps={length} in its place, for more than {most}")
        own_limit = True
    return SingleTaskEnv(family_of(family, **constants), task, render_mode, context, own_limit)


def register() -> None:
    """Register all ids with Gymnasium; twice does no harm."""
    for name in IDS:
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"{__name__}:make",
                vector_entry_point=f"{__package__}.vector_env:make",
                max_episode_steps=family_of(name).episode_length,
                kwargs={"family": name, "own_limit": False},
            )
