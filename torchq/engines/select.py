"""The engine of a run: the one asked for, or the fastest that works, tried for two steps before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from torchq.engines import compiled, graph
from torchq.engines.contract import Batch, Engine, Rates, RunState, Statistics, UnavailableError
from torchq.engines.cpu.engine import CppEngine
from torchq.engines.eager import Stepwise
from torchq.engines.external import ExternalEngine, ExternalEnvironment
from torchq.engines.gpu import engine as gpu
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.tree import flatten

_LARGEST_TRIAL = 50_000_000
"""Numbers of the largest batch that is tried: eager mode needs them all in memory."""
_TRIAL_RATE = 0.1
_TOLERANCE = 1e-2
_SECONDS_WORTH = {"fused": 4.0, "graph": 10.0, "compile": 10.0, "external": 90.0}
"""Of eager mode, from which on an engine is worth its compiler."""
_SECONDS_PER_STEP, _SECONDS_PER_NUMBER = 1e-3, {"cpu": 1e-8, "cuda": 1e-10}
"""Of eager mode, roughly: what a step costs whatever its size, and what each number of its largest product adds."""


class Selection(NamedTuple):
    """An engine, and why faster ones were passed over."""

    engine: Engine
    passed_over: dict[str, str]


def build(rollout: Rollout, name: str) -> Engine:
    """An engine by its name.

    Raises:
        UnavailableError: if it does not run here, or not this run.
    """
    on_gpu = rollout.device.type == "cuda"
    builders: dict[str, Callable[[Rollout], Engine]] = {
        "fused": gpu.triton_engine if on_gpu else CppEngine, "graph": graph.GraphEngine, "compile": compiled.compiled,
        "eager": Stepwise, "external": ExternalEngine,
    }  # fmt: skip
    return builders[name](rollout)


def select(
    asked: str, rollout: Rollout, batch: Batch, state: RunState, num_steps: int, too_large: Mapping[str, str],
    whole: Rollout | None = None,
) -> Selection:  # fmt: skip
    """The engine asked for; with "auto" eager mode for short runs, else the first that works of the faster ones.

    Args:
        asked: "auto" or the name of an engine.
        rollout: what is trained.
        batch: who plays first.
        state: at the start, for this batch.
        num_steps: steps of the run.
        too_large: engines that need more memory than there is, and what to do about it.
        whole: of the whole run, where this is a part of it: all parts choose alike.

    Raises:
        UsageError: if the engine asked for does not work.
    """
    faster = ("fused", "graph", "compile") if rollout.device.type == "cuda" else ("fused", "compile")
    names: tuple[str, ...] = (asked,)
    if isinstance(rollout.env, ExternalEnvironment):
        return _outside(asked, rollout, batch, num_steps)
    if asked == "auto":
        seconds = _eager_seconds(whole or rollout, batch, num_steps)
        names = (*(name for name in faster if seconds > _SECONDS_WORTH[name]), "eager")
        if names == ("eager",) and "eager" in too_large:
            names = (*faster, "eager")
    passed_over: dict[str, str] = {}
    for name in names:
        try:
            if name in too_large:
                raise UnavailableError(too_large[name])
            return Selection(_trusted(name, rollout, batch, state), passed_over)
        except UnavailableError as error:
            passed_over[name] = str(error)
    if asked != "auto":
        raise UsageError(f"`engine`: {asked} does not work here ({passed_over[asked]}); use auto")
    others = (f"engine {name} passed over: {reason}" for name, reason in passed_over.items() if name != "eager")
    raise UsageError("; ".join([too_large["eager"], *others]))


def _outside(asked: str, rollout: Rollout, batch: Batch, num_steps: int) -> Selection:
    """The engine of environments outside of PyTorch; what learns is compiled where a run is long enough."""
    if not batch.whole:
        raise UsageError("`protocol`: expected batched with `env=gym:ID`, whose tasks play together, got online")
    if asked not in ("auto", "external", "compile"):
        raise UsageError(f"`engine`: expected auto, external or compile with `env=gym:ID`, got {asked}")
    passed_over: dict[str, str] = {}
    long = _eager_seconds(rollout, batch, num_steps) > _SECONDS_WORTH["external"]
    if asked == "compile" or (asked == "auto" and long):
        try:
            return Selection(compiled.compiled_outside(rollout), passed_over)
        except UnavailableError as error:
            if asked == "compile":
                raise UsageError(f"`engine`: compile does not work here ({error}); use auto") from error
            passed_over["compile"] = str(error)
    return Selection(ExternalEngine(rollout), passed_over)


def _numbers_of_a_step(rollout: Rollout, batch: Batch) -> int:
    """Size of the largest product of a step in eager mode: a row for each action of each transition."""
    again = rollout.replay.batch if rollout.replay else 0
    tasks = rollout.num_tasks if batch.whole else 1
    transitions = len(rollout.seeds) * tasks * (rollout.num_envs + again)
    return transitions * rollout.env.num_actions * getattr(rollout.learner, "rank", 1)


def _eager_seconds(rollout: Rollout, batch: Batch, num_steps: int) -> float:
    """Roughly how long a run would take in eager mode."""
    per_number = _SECONDS_PER_NUMBER.get(rollout.device.type, 0.0)
    each = _SECONDS_PER_STEP + per_number * _numbers_of_a_step(rollout, batch)
    return num_steps * rollout.updates_per_step * each


def _trusted(name: str, rollout: Rollout, batch: Batch, state: RunState) -> Engine:
    """An engine that takes the first steps as eager mode does, where that is small enough to be tried.

    Raises:
        UnavailableError: if it does not.
    """
    engine = build(rollout, name)
    if name != "eager" and _numbers_of_a_step(rollout, batch) <= _LARGEST_TRIAL:
        try:
            found = disagreement(engine, rollout, batch, state)
        except Exception as error:  # Whatever a compiler or driver raises, another engine does without it.
            raise UnavailableError(str(error).strip().partition("\n")[0] or type(error).__name__) from error
        if found:
            raise UnavailableError(found)
    return engine


@torch.no_grad()
def disagreement(engine: Engine, rollout: Rollout, batch: Batch, state: RunState) -> str | None:
    """How an engine's first steps differ from those of eager mode, in one line; None if they do not.

    The first is greedy, the second explores: programs of torch 2.11 took no greedy action right on a CPU. What counts
    is how much they *change*, tensor by tensor, at a rate that moves every factor: an engine that does nothing is off
    by all of it.
    """
    nothing = Statistics.zeros(len(rollout.seeds), len(batch.task_index), rollout.device, rollout.dtype)
    before = state._replace(statistics=nothing, replay=())
    epsilon = torch.tensor([0.0, 1.0], device=rollout.device, dtype=rollout.dtype)
    rates = Rates(epsilon, torch.full_like(epsilon, _TRIAL_RATE))
    expected, found = (
        flatten(tried.train(batch, before._replace(replay=rollout.empty_memory(rollout.num_envs)), rates, 0))
        for tried in (Stepwise(rollout), engine)
    )
    before = before._replace(replay=rollout.empty_memory(rollout.num_envs))
    for name, start in flatten(before).items():
        ours, theirs = found[name].double(), expected[name].double()
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        error = torch.linalg.vector_norm(torch.where(same, 0.0, ours - theirs))
        change = torch.linalg.vector_norm(torch.where(same & ~theirs.isfinite(), 0.0, theirs - start.double()))
        resolution = torch.finfo(rollout.dtype).eps * torch.linalg.vector_norm(start.double().nan_to_num())
        if not error <= _TOLERANCE * change + 8 * resolution:
            return f"its first steps differ from those of eager mode in {name}"
    return None
