"""The (algo, env, preset) table of hyper-parameters, and the resolved configuration of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torchq.errors import UsageError

QUADRATIC_ALGOS = ("lmi-ql", "lmi-qli", "lspi")
LOW_RANK_ALGOS = ("stlrq", "lrq", "clrq")
ALGOS = (*LOW_RANK_ALGOS, "tabular", *QUADRATIC_ALGOS)
CONTROL_ENVS = ("damped-pendulum", "pendulum", "linear-quadratic")
"""Environments with continuous controls, for the quadratic learners."""
PRESETS = ("default", "paper")
ENGINES = ("auto", "eager", "compile", "graph", "fused")
LRQ_CONVENTIONS = ("paper", "matched-epsilon", "matched-epsilon-one-update")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers; written to config.json. Fields with a flag carry its help text."""

    algo: str
    env: str
    preset: str = "default"
    protocol: Literal["batched", "online"] = "batched"
    seed: int = 0
    num_seeds: int = 8
    num_envs: int = 4
    num_tasks: int | None = None
    episodes: int = 500
    rank: int = 30
    learning_rate: float = 0.02
    learning_rate_half_life: float | None = None
    gamma: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    epsilon_decay: float = 0.9999
    optimizer: str = "adamax"
    update: Literal["joint", "block"] = "joint"
    normalised: bool = False
    loss_scale: float = 1.0
    init_scale: float = 0.1
    state_modes: Literal["per-dimension", "joint"] = "per-dimension"
    task_weights: tuple[float, ...] = ()
    lrq_convention: str = "paper"
    eval_every: int = 1
    eval_episodes: int = 1
    dtype: str = "float32"
    device: str = "auto"
    engine: str = "auto"
    deterministic: bool = False
    optimal: bool | None = None
    sizes: tuple[int, ...] = (10, 15, 20, 30, 50, 100, 200, 500)
    penalty: Literal["trace", "data"] = "trace"
    constraint: Literal["dev", "tot"] = "dev"
    iterations: int = 20
    warm_start: str | None = None

    @property
    def num_sweeps(self) -> int:
        """Times that each transition is applied: 4 in two of the conventions of the paper's LR-Q."""
        repeated = self.algo == "lrq" and self.protocol == "online" and self.lrq_convention != LRQ_CONVENTIONS[2]
        return 4 if repeated else 1

    def epsilon_clock(self, num_tasks: int) -> int:
        """Ticks of the exploration clock per sample of each task: see `epsilon_decay`."""
        own = self.algo == "lrq" and self.lrq_convention == "paper"
        return 1 if self.protocol == "batched" or own else num_tasks


_BY_ENV: dict[str, dict[str, Any]] = {
    "pendulum": {
        "gamma": 0.99, "rank": 30, "episodes": 500, "learning_rate": 0.03, "learning_rate_half_life": 100_000.0,
        "epsilon_end": 0.1, "epsilon_decay": 0.9999, "eval_every": 5,
    },
    "wireless": {
        "gamma": 0.9, "rank": 50, "episodes": 125, "learning_rate": 0.04, "learning_rate_half_life": 30_000.0,
        "epsilon_end": 0.001, "epsilon_decay": 0.9997,
    },
    "gridworld": {"gamma": 0.95, "rank": 10, "episodes": 100, "init_scale": 0.3, "eval_episodes": 8},
}  # fmt: skip

_BY_ALGO: dict[str, dict[str, Any]] = {
    "tabular": {"learning_rate": 0.2},
    **{algo: {"num_seeds": 120, "num_envs": 1, "dtype": "float64", "engine": "eager"} for algo in QUADRATIC_ALGOS},
}

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
        UsageError: if the preset does not cover the environment, or flags contradict each other.
    """
    values = _BY_ENV.get(env, {})
    if preset == "paper":
        if env not in _PAPER_BY_ENV:
            raise UsageError(f"--preset: expected default for --env {env} (paper covers {', '.join(_PAPER_BY_ENV)})")
        values = {**values, **_PAPER, **_PAPER_BY_ENV[env]}
    values = {**values, **_BY_ALGO.get(algo, {}), **overrides}
    config = Config(algo=algo, env=env, preset=preset, **values)
    if "eval_every" not in overrides:
        config = dataclasses.replace(config, eval_every=min(config.eval_every, config.episodes))
    _check(config, overrides)
    return config


def _check(config: Config, overrides: dict[str, Any]) -> None:
    quadratic = config.algo in QUADRATIC_ALGOS
    for name in overrides:
        own = name in ("sizes", "penalty", "constraint", "iterations")
        common = name in ("seed", "num_seeds", "num_tasks", "device", "warm_start")
        if not common and own != quadratic:
            expected = f"--algo {', '.join(QUADRATIC_ALGOS if own else ALGOS[:4])}"
            raise UsageError(f"--{name.replace('_', '-')}: expected only with {expected}, got --algo {config.algo}")
    if config.warm_start and config.algo not in (*LOW_RANK_ALGOS, "lmi-qli"):
        raise UsageError(f"--warm-start: expected only with {', '.join(LOW_RANK_ALGOS)} or lmi-qli, got {config.algo}")
    if config.warm_start and config.env != "pendulum" and config.algo == "lmi-qli":
        raise UsageError(f"--warm-start: expected --env pendulum, which low-rank learners know too, got {config.env}")
    if quadratic:
        if config.preset != "default" or config.env not in CONTROL_ENVS:
            envs = ", ".join(CONTROL_ENVS)
            raise UsageError(f"--env, --preset: expected one of {envs}, and default, with --algo {config.algo}")
        return
    if config.env in CONTROL_ENVS and config.env not in _BY_ENV:
        raise UsageError(f"--env: expected {', '.join(_BY_ENV)} with --algo {config.algo}, got {config.env}")
    if config.protocol == "online" and config.num_envs != 1:
        raise UsageError(f"--num-envs: expected 1 with --preset paper (tasks take turns), got {config.num_envs}")
    if "lrq_convention" in overrides and not (config.algo == "lrq" and config.protocol == "online"):
        raise UsageError("--lrq-convention: expected only with --algo lrq --preset paper")
    if config.eval_every > config.episodes:
        raise UsageError(f"--eval-every: expected at most --episodes {config.episodes}, got {config.eval_every}")
    if config.algo == "tabular":
        unused = {"rank", "optimizer", "update", "normalised", "init_scale", "task_weights", "state_modes"}
        for name in unused & set(overrides):
            raise UsageError(f"--{name.replace('_', '-')}: expected only with a low-rank algo, got --algo tabular")


def to_json(config: Config) -> dict[str, Any]:
    """The configuration as JSON types."""
    return {**dataclasses.asdict(config), "task_weights": list(config.task_weights), "sizes": list(config.sizes)}


def from_json(values: dict[str, Any]) -> Config:
    """The configuration of a config.json; entries that are not hyper-parameters are ignored."""
    if not isinstance(values, dict):
        raise TypeError(f"expected a JSON object, got {values!r}")
    names = {field.name for field in dataclasses.fields(Config)}
    known: dict[str, Any] = {name: value for name, value in values.items() if name in names}
    lists: dict[str, Any] = {name: tuple(known[name]) for name in ("task_weights", "sizes") if name in known}
    return Config(**(known | lists))
