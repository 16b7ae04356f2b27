"""New tasks from a run of others: its tensor with rows of their own, and what these start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.checkpoint import load_checkpoint
from torchq.config import Config
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.lowrank import task_modes
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.presets import resolve
from torchq.runs.folder import read_config
from torchq.runs.tasks import TaskSet, coordinates, places, shown, task_set, values

_SHARED = ("env", "features", "state_modes", "rank", "gamma", "dtype")
"""Settings that are those of the source."""
_KEPT = ("seed", "num_seeds")
"""Settings that are those of the source unless given."""


class Source(NamedTuple):
    """A run to adapt from."""

    config: Config
    tasks: TaskSet
    factors: list[Tensor]
    """Of what it tests, the target tensor where there is one: task modes, states, actions."""


def adapted_config(given: Mapping[str, Any]) -> Config:
    """Configuration of a run that adapts another to new tasks.

    Raises:
        UsageError: if that cannot be read, is not of `stlrq`, or what is given contradicts it.
    """
    source = _source_config(given["adapt_from"])
    if given.get("algo", "stlrq") != "stlrq":
        raise UsageError(f"`algo`: expected stlrq with `adapt_from`, got {given['algo']}")
    for name in _SHARED:
        stored = getattr(source, name)
        if given.get(name, stored) != stored:
            came = f"got {given[name]}"
            raise UsageError(f"`{name}`: expected {stored}, as in the run to adapt from, {came}; leave it out")
    if given.get("task_modes", "table") != "table":
        raise UsageError(f"`task_modes`: expected table with `adapt_from`, got {given['task_modes']}")
    if not given.get("tasks") and not given.get("num_tasks"):
        raise UsageError("`tasks`: expected new tasks with `adapt_from`, such as mass=0.3,length=0.7, got none")
    rest = {name: value for name, value in given.items() if name not in ("algo", "env", "preset")}
    inherited = {name: getattr(source, name) for name in (*_SHARED[1:], *_KEPT)}
    return resolve("stlrq", source.env, given.get("preset", "default"), {**inherited, **rest})


def read_source(folder: Path, env: Any) -> Source:
    """What a run has learnt.

    Raises:
        UsageError: if it holds no checkpoint.
    """
    config = _source_config(str(folder))
    loaded = load_checkpoint(folder / "checkpoint", config.algo)
    if loaded is None:
        raise UsageError(f"`adapt_from`: {folder} holds no checkpoint; let its run finish first")
    tensors = loaded[0]
    kind = "target" if "learner.target.0" in tensors else "factors"
    count = sum(name.startswith(f"learner.{kind}.") for name in tensors)
    return Source(config, task_set(config, env), [tensors[f"learner.{kind}.{mode}"] for mode in range(count)])


def start_adapted(config: Config, rollout: Rollout, cold: LowRankState) -> LowRankState:
    """The learner's state with what tasks share from `adapt_from`, and rows for the new tasks.

    With task modes, which know every task of the family, a row is that of the task's parameters; else that of the
    nearest known task. Run s starts from the source's run number s modulo its runs.
    """
    source = read_source(Path(str(config.adapt_from)), rollout.env)
    learner, tasks = rollout.learner, task_set(config, rollout.env).tasks
    assert isinstance(learner, LowRankQ)
    rows, shared = new_rows(source, tasks, rollout.env)
    factors = [rows, *shared]
    for mode, (factor, expected) in enumerate(zip(factors, cold.factors, strict=True)):
        if factor.shape[1:] != expected.shape[1:]:
            came = f"got {tuple(factor.shape[1:])} of mode {mode}"
            raise UsageError(f"`adapt_from`: expected factors of {tuple(expected.shape[1:])}, {came}; adapt with the "
                             "version of the family that the run was trained on")  # fmt: skip
    picked = [factor[rollout.seeds.cpu() % len(factor)].to(rollout.seeds.device) for factor in factors]
    return learner.start(cold, tuple(picked))


def new_rows(source: Source, tasks: list[Any], env: Any) -> tuple[Tensor, list[Tensor]]:
    """Rows for tasks by their parameters, (seeds, 1, tasks, rank), and the factors that tasks share."""
    modes = source.tasks.modes
    if modes is None:
        return source.factors[0][:, :, nearest(source.tasks.tasks, tasks, env)], source.factors[1:]
    own, dtype = len(modes.modes), source.factors[0].dtype
    return task_modes.compose(source.factors[:own], places(modes, tasks, "cpu", dtype)), source.factors[own:]


def nearest(known: list[Any], tasks: list[Any], env: Any) -> Tensor:
    """Number of the known task nearest to each task, parameters counted in spans of the known ones."""
    there, here = coordinates(env, known), coordinates(env, tasks)
    span = (there.amax(0) - there.amin(0)).clamp_min(1e-12)
    return torch.cdist(here / span, there / span).argmin(-1)


def about(config: Config, env: Any, tasks: list[Any]) -> list[str]:
    """What a user should know of the tasks that a run is adapted to: those beyond what it was trained on."""
    modes = read_source(Path(str(config.adapt_from)), env).tasks.modes
    if modes is None:
        return []
    beyond = [(shown(task), modes.unknown(values(task))) for task in tasks]
    return [
        f"task {text} lies beyond what {config.adapt_from} was trained on: extrapolates, with {', '.join(names)} taken "
        "at the nearest end or value"
        for text, names in beyond
        if names
    ]


def _source_config(folder: str) -> Config:
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"`adapt_from`: expected a run folder, but {path} does not exist")
    config = read_config(path)
    if config.algo != "stlrq":
        raise UsageError(f"`adapt_from`: expected a run of stlrq, got one of {config.algo}")
    return config
