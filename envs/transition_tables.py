"""Optimal returns of environments that publish their transitions, as those of Gymnasium's toy_text do.

`env.unwrapped.P[state][action]` lists (probability, next state, reward, terminated), and `initial_state_distrib` the
probability of each state at the start.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_STEPS = 1000
"""Random steps that a table is held against."""
_STARTS = 1000
"""Resets that give the distribution of starts where an environment does not publish it."""


def optimal_return(env: Any, horizon: int) -> float | None:
    """Expected undiscounted return of an optimal policy over one episode; None where there is no table.

        V_T = 0,   V_t(s) = maxₐ Σ P(s′ | s, a) (r + V_{t+1}(s′))                    (backward induction; Bellman 1957)

    Args:
        env: of Gymnasium, with observations of Discrete.
        horizon: T, steps until an episode is truncated.
    """
    table = getattr(env.unwrapped, "P", None)
    if not isinstance(table, dict | list) or not (
        hasattr(env.observation_space, "n") and hasattr(env.action_space, "n")
    ):
        return None
    num_states, num_actions = int(env.observation_space.n), int(env.action_space.n)
    try:
        if not _is_followed(env, table):
            return None
    except (KeyError, IndexError, TypeError, ValueError):  # A table of another form.
        return None
    outcomes = [
        (state * num_actions + action, *outcome)
        for state in range(num_states)
        for action in range(num_actions)
        for outcome in table[state][action]
    ]
    pair, probability, following, reward, terminated = (np.array(column) for column in zip(*outcomes, strict=True))
    following, goes_on = following.astype(int), probability * (1.0 - terminated)
    expected = np.bincount(pair, probability * reward, num_states * num_actions)
    value = np.zeros(num_states)
    for _ in range(horizon):
        future = np.bincount(pair, goes_on * value[following], num_states * num_actions)
        value = (expected + future).reshape(num_states, num_actions).max(1)
    return float(_starts(env, num_states) @ value)


def _is_followed(env: Any, table: Any) -> bool:
    """Whether random steps are among the outcomes that the table says: not so where a wrapper changes rewards."""
    if getattr(env.unwrapped, "fickle_passenger", False):  # Of Taxi, which its table leaves out.
        return False
    env.action_space.seed(0)
    state, ended = 0, True
    for number in range(_STEPS):
        if ended:
            state = int(env.reset(seed=number)[0])
        action = int(env.action_space.sample())
        landed, reward, terminated, truncated, _ = env.step(action)
        said = [(int(there), float(gain), bool(over)) for _, there, gain, over in table[state][action]]
        if (int(landed), float(reward), bool(terminated)) not in said:
            return False
        state, ended = int(landed), terminated or truncated
    return True


def _starts(env: Any, num_states: int) -> np.ndarray:
    """Probability of each state at the start."""
    published = getattr(env.unwrapped, "initial_state_distrib", None)
    if published is not None:
        return np.asarray(published, dtype=np.float64) / np.sum(published)
    first = [int(env.reset(seed=seed)[0]) for seed in range(_STARTS)]
    return np.bincount(first, minlength=num_states) / _STARTS
