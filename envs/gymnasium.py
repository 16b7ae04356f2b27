"""Gymnasium view of the environments: one task, one copy, NumPy in and out."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from . import base
from .gridworld import Gridworld
from .pendulum import Pendulum
from .storage import Storage
from .wireless import Wireless

IDS = {
    "torchq/Pendulum-v0": Pendulum,
    "torchq/Wireless-v0": Wireless,
    "torchq/Gridworld-v0": Gridworld,
    "torchq/Storage-v0": Storage,
}


class SingleTaskEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One task of a family as a Gymnasium environment.

    Observation: Box of the raw state, float32. Action: Discrete. The time limit is the environment's own
    `episode_length`, reported as `truncated`.

    Args:
        env: the batched environment.
        task: number of one of the family's default tasks, or a parameters dataclass of your own.
        render_mode: only None.

    Raises:
        ValueError: if there is no task of that number, or a render mode is asked for.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Any, task: Any = 0, render_mode: str | None = None) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode: expected None, got {render_mode!r}; these environments draw nothing")
        if isinstance(task, int):
            available = env.sample_tasks()
            if not 0 <= task < len(available):
                raise ValueError(f"task: expected a number from 0 to {len(available) - 1}, got {task}")
            task = available[task]
        self.batched_env, self.task, self.render_mode = env, task, render_mode
        self._tasks = base.stack_tasks([task])
        self._state: Any = None
        low, high = (np.array(bound, dtype=np.float32) for bound in (env.observation_low, env.observation_high))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Discrete(env.num_actions)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start of an episode; `seed` seeds the generator of this environment."""
        super().reset(seed=seed)
        self._state = self.batched_env.reset(self._tasks, self._uniforms(self.batched_env.num_reset_uniforms))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step() before reset(): call reset() first")
        self._state, reward, terminated, truncated = self.batched_env.step(
            self._tasks,
            self._state,
            torch.full((1, 1, 1), int(action)),
            self._uniforms(self.batched_env.num_step_uniforms),
        )
        return self._observation(), float(reward), bool(terminated), bool(truncated), {}

    def _uniforms(self, count: int) -> torch.Tensor:
        return torch.from_numpy(self.np_random.random((1, 1, 1, count)))

    def _observation(self) -> np.ndarray:
        observation = self.batched_env.observe(self._state).reshape(-1).numpy().astype(np.float32)
        return np.clip(observation, self.observation_space.low, self.observation_space.high)  # type: ignore[attr-defined]


def make(family: str, task: Any = 0, render_mode: str | None = None, **constants: Any) -> SingleTaskEnv:
    """Entry point of the registered ids; further arguments are constants of the family, such as `num_actions`."""
    return SingleTaskEnv(IDS[family](**constants), task, render_mode)


def register() -> None:
    """Register all ids with Gymnasium; twice does no harm."""
    for name in IDS:
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=f"{__name__}:make", kwargs={"family": name})
