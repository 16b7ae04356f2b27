"""The flags of train.py: names, ranges, help texts and where their defaults come from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from torchq.config import ALGOS, ENGINES, LRQ_CONVENTIONS, PRESETS, resolve, table
from torchq.lowrank.optim import OPTIMIZERS
from torchq.philox import MAX_COUNT


class Name(click.ParamType):
    """One of some names; anything else is answered with the nearest of them."""

    name = "name"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, as `--help` shows them."""
        return "{" + ",".join(self.names) + "}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, or an error that suggests the nearest."""
        if value not in self.names:
            near = difflib.get_close_matches(str(value), self.names, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fail(f"expected one of {', '.join(self.names)}, got {value!r}{hint}", param, ctx)
        return str(value)


class Number(click.ParamType):
    """A number of a range, open or closed below."""

    def __init__(self, kind: type, low: float, high: float = float("inf"), *, low_open: bool = False) -> None:
        self.kind, self.low, self.high, self.low_open = kind, low, high, low_open
        self.name = "integer" if kind is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or an error that says the range."""
        above = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        expected = f"expected {'an integer' if self.kind is int else 'a number'} of {above}"
        if self.high != float("inf"):
            expected += f" and at most {self.high:,}" if self.kind is int else f" and at most {self.high:g}"
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f"{expected}, got {value!r}", param, ctx)
        if not math.isfinite(number) or not self.low <= number <= self.high or (self.low_open and number == self.low):
            self.fail(f"{expected}, got {value}", param, ctx)
        return number


class Numbers(click.ParamType):
    """Non-negative numbers separated by commas."""

    name = "x,y,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        one = Number(float, 0.0)
        return tuple(one.convert(part, param, ctx) for part in str(value).split(","))


class Sizes(click.ParamType):
    """Numbers of samples separated by commas, increasing."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The sizes as a tuple."""
        if isinstance(value, tuple):
            return value
        sizes = tuple(int(COUNT.convert(part, param, ctx)) for part in str(value).split(","))
        if list(sizes) != sorted(set(sizes)):
            self.fail(f"expected increasing sizes, got {value}", param, ctx)
        return sizes


COUNT = Number(int, 1, 1 << 31)
BATCH = Number(int, 1, 1 << 24)
POSITIVE = Number(float, 0.0, low_open=True)
SHARE = Number(float, 0.0, 1.0)

_FLAGS: list[tuple[str, click.ParamType, str]] = [
    ("seed", Number(int, 0, 2**62), "Seed of the first run; the others follow it."),
    ("num-seeds", BATCH, "Independent runs trained side by side."),
    ("num-envs", BATCH, "Environments per run and task."),
    ("num-tasks", BATCH, "Tasks: up to 4 are the paper's, more are spread over the family's range."),
    ("episodes", COUNT, "Episodes per task and environment; one that ends early starts again within its length."),
    ("rank", Number(int, 1, MAX_COUNT // 2), "Rank K of the Q-tensor."),
    ("learning-rate", POSITIVE, "Step size η at the start, per update."),
    ("learning-rate-half-life", POSITIVE, "Samples per task until η has halved (harmonic decay); unset: constant."),
    ("gamma", SHARE, "Discount γ per step."),
    ("epsilon-start", SHARE, "Exploration rate ε at the start."),
    ("epsilon-end", SHARE, "Floor of ε."),
    ("epsilon-decay", Number(float, 0.0, 1.0, low_open=True),
     "Factor of ε per sample of a task (preset paper: per transition of any task)."),
    ("optimizer", Name(tuple(OPTIMIZERS)), "Descent step on the factors."),
    ("update", Name(("joint", "block")), "Move all factors by one error, or one factor after the other."),
    ("init-scale", POSITIVE, "Standard deviation of the initial factors."),
    ("state-modes", Name(("per-dimension", "joint")), "One tensor mode per state dimension, or one for the state."),
    ("task-weights", Numbers(), "Weight λ of each task's loss; unset: all 1."),
    ("lrq-convention", Name(LRQ_CONVENTIONS), "How preset paper runs lrq."),
    ("sizes", Sizes(), "Data set sizes of the quadratic learners."),
    ("penalty", Name(("trace", "data")), "Matrix M of lmi-ql's penalty tr(MW): identity, or mean of φ⁺φ⁺ᵀ."),
    ("constraint", Name(("dev", "tot")), "What a quadratic learner keeps below zero: the deviation from V_b, or all."),
    ("iterations", COUNT, "Iterations of lmi-qli and lspi."),
    ("warm-start", click.Path(), "Run folder to start from: of a quadratic learner on the same --env, or of the same "
     "--algo; for lmi-qli, of a low-rank learner."),
    ("eval-every", COUNT, "Episodes between evaluations."),
    ("eval-episodes", BATCH, "Greedy test episodes per evaluation, run and task."),
    ("dtype", Name(("float32", "float64")), "Floating-point type of learner and environments."),
    ("device", Name(("auto", "cpu", "cuda")), "Where to compute; auto: the GPU if there is one."),
    ("engine", Name(ENGINES),
     "How to execute steps; auto: for long runs fused where that works, else compile, else eager."),
]  # fmt: skip


def _default(name: str, families: Sequence[str]) -> str:
    """Defaults of a flag in the table, as `--help` shows them."""
    values = {f"{env} {preset}": getattr(resolve("stlrq", env, preset, {}), name) for env, preset in table(families)}
    shown = {label: "unset" if value in (None, ()) else str(value) for label, value in values.items()}
    if len(set(shown.values())) == 1:
        return f"  [default: {next(iter(shown.values()))}]"
    groups: dict[str, list[str]] = {}
    for label, value in shown.items():
        groups.setdefault(value, []).append(label.removesuffix(" default"))
    return "  [default: " + "; ".join(f"{value} ({', '.join(labels)})" for value, labels in groups.items()) + "]"


def options(families: Sequence[str]) -> list[click.Parameter]:
    """All options; those in the table of presets have no default of their own."""
    named = [
        click.Option(["--algo"], type=Name(ALGOS), help="Method to train. Required, but for --resume."),
        click.Option(["--env"], type=Name(families),
                     help="Family of environments.  [default: pendulum; damped-pendulum for lmi-ql, lmi-qli and lspi]"),
        click.Option(["--preset"], type=Name(PRESETS),
                     help="paper: the authors' online protocol.  [default: default, the batched protocol]"),
    ]  # fmt: skip
    tabled = [
        click.Option([f"--{flag}"], type=kind, help=text + _default(flag.replace("-", "_"), families))
        for flag, kind, text in _FLAGS
    ]
    return [
        *named,
        *tabled,
        click.Option(["--normalised/--no-normalised"], default=None,
                     help="Divide each step by the squared length of its direction (NLMS).  [default: no]"),
        click.Option(["--deterministic/--no-deterministic"], default=None,
                     help="Sums in a fixed order on a GPU too: the same bytes twice.  [default: no; CPUs always do]"),
        click.Option(["--optimal/--no-optimal"], default=None,
                     help="Compute the optimum of each task, where it is known.  [default: up to 16 tasks]"),
        click.Option(["--out"], type=click.Path(path_type=Path), help="Run folder.  [default: runs/ALGO-ENV-N]"),
        click.Option(["--resume"], is_flag=True,
                     help="Go on with the run in --out, with its configuration; more --episodes extend it."),
        click.Option(["--progress/--no-progress"], default=None, help="Progress bar.  [default: on a terminal]"),
    ]  # fmt: skip
