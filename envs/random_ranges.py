"""Ranges of observations that a space leaves unbounded, from a random run."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from .spaces import flat

_WIDER = 0.25
"""Of the range that a random run sees, on each side: a policy that has learnt goes further."""


def observations(env: gymnasium.Env, space: Any, seed: int, steps: int) -> list[Any]:
    """Observations of an environment under random actions, start by start, the same each time."""
    rows, ended = [], True
    env.action_space.seed(seed)
    for step in range(steps):
        if ended:
            rows.append(flat(space, env.reset(seed=step)[0]))
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append(flat(space, observation))
        ended = terminated or truncated
    return rows


def widened(column: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of some numbers, and a quarter of what lies between beyond each."""
    low, high = float(column.min()), float(column.max())
    margin = _WIDER * (high - low)
    return low - margin, high + margin
