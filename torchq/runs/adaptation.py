"""New tasks from a run of others: its tensor with rows of their own, and what these start from."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq import families
from torchq.checkpoint import load_checkpoint
from torchq.config import Config
from torchq.engines.external import noisy
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.lowrank import cp, row_fit, task_modes
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState, kept_factors
from torchq.presets import resolve
from torchq.runs.folder import read_config
from torchq.runs.tasks import TaskSet, beyond, coordinates, places, task_set, values

_SHARED = ("env", "env_option", "features", "state_modes", "rank", "gamma", "dtype")
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
    if families.is_made(source.env) and not source.tasks:
        raise UsageError(f"`adapt_from`: expected a run with tasks that are named, got one of {source.env} without")
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
    return Source(config, task_set(config, env), kept_factors(loaded[0]))


def start_adapted(config: Config, rollout: Rollout, cold: LowRankState) -> LowRankState:
    """The learner's state with what tasks share from `adapt_from`, and rows for the new tasks.

    Run s starts from the source's run number s modulo its runs.
    """
    source = read_source(Path(str(config.adapt_from)), rollout.env)
    learner, tasks = rollout.learner, task_set(config, rollout.env).tasks
    assert isinstance(learner, LowRankQ)
    known, shared = known_rows(source)
    starts = torch.stack(start_rows(source, known, tasks, rollout.env), dim=1)  # (seeds, starts, tasks, rank)
    for mode, (factor, expected) in enumerate(zip([starts[:, :1], *shared], cold.factors, strict=True)):
        if factor.shape[1:] != expected.shape[1:]:
            came = f"got {tuple(factor.shape[1:])} of mode {mode}"
            raise UsageError(f"`adapt_from`: expected factors of {tuple(expected.shape[1:])}, {came}; adapt with the "
                             "version of the family that the run was trained on")  # fmt: skip
    picked = rollout.seeds.cpu() % len(known)
    starts, known, *shared = (one[picked].to(cold.factors[0]) for one in (starts, known, *shared))
    state = learner.start(cold, (starts[:, :1].contiguous(), *shared))
    if not cold.fit:
        return state
    fit = row_fit.begin(starts[:, : cold.fit.starts.shape[1]].contiguous(), known)
    if config.data is not None:
        fit = row_fit.begin(fitted_to(Path(config.data), rollout, state._replace(fit=fit)), known)
    return state._replace(factors=(fit.starts[:, :1].clone(), *shared), fit=fit)


def known_rows(source: Source) -> tuple[Tensor, list[Tensor]]:
    """Rows of the source's tasks, (seeds, known, rank), and the factors that tasks share."""
    modes = source.tasks.modes
    if modes is None:
        return source.factors[0][:, 0], source.factors[1:]
    return _composed(source, source.tasks.tasks), source.factors[len(modes.modes) :]


def start_rows(source: Source, known: Tensor, tasks: list[Any], env: Any, first_nearest: bool = False) -> list[Tensor]:
    """Rows to start from, likeliest first, (seeds, tasks, rank) each.

    With task modes, which know every task of the family, the first is that of the task's parameters. Then, the first
    two the other way round where steps are random, come that of the nearest known task and the mean of known rows,
    weighted by a Gauss kernel of 0.6 M^(−1/p) of the parameters' spans; then those of the next nearest tasks.

    Args:
        source: the run to adapt.
        known: its tasks' rows.
        tasks: new ones.
        env: the family.
        first_nearest: whether the nearest comes before the mean in any case.
    """
    distance = _distances(source.tasks.tasks, tasks, env)  # (tasks, known)
    order = distance.argsort(-1)
    near = [known[:, order[:, min(place, order.shape[1] - 1)]] for place in range(4)]
    width = 0.6 * len(source.tasks.tasks) ** (-1.0 / len(values(tasks[0])))
    kernel = torch.softmax(-0.5 * (distance / width).square(), dim=-1).to(known)
    mean = kernel @ known
    rows = [mean, near[0], *near[1:]] if noisy(env) and not first_nearest else [near[0], mean, *near[1:]]
    return rows if source.tasks.modes is None else [_composed(source, tasks), *rows]


def _composed(source: Source, tasks: list[Any]) -> Tensor:
    """Rows of tasks by their parameters, (seeds, tasks, rank), of a run with task modes."""
    modes = source.tasks.modes
    assert modes is not None
    own, dtype = len(modes.modes), source.factors[0].dtype
    return task_modes.compose(source.factors[:own], places(modes, tasks, "cpu", dtype))[:, 0]


def nearest(known: list[Any], tasks: list[Any], env: Any) -> Tensor:
    """Number of the known task nearest to each task, parameters counted in spans of the known ones."""
    return _distances(known, tasks, env).argmin(-1)


def _distances(known: list[Any], tasks: list[Any], env: Any) -> Tensor:
    there, here = coordinates(env, known), coordinates(env, tasks)
    span = (there.amax(0) - there.amin(0)).clamp_min(1e-12)
    return torch.cdist(here / span, there / span)


def fitted_to(path: Path, rollout: Rollout, state: LowRankState) -> Tensor:
    """The rows to start from with one before them that is fitted to a file of transitions, as many as before.

    The file is an .npz with the arrays observation (N, dimensions), action (N,), reward (N,), next_observation and
    terminated (N,), and with several tasks task (N,), the number of each transition's.

    Raises:
        UsageError: if it is not.
    """
    learner, fit, first = rollout.learner, state.fit, state.fit.starts[:, 0]
    assert isinstance(learner, LowRankQ)
    arrays = _read_data(path, rollout)
    rows = first.clone()
    for task in range(rollout.num_tasks):
        own = {name: array[arrays["task"] == task] for name, array in arrays.items()}
        if len(own["action"]) == 0:
            continue
        here, landed = (_features(rollout, state, own[name]) for name in ("observation", "next_observation"))
        batch = (len(first), len(own["action"]))
        action, reward = own["action"].long().expand(batch), own["reward"].expand(batch)
        discount = (rollout.gamma * (1.0 - own["terminated"])).expand(batch)
        actions = cp.khatri_rao(state.factors[-len(learner.action_sizes) :])[:, 0].double()
        pull = row_fit.PULL_OF_NOISE * fit.precision
        rows[:, task] = row_fit.lstd(here, landed, actions, action, reward, discount, first[:, task].double(), pull)
    return torch.cat((rows.unsqueeze(1), fit.starts), dim=1)[:, : fit.starts.shape[1]].contiguous()


def _features(rollout: Rollout, state: LowRankState, observation: Tensor) -> Tensor:
    """State features of observations of one task, (seeds, N, rank)."""
    index = rollout.grid.index(observation.to(rollout.dtype))
    return row_fit.features(state.factors[1:], tuple(place.view(1, 1, -1) for place in index))[:, 0].double()


def _read_data(path: Path, rollout: Rollout) -> dict[str, Tensor]:
    """Arrays of a file of transitions, in double precision on the run's device."""
    names = ("observation", "action", "reward", "next_observation", "terminated")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in names}
            arrays["task"] = np.asarray(file["task"] if "task" in file else np.zeros(len(arrays["action"])), np.float64)
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"`data`: expected an .npz file with {', '.join(names)}, but {path} has not ({error})"
        ) from error
    count, dimensions = len(arrays["action"]), len(rollout.grid.sizes)
    for name, array in arrays.items():
        shape = (count, dimensions) if "observation" in name else (count,)
        if array.shape != shape or not np.isfinite(array).all():
            raise UsageError(f"`data`: expected finite numbers shaped {shape} as {name}, got {array.shape} in {path}")
    for name, size in (("action", rollout.env.num_actions), ("task", rollout.num_tasks)):
        if not np.isin(arrays[name], np.arange(size)).all():
            raise UsageError(f"`data`: expected {name} from 0 to {size - 1}, got others in {path}")
    return {name: torch.from_numpy(array).to(rollout.device) for name, array in arrays.items()}


def about(config: Config, env: Any, tasks: list[Any]) -> list[str]:
    """What a user should know of the tasks that a run is adapted to: those beyond what it was trained on."""
    return beyond(read_source(Path(str(config.adapt_from)), env).tasks.modes, tasks)


def _source_config(folder: str) -> Config:
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"`adapt_from`: expected a run folder, but {path} does not exist")
    config = read_config(path)
    if config.algo != "stlrq":
        raise UsageError(f"`adapt_from`: expected a run of stlrq, got one of {config.algo}")
    return config
