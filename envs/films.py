"""Episodes of an environment of Gymnasium as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from .spaces import Actions, flat


def film(
    env: gymnasium.Env, actions: Actions, act: Callable[[np.ndarray, int], int], seed: int, length: int
) -> Iterator[np.ndarray]:
    """The pictures of one episode, from its start to its end.

    Args:
        env: made with `render_mode="rgb_array"`.
        actions: from whole numbers to its actions.
        act: from an observation, (dimensions,), and the steps gone to the number of an action.
        seed: of the reset.
        length: steps at most.

    Raises:
        ValueError: if the environment gives no pictures.
    """
    seen, over = env.reset(seed=seed)[0], False
    for step in range(length + 1):
        picture: Any = env.render()
        if not isinstance(picture, np.ndarray):
            raise ValueError("expected pictures from render(), got none; make the environment with rgb_array")
        yield picture
        if over or step == length:
            return
        number = act(np.array(flat(env.observation_space, seen)), step)
        seen, _, terminated, truncated, _ = env.step(actions(np.array(np.unravel_index(number, actions.sizes))))
        over = terminated or truncated
