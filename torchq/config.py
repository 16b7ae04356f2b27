"""The configuration of a run: every field with its range, its help text and the methods that it is for, once.

The flags of `train.py`, the checks of what Python passes and those of a config.json that is read again all follow from
the fields below; `presets` holds the values.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from torchq.config_fields import Shape, read_shape
from torchq.errors import UsageError
from torchq.methods import (
    BOUNDED,
    COMMON,
    CONVENTION,
    EVERY,
    GRID,
    HELD,
    ITERATED,
    LOW_RANK,
    QUADRATIC,
    RELAXED,
    STLRQ,
    WARM,
    Algo,
    Scope,
)
from torchq.philox import MAX_COUNT

Preset = Literal["default", "paper"]
Engine = Literal["auto", "eager", "compile", "graph", "fused", "external"]
Convention = Literal["paper", "matched-epsilon", "matched-epsilon-one-update"]
PRESETS, ENGINES = get_args(Preset), get_args(Engine)
NO_FLAG = "no flag"
"""Marks fields that presets decide."""

Count = Annotated[int, Field(ge=1, le=1 << 31)]
Many = Annotated[int, Field(ge=1, le=1 << 24)]
Size = Annotated[int, Field(ge=0, le=1 << 31)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _help(text: str) -> Any:
    return Field(description=text)


class Config(BaseModel):
    """Everything that decides a run's numbers; written to config.json."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    algo: Annotated[Algo, EVERY, NO_FLAG]
    env: Annotated[str, EVERY, NO_FLAG]
    preset: Annotated[Preset, EVERY, NO_FLAG] = "default"
    protocol: Annotated[Literal["batched", "online"], GRID, NO_FLAG] = "batched"
    seed: Annotated[int, EVERY, Field(ge=0, le=2**62), _help("Seed of the first run; the others follow it.")] = 0
    num_seeds: Annotated[Many, EVERY, _help("Independent runs trained side by side.")] = 8
    num_envs: Annotated[Many, GRID, _help("Environments per run and task.")] = 4
    num_tasks: Annotated[
        int | None, Field(ge=1, le=1 << 24), EVERY,
        _help("Tasks: up to 4 are the paper's, more are spread over the family's range."),
    ] = None  # fmt: skip
    tasks: Annotated[tuple[dict[str, float], ...], EVERY, NO_FLAG] = ()
    """Parameters of each task by name; () for those of `num_tasks`."""
    test_tasks: Annotated[tuple[dict[str, float], ...], COMMON, NO_FLAG] = ()
    """Parameters of tasks that are tested but never trained on."""
    env_option: Annotated[dict[str, Any], EVERY, NO_FLAG] = {}
    """Constants of the family by name, in JSON types."""
    task_modes: Annotated[
        Literal["table", "product", "linear"], STLRQ,
        _help("What a task is to the tensor: a row of its own, or a place along a mode for each of its parameters, "
              "with a row for each value or linear between points: then any task of the family has a Q-function."),
    ] = "table"  # fmt: skip
    held_out: Annotated[
        Share, COMMON, _help("Share of the tasks that are tested but never trained on.")
    ] = 0.0  # fmt: skip
    episodes: Annotated[
        Count, GRID,
        _help("Episodes per task and environment; one that ends early starts again within its length."),
    ] = 500  # fmt: skip
    rank: Annotated[
        int, LOW_RANK, Field(ge=1, le=MAX_COUNT // 2), _help("Rank K of the Q-tensor; auto: chosen by short pilots.")
    ] = 30
    learning_rate: Annotated[Positive, GRID, _help("Step size η at the start, per update.")] = 0.02
    learning_rate_half_life: Annotated[
        float | None, Field(gt=0), GRID,
        _help("Samples per task until η has halved (harmonic decay); unset: constant."),
    ] = None  # fmt: skip
    gamma: Annotated[Share, GRID, _help("Discount γ per step.")] = 0.99
    epsilon_start: Annotated[Share, GRID, _help("Exploration rate ε at the start.")] = 1.0
    epsilon_end: Annotated[Share, GRID, _help("Floor of ε.")] = 0.1
    epsilon_decay: Annotated[
        float, Field(gt=0, le=1), GRID,
        _help("Factor of ε per sample of a task (preset paper: per transition of any task)."),
    ] = 0.9999  # fmt: skip
    optimizer: Annotated[Literal["sgd", "adam", "adamax"], LOW_RANK, _help("Descent step on the factors.")] = "adamax"
    update: Annotated[
        Literal["joint", "block"], LOW_RANK,
        _help("Move all factors by one error, or one factor after the other."),
    ] = "joint"  # fmt: skip
    normalised: Annotated[
        bool, LOW_RANK, _help("Divide each step by the squared length of its direction (NLMS).")
    ] = False  # fmt: skip
    loss_scale: Annotated[Positive, LOW_RANK, NO_FLAG] = 1.0
    init_scale: Annotated[Positive, LOW_RANK, _help("Standard deviation of the initial factors.")] = 0.1
    state_modes: Annotated[
        Literal["per-dimension", "joint"], LOW_RANK,
        _help("One tensor mode per state dimension, or one for the state."),
    ] = "per-dimension"  # fmt: skip
    features: Annotated[
        Literal["cells", "linear"], GRID,
        _help("Rows of a state dimension's factor that an observation visits: the nearest, or the two around it."),
    ] = "cells"  # fmt: skip
    replay_ratio: Annotated[
        int, Field(ge=0, le=MAX_COUNT), GRID,
        _help("Updates at each step from its own transitions and stored ones; 0: one, from its own alone."),
    ] = 0  # fmt: skip
    replay_batch: Annotated[
        int, Field(ge=1, le=1 << 20), GRID, _help("Stored transitions of each task in such an update.")
    ] = 16  # fmt: skip
    replay_capacity: Annotated[
        Count, GRID, _help("Latest transitions of each run and task that are drawn again; less if memory is short.")
    ] = 20_000  # fmt: skip
    replay_recent: Annotated[
        float, Field(gt=0, le=1), GRID,
        _help("Share of all transitions so far that is drawn again: the latest (at least 1,000)."),
    ] = 1.0  # fmt: skip
    target_rate: Annotated[
        float | None, Field(ge=0, le=1), LOW_RANK,
        _help("Polyak step τ, per update, of a target tensor that gives the targets and is tested; 0: there is none."),
    ] = None  # fmt: skip
    task_weights: Annotated[
        tuple[Annotated[float, Field(ge=0)], ...], LOW_RANK, _help("Weight λ of each task's loss; unset: all 1.")
    ] = ()  # fmt: skip
    lrq_convention: Annotated[Convention, CONVENTION, _help("How preset paper runs lrq.")] = "paper"
    eval_every: Annotated[Count, GRID, _help("Episodes between evaluations.")] = 1
    eval_episodes: Annotated[Many, GRID, _help("Greedy test episodes per evaluation, run and task.")] = 1
    eval_tasks: Annotated[
        int | None, Field(ge=1, le=1000), GRID,
        _help("Tasks that are tested, a sample; unset: all up to 1,000, of more 256. As many of those held out."),
    ] = None  # fmt: skip
    dtype: Annotated[
        Literal["float32", "float64"], GRID, _help("Floating-point type of learner and environments.")
    ] = "float32"  # fmt: skip
    device: Annotated[
        Literal["auto", "cpu", "cuda", "meta"], EVERY, _help("Where to compute; auto: the GPU if there is one.")
    ] = "auto"  # fmt: skip
    engine: Annotated[
        Engine, GRID,
        _help("How to execute steps; auto: for long runs fused where that works, else compile, else eager."),
    ] = "auto"  # fmt: skip
    deterministic: Annotated[
        bool, GRID, _help("Sums in a fixed order on a GPU too, as CPUs always do: the same bytes twice.")
    ] = False  # fmt: skip
    shard: Annotated[
        Literal["auto", "seeds", "tasks"], GRID,
        _help("What the processes of torchrun share out; auto: seeds where these come out even, else tasks."),
    ] = "auto"  # fmt: skip
    optimal: Annotated[
        bool | None, GRID, _help("Compute the optimum of each task, where it is known; unset: up to 16 tasks.")
    ] = None  # fmt: skip
    sizes: Annotated[
        tuple[Size, ...], QUADRATIC, _help("Data set sizes of the quadratic learners; 0: what they begin with.")
    ] = (
        10, 15, 20, 30, 50, 100, 200, 500,
    )  # fmt: skip
    penalty: Annotated[
        Literal["trace", "data"], RELAXED, _help("Matrix M of lmi-ql's penalty tr(MW): identity, or mean of φ⁺φ⁺ᵀ.")
    ] = "trace"  # fmt: skip
    solver: Annotated[
        Literal["torchq", "clarabel"], BOUNDED, _help("Solver of the programs; clarabel: one by one, through CVXPY.")
    ] = "torchq"  # fmt: skip
    constraint: Annotated[
        Literal["dev", "tot"], BOUNDED,
        _help("What a quadratic learner keeps below zero: the deviation from V_b, or all."),
    ] = "dev"  # fmt: skip
    baseline: Annotated[
        Literal["lqr", "none"], QUADRATIC,
        _help("What quadratic learners begin with: the regulator of wrong parameters and its value, or none: zero."),
    ] = "lqr"  # fmt: skip
    hold: Annotated[
        Literal["all", "coupling"], HELD, _help("What lmi-qli holds of the next state's value: P, S and R, or S and R.")
    ] = "all"  # fmt: skip
    iterations: Annotated[Count, ITERATED, _help("Iterations of lmi-qli and lspi.")] = 20
    adapt_from: Annotated[
        str | None, STLRQ,
        _help("Run folder of `algo=stlrq` whose tensor new tasks start from; only their rows learn."),
    ] = None  # fmt: skip
    grow: Annotated[bool, STLRQ, _help("With `adapt_from`, let what tasks share learn too.")] = False
    fit: Annotated[
        Literal["least-squares", "semi-gradient"], STLRQ,
        _help("How the rows of new tasks learn: by a least-squares fit to all samples after each episode, or step by "
              "step as in training."),
    ] = "semi-gradient"  # fmt: skip
    data: Annotated[
        str | None, STLRQ, _help("With `adapt_from`, an .npz file of transitions to fit the rows to first.")
    ] = None  # fmt: skip
    warm_start: Annotated[
        str | None, WARM,
        _help("Run folder to start from: of a quadratic learner on the same `env`, or of the same `algo`; for lmi-qli, "
              "of a low-rank learner."),
    ] = None  # fmt: skip

    guide_margin: Annotated[
        float, Field(ge=0), LOW_RANK,
        _help("With `warm_start` from a quadratic run: reward by which leaving its policy must pay at first; 0: never "
              "follow it, start from its values instead."),
    ] = 6.0  # fmt: skip
    guide_samples: Annotated[
        Positive, LOW_RANK,
        _help("Samples per task after which leaving it need not pay any more (in what behaves after a quarter)."),
    ] = 8000.0  # fmt: skip
    samples_before: Annotated[int, Field(ge=0), LOW_RANK, NO_FLAG] = 0
    """Samples per task of the runs that this one started from, from which its rates go on."""

    @field_validator("sizes")
    @classmethod
    def _increase(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)) or not any(sizes):
            raise ValueError("expected increasing sizes, one above zero")
        return sizes

    @property
    def num_sweeps(self) -> int:
        """Times that each transition is applied: 4 in two of the conventions of the paper's LR-Q."""
        online_lrq = self.algo == "lrq" and self.protocol == "online"
        return 4 if online_lrq and self.lrq_convention != "matched-epsilon-one-update" else 1

    def epsilon_clock(self, num_tasks: int) -> int:
        """Ticks of the exploration clock per sample of each task: see `epsilon_decay`."""
        of_each_task = self.algo == "lrq" and self.lrq_convention == "paper"
        return 1 if self.protocol == "batched" or of_each_task else num_tasks

    def replace(self, **changes: Any) -> Config:
        """A copy with other values, checked.

        Raises:
            UsageError: naming the first that is not as expected.
        """
        return validated({**dict(self), **changes})


def shape(name: str) -> Shape:
    """What a field takes, read off its type and constraints."""
    field = Config.model_fields[name]
    return read_shape(field.annotation, field.metadata)


def scope(name: str) -> Scope:
    """The methods that a field is for."""
    return next(part for part in Config.model_fields[name].metadata if isinstance(part, Scope))


def flags() -> dict[str, str]:
    """Fields that the command line has a flag for, with their help texts."""
    fields = Config.model_fields.items()
    return {name: field.description or "" for name, field in fields if NO_FLAG not in field.metadata}


def validated(values: dict[str, Any]) -> Config:
    """A configuration of these values, by field.

    Raises:
        UsageError: one line about the first that is not as expected.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if name not in Config.model_fields:
            near = difflib.get_close_matches(name, Config.model_fields, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"`{name}`: there is no such setting{hint}") from None
        expected = "increasing sizes, one above zero" if first["type"] == "value_error" else shape(name)
        came = "nothing" if first["type"] == "missing" else repr(values[name])
        raise UsageError(f"`{name}`: expected {expected}, got {came}") from None


def to_json(config: Config) -> dict[str, Any]:
    """The configuration as JSON types."""
    return config.model_dump(mode="json")


def from_json(values: Any) -> Config:
    """The configuration of a config.json; entries that are not settings are ignored.

    Raises:
        UsageError: if it is none, or a value is not as expected.
    """
    if not isinstance(values, dict):
        raise UsageError(f"expected a JSON object, got {values!r}")
    known = {name: value for name, value in values.items() if name in Config.model_fields}
    return validated({name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
