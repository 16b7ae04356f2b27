"""Warm starts from run folders: quadratic runs begin low-rank ones, and low-rank runs begin LMI-QLi."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.checkpoint import load_checkpoint
from torchq.config import Config
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState, kept_factors
from torchq.lowrank.modes import Grid
from torchq.lowrank.qtensor import QTensor
from torchq.methods import LOW_RANK_ALGOS, QUADRATIC_ALGOS
from torchq.quadratic.forms import Quadratic, form
from torchq.quadratic.programs import CONTROL_FLOOR
from torchq.runs import conversion
from torchq.runs.adaptation import nearest
from torchq.runs.control_tasks import Case
from torchq.runs.experiment import CONTRACT, make_grid
from torchq.runs.folder import read_config
from torchq.runs.monte_carlo import make_cases
from torchq.runs.tasks import shown, task_list, task_set, values

_MESH = 11
"""States per dimension at which the values of a tensor are fitted by a quadratic."""


class _Source(NamedTuple):
    folder: Path
    config: Config
    tensors: dict[str, Tensor]


def informed(config: Config, env: Any) -> Config:
    """The configuration of a new run with what its `warm_start` decides.

    From a run of the same algo there is no guide, and rates go on from the samples that its tasks have seen.

    Raises:
        UsageError: if the source cannot be read.
    """
    source = _source_config(config)
    if source.algo not in LOW_RANK_ALGOS:
        return config
    seen = source.episodes * env.episode_length * source.num_envs
    return config.replace(guide_margin=0.0, samples_before=source.samples_before + seen)


def start_low_rank(config: Config, rollout: Rollout, cold: LowRankState) -> LowRankState:
    """The learner's state with what `warm_start` brings.

    From a quadratic run, Q(x, u) of its largest data set is written down on the grid for all tasks, and TensorLy's
    `parafac` decomposes it: the learner's guide, or with a `guide_margin` of 0 its values to start from. From a run of
    the same algo, the factors themselves, a task's row that of the nearest known task. Run s starts from the source's
    run number s modulo its runs.

    Raises:
        UsageError: if the source does not fit.
    """
    source = _read(config, (*QUADRATIC_ALGOS, config.algo))
    learner = rollout.learner
    assert isinstance(learner, LowRankQ)
    if source.config.algo == config.algo:
        return learner.start(cold, _known(config, source, rollout, cold))
    _check_tasks(source, config, rollout.env)
    if config.held_out or config.test_tasks:
        raise UsageError(f"`held_out`, `test_tasks`: expected none with `warm_start` from {source.config.algo}")
    if config.task_modes != "table":
        came = f"got {config.task_modes}"
        raise UsageError(f"`task_modes`: expected table with `warm_start` from {source.config.algo}, {came}")
    cases, used = make_cases(config, rollout.env), rollout.seeds % _num_runs(source)
    factors = [factor.clone() for factor in cold.factors]
    for run in used.unique().tolist():
        table = _table(cases, _learnt(source, run), rollout.env, rollout.grid)
        per_group = {"stlrq": [table], "lrq": list(table), "clrq": [table.mean(0)]}[config.algo]
        for group, q_table in enumerate(per_group):
            for factor, new in zip(factors, conversion.decompose(q_table, config.rank), strict=True):
                factor[used == run, group] = new.to(factor)
    if learner.margin:
        return cold._replace(guide=cold.guide._replace(factors=tuple(factors)))
    return learner.start(cold, tuple(factors))


def _known(config: Config, source: _Source, rollout: Rollout, cold: LowRankState) -> tuple[Tensor, ...]:
    """The factors of a run of the same algo, with a row, or a tensor, of the nearest known task for each task."""
    for name in ("features", "state_modes", "rank", "task_modes"):
        stored, wanted = getattr(source.config, name), getattr(config, name)
        if stored != wanted:
            raise UsageError(
                f"`{name}`: expected {stored}, as in the run of `warm_start`, got {wanted}; use the source's"
            )
    factors = [source.tensors[f"learner.factors.{mode}"] for mode in range(len(cold.factors))]
    if source.config.adapt_from is not None:
        factors = kept_factors(source.tensors)
    ours, theirs = task_set(config, rollout.env), task_set(source.config, rollout.env)
    if ours.modes != theirs.modes:
        raise UsageError("`tasks`: expected the parameters' values or range of the run of `warm_start`, which its "
                         "`task_modes` depend on; adapt it with `adapt_from` instead")  # fmt: skip
    number = nearest(theirs.tasks, ours.tasks, rollout.env)
    if config.algo == "stlrq" and ours.modes is None:
        factors[0] = factors[0][:, :, number]
    if config.algo == "lrq":
        factors = [factor[:, number] for factor in factors]
    for factor, expected in zip(factors, cold.factors, strict=True):
        if factor.shape[1:] != expected.shape[1:]:
            came = f"got {tuple(factor.shape[1:])}"
            wanted = f"factors of {tuple(expected.shape[1:])}"
            raise UsageError(f"`warm_start`: expected {wanted}, {came}; is the family the same?")
    return tuple(factor.to(cold.factors[0])[rollout.seeds % len(factor)] for factor in factors)


def quadratic_starts(config: Config, cases: list[Case], env: Any) -> Quadratic:
    """Quadratic Q-functions (runs, tasks, …) nearest to the Q-tensors of `warm_start` where data are collected.

    Raises:
        UsageError: if the source does not fit.
    """
    if not all(hasattr(env, name) for name in CONTRACT):
        came = f"got {config.env}"
        raise UsageError(f"`warm_start`: expected a family that low-rank learners know too, such as pendulum, {came}")
    source = _read(config, LOW_RANK_ALGOS)
    _check_tasks(source, config, env)
    if source.config.task_modes != "table" or source.config.held_out or source.config.test_tasks:
        raise UsageError("`warm_start`: expected a run of `task_modes=table` whose tasks all learn")
    grid = make_grid(source.config, env)
    x = _near(grid, torch.tensor(cases[0].env.exploration_high, dtype=torch.float64))
    indices = grid.index(x.to(getattr(torch, source.config.dtype)))
    starts = []
    for run in range(source.config.num_seeds):
        for case in cases:
            tensor = QTensor.from_run(
                source.folder, run=run, task=case.task_index if source.config.algo == "lrq" else None
            )
            task = torch.full((len(x),), case.task_index) if tensor.task_sizes else ()
            values = tensor.action_values(indices, task).detach().double()
            phi, deviation, value = (part.flatten(0, 1) for part in _features(case, x, env))
            starts.append(conversion.fit_quadratic(values.flatten(), phi, deviation, value, CONTROL_FLOOR))
    shape = (source.config.num_seeds, len(cases))
    return Quadratic(*(torch.stack(parts).unflatten(0, shape) for parts in zip(*starts, strict=True)))


def _source_config(config: Config) -> Config:
    folder = Path(str(config.warm_start))
    if not folder.is_dir():
        raise UsageError(f"`warm_start`: expected a run folder, but {folder} does not exist")
    return read_config(folder)


def _read(config: Config, algos: tuple[str, ...]) -> _Source:
    folder, source = Path(str(config.warm_start)), _source_config(config)
    if source.algo not in algos or source.env != config.env:
        raise UsageError(
            f"`warm_start`: expected a run of {' or '.join(algos)} on {config.env}, got {source.algo} on {source.env}"
        )
    loaded = load_checkpoint(folder / "checkpoint", source.algo)
    if loaded is None:
        raise UsageError(f"`warm_start`: {folder} holds no checkpoint; let its run finish first")
    return _Source(folder, source, loaded[0])


def _check_tasks(source: _Source, config: Config, env: Any) -> None:
    """See that both runs have the same tasks.

    Raises:
        UsageError: naming the first that differs.
    """
    theirs, ours = task_list(source.config, env), task_list(config, env)
    if len(theirs) != len(ours):
        came = f"got {len(theirs)}; use `num_tasks={len(theirs)}`"
        raise UsageError(f"`warm_start`: expected a run with {len(ours)} tasks, {came}")
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        if values(one) != values(other):
            came = f"got {shown(other)} as task {number}"
            raise UsageError(f"`tasks`: expected {shown(one)}, as in the run of `warm_start`, {came}")


def _num_runs(source: _Source) -> int:
    return len(source.tensors["learnt.P"])


def _learnt(source: _Source, run: int) -> Quadratic:
    """What a quadratic run has learnt from its largest data set, (tasks, …)."""
    return Quadratic(*(source.tensors[f"learnt.{name}"][run, :, -1] for name in Quadratic._fields))


def _near(grid: Grid, high: Tensor) -> Tensor:
    """States in the box ±high: points of the grid, or a mesh where there are values between them, (states, dims)."""
    if not grid.interpolates:
        return grid.points()[(grid.points().abs() <= high).all(-1)]
    axes = [torch.linspace(-1.0, 1.0, _MESH, dtype=torch.float64) * bound for bound in high]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _features(case: Case, x: Tensor, env: Any) -> tuple[Tensor, Tensor, Tensor]:
    """φ, ũ and V_b of every state with every action of the grid's environment, (states, actions, …)."""
    controls = env.torque(torch.arange(env.num_actions), torch.float64)
    baseline = -(x @ case.design.gain.mT)
    deviation = (controls - baseline).unsqueeze(-1)
    phi = case.env.features(x).unsqueeze(1).expand(-1, len(controls), -1)
    return phi, deviation, -form(x, case.design.value).unsqueeze(-1).expand(-1, len(controls))


def _table(cases: list[Case], learnt: Quadratic, env: Any, grid: Grid) -> Tensor:
    """Q of all tasks on the grid, (tasks, *state modes, actions), drawn in below the lowest V_b."""
    x = grid.points()
    tables = [
        conversion.action_values(Quadratic(*(part[case.task_index] for part in learnt)), *_features(case, x, env))
        for case in cases
    ]
    scale = max(form(x, case.design.value).max().item() for case in cases)
    return conversion.compress(torch.stack(tables), scale).unflatten(1, grid.mode_sizes)
