"""The (algo, env, preset) table of hyper-parameters, and the configuration that flags make of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchq.config import PRESETS, Config, scope, validated
from torchq.errors import UsageError
from torchq.methods import LOW_RANK_ALGOS, QUADRATIC_ALGOS

# Of every family that has no line of its own below, too.
_REPLAY: dict[str, Any] = {
    "features": "linear", "num_envs": 1, "replay_ratio": 2, "replay_batch": 16, "replay_capacity": 50_000,
    "replay_recent": 0.5, "target_rate": 0.005, "optimizer": "adam", "learning_rate": 0.01,
    "learning_rate_half_life": 10_000.0, "epsilon_end": 0.01, "epsilon_decay": 0.998,
}  # fmt: skip
_BY_ENV: dict[str, dict[str, Any]] = {
    "pendulum": {
        **_REPLAY, "gamma": 0.99, "rank": 30, "episodes": 1000, "eval_every": 10,
    },
    "wireless": {
        **_REPLAY, "gamma": 0.97, "rank": 16, "episodes": 500, "epsilon_end": 0.001, "eval_every": 5,
        "init_scale": 0.2, "target_rate": 0.003, "learning_rate_half_life": 5_000.0,
    },
    # Of environments of Gymnasium, whatever they are: steps are dear, so that fewer runs learn side by side.
    "gym": {
        **_REPLAY, "gamma": 0.99, "rank": 30, "episodes": 200, "eval_every": 10, "eval_episodes": 5, "num_seeds": 4,
        "learning_rate": 0.005, "replay_recent": 1.0,
    },
    "storage": {
        **_REPLAY, "gamma": 0.99, "rank": 60, "episodes": 600, "epsilon_end": 0.05, "eval_every": 10,
        "learning_rate_half_life": 2_000.0,
    },
    "gridworld": {"gamma": 0.95, "rank": 10, "episodes": 100, "init_scale": 0.3, "eval_episodes": 8},
    # A pole that stays up soon fills the latest half with states alike: it is balanced by what it did before, too.
    "cartpole": {
        **_REPLAY, "gamma": 0.99, "rank": 30, "episodes": 300, "eval_every": 3, "learning_rate": 0.003,
        "epsilon_end": 0.2, "replay_recent": 1.0, "replay_capacity": 100_000,
    },
    "mountain-car": {**_REPLAY, "gamma": 0.99, "rank": 40, "episodes": 500, "eval_every": 5},
    "acrobot": {
        **_REPLAY, "gamma": 0.99, "rank": 80, "episodes": 200, "eval_every": 2, "epsilon_end": 0.05,
        "replay_recent": 1.0,
    },
}  # fmt: skip

# Tables learn as they did before replay: it is the yardstick below.
_TABULAR: dict[str, dict[str, Any]] = {
    "pendulum": {
        "gamma": 0.99, "episodes": 500, "learning_rate_half_life": 100_000.0, "epsilon_end": 0.1,
        "epsilon_decay": 0.9999, "eval_every": 5,
    },
    "wireless": {
        "gamma": 0.9, "episodes": 125, "learning_rate_half_life": 30_000.0, "epsilon_end": 0.001,
        "epsilon_decay": 0.9997,
    },
    "cartpole": {"gamma": 0.99, "episodes": 300, "eval_every": 3},
    "mountain-car": {"gamma": 0.99, "episodes": 500, "eval_every": 5},
    "acrobot": {"gamma": 0.99, "episodes": 200, "eval_every": 2},
}  # fmt: skip

_BY_ALGO: dict[str, dict[str, Any]] = {
    "tabular": {"learning_rate": 0.2},
    **{algo: {"num_seeds": 120, "num_envs": 1, "dtype": "float64", "engine": "eager"} for algo in QUADRATIC_ALGOS},
}

# Of runs that adapt others to new tasks: some 2,000 samples, behaving well from the first.
_ADAPT: dict[str, Any] = {"epsilon_start": 0.1, "epsilon_end": 0.1, "episodes": 20, "eval_every": 1}
_ADAPT_BY_ENV: dict[str, dict[str, Any]] = {
    "pendulum": {"epsilon_start": 0.02, "epsilon_end": 0.02}, "wireless": {"episodes": 10},
}  # fmt: skip
_FIT: dict[str, Any] = {
    "fit": "least-squares", "replay_ratio": 1, "replay_batch": 1, "replay_recent": 1.0, "target_rate": None,
}  # fmt: skip

_PAPER: dict[str, Any] = {
    "protocol": "online",
    "num_seeds": 20,
    "num_envs": 1,
    "learning_rate": 0.01,
    "learning_rate_half_life": None,
    "update": "block",
    "loss_scale": 2.0,
    "eval_every": 1,
    "dtype": "float64",
}

_PAPER_BY_ENV: dict[str, dict[str, Any]] = {
    "pendulum": {"gamma": 0.99, "rank": 30, "episodes": 2000, "epsilon_end": 0.1, "epsilon_decay": 0.99999},
    "wireless": {"gamma": 0.9, "rank": 50, "episodes": 500, "epsilon_end": 0.001, "epsilon_decay": 0.9999},
}


def table(families: Iterable[str]) -> list[tuple[str, str]]:
    """The (env, preset) pairs that have hyper-parameters."""
    return [
        (env, preset)
        for preset in PRESETS
        for env in families
        if env in (_BY_ENV if preset == "default" else _PAPER_BY_ENV)
    ]


def resolve(algo: str, env: str, preset: str, overrides: dict[str, Any]) -> Config:
    """Configuration from the table, overridden by the flags given.

    Raises:
        UsageError: if a value is not as expected, the preset does not cover the environment, or flags contradict each
            other.
    """
    lines = {**_BY_ENV, **_TABULAR} if algo == "tabular" else _BY_ENV
    values = lines.get(
        env.partition(":")[0] if env.startswith("gym:") else env, _REPLAY if algo in LOW_RANK_ALGOS else {}
    )
    if preset == "paper":
        if env not in _PAPER_BY_ENV:
            raise UsageError(f"`preset`: expected default for `env={env}` (paper covers {', '.join(_PAPER_BY_ENV)})")
        values = {**_PAPER, **_PAPER_BY_ENV[env]}
    if "adapt_from" in overrides:
        by_steps = overrides.get("grow") or overrides.get("fit") == "semi-gradient"
        values = {**values, **_ADAPT, **_ADAPT_BY_ENV.get(env, {}), **({} if by_steps else _FIT)}
    values = {"algo": algo, "env": env, "preset": preset, **values, **_BY_ALGO.get(algo, {}), **overrides}
    if values.get("state_modes") == "joint" and "features" not in overrides:
        values["features"] = "cells"
    config = validated(values)
    if "eval_every" not in overrides:
        config = config.replace(eval_every=min(config.eval_every, config.episodes))
    _check(config, overrides)
    return config


def _check(config: Config, overrides: dict[str, Any]) -> None:
    for name in overrides:
        if config.algo not in scope(name).algos:
            raise UsageError(f"`{name}`: expected only with {scope(name).shown}, got `algo={config.algo}`")
    if config.algo in QUADRATIC_ALGOS:
        if config.preset != "default":
            raise UsageError(f"`preset`: expected default with `algo={config.algo}`, got {config.preset}")
        return
    if config.task_weights and not any(config.task_weights):
        raise UsageError("`task_weights`: expected one above 0 at least, got zeros: nothing would be learnt")
    if config.epsilon_end > config.epsilon_start and {"epsilon_start", "epsilon_end"} & set(overrides):
        raise UsageError(f"`epsilon_end`: expected at most `epsilon_start={config.epsilon_start}`, from which ε falls, "
                         f"got {config.epsilon_end}")  # fmt: skip
    if config.features == "linear" and config.state_modes == "joint":
        raise UsageError("`features`: expected cells with `state_modes=joint` (one row for each cell), got linear")
    if config.protocol == "online" and config.replay_ratio:
        raise UsageError(
            f"`replay_ratio`: expected 0 with `preset=paper` (tasks take turns), got {config.replay_ratio}"
        )
    for name in ("replay_batch", "replay_capacity", "replay_recent"):
        if name in overrides and not config.replay_ratio:
            raise UsageError(f"`{name}`: expected only with `replay_ratio` of at least 1, got 0")
    for name in ("grow", "fit", "data"):
        if name in overrides and config.adapt_from is None:
            raise UsageError(f"`{name}`: expected only with `adapt_from`")
    if config.fit == "least-squares" and (config.grow or not config.replay_ratio):
        wrong, came = ("grow", "it") if config.grow else ("replay_ratio", "0")
        expected = "none" if config.grow else "at least 1"
        raise UsageError(f"`{wrong}`: expected {expected} with `fit=least-squares`, which fits rows to what is stored, "
                         f"got {came}")  # fmt: skip
    if config.data is not None and config.fit != "least-squares":
        raise UsageError("`data`: expected only with `fit=least-squares`, which fits rows to it")
    if config.adapt_from is not None and config.warm_start is not None:
        raise UsageError("`warm_start`: expected none with `adapt_from`, which starts from another run too")
    if config.num_tasks and config.tasks and config.num_tasks != len(config.tasks):
        raise UsageError(f"`num_tasks`: expected none with `tasks`, which names {len(config.tasks)}; leave it out")
    apart = "held_out" if config.held_out else "test_tasks" if config.test_tasks else None
    asked = "task_modes" if config.task_modes != "table" else apart
    if config.protocol == "online" and asked:
        raise UsageError(f"`{asked}`: expected only with `preset=default` (with paper, tasks take turns)")
    if apart and config.algo == "stlrq" and config.task_modes == "table":
        raise UsageError(f"`{apart}`: expected `task_modes` product or linear, got table, which has no row for a task "
                         "that it never trains on")  # fmt: skip
    if config.protocol == "online" and config.num_envs != 1:
        raise UsageError(f"`num_envs`: expected 1 with `preset=paper` (tasks take turns), got {config.num_envs}")
    if "lrq_convention" in overrides and config.protocol != "online":
        raise UsageError(f"`lrq_convention`: expected only with {scope('lrq_convention').shown}")
    if config.eval_every > config.episodes:
        raise UsageError(f"`eval_every`: expected at most `episodes={config.episodes}`, got {config.eval_every}")
