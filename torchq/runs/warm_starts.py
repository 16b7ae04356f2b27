"""Warm starts from run folders: quadratic runs begin low-rank ones, and low-rank runs begin LMI-QLi."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.checkpoint import load_checkpoint
from torchq.config import LOW_RANK_ALGOS, QUADRATIC_ALGOS, Config
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.modes import Grid
from torchq.lowrank.qtensor import QTensor
from torchq.quadratic.forms import Quadratic, form
from torchq.quadratic.sdp import CONTROL_FLOOR
from torchq.runs import conversion
from torchq.runs.experiment import CONTRACT, make_grid
from torchq.runs.folder import read_config
from torchq.runs.monte_carlo import make_cases
from torchq.runs.study import Case

_MESH = 11
"""States per dimension at which the values of a tensor are fitted by a quadratic."""


class _Source(NamedTuple):
    folder: Path
    config: Config
    tensors: dict[str, Tensor]


def start_low_rank(config: Config, rollout: Rollout, cold: LowRankState) -> LowRankState:
    """The learner's state with the factors of `warm_start` in the place of its cold ones.

    From a quadratic run, Q(x, u) of its largest data set is written down on the grid for all tasks, and TensorLy's
    `parafac` decomposes it; from a run of the same algo, the factors themselves. Run s starts from the
    source's run number s modulo its runs.

    Raises:
        UsageError: if the source does not fit.
    """
    source = _read(config, config.num_tasks, (*QUADRATIC_ALGOS, config.algo))
    learner = rollout.learner
    assert isinstance(learner, LowRankQ)
    if source.config.algo == config.algo:
        if source.config.features != config.features:
            came = f"got one of `features={source.config.features}`"
            raise UsageError(f"`warm_start`: expected a run of `features={config.features}`, {came}; use the source's")
        return learner.start(cold, tuple(_copied(source, cold.factors, rollout.seeds)))
    cases, used = make_cases(config, rollout.env), rollout.seeds % _num_runs(source)
    factors = [factor.clone() for factor in cold.factors]
    for run in used.unique().tolist():
        table = _table(cases, _learnt(source, run), rollout.env, rollout.grid)
        per_group = {"stlrq": [table], "lrq": list(table), "clrq": [table.mean(0)]}[config.algo]
        for group, q_table in enumerate(per_group):
            for factor, new in zip(factors, conversion.decompose(q_table, config.rank), strict=True):
                factor[used == run, group] = new.to(factor)
    return learner.start(cold, tuple(factors))


def quadratic_starts(config: Config, cases: list[Case], env: Any) -> Quadratic:
    """Quadratic Q-functions (runs, tasks, …) nearest to the Q-tensors of `warm_start` where data are collected.

    Raises:
        UsageError: if the source does not fit.
    """
    if not all(hasattr(env, name) for name in CONTRACT):
        came = f"got {config.env}"
        raise UsageError(f"`warm_start`: expected a family that low-rank learners know too, such as pendulum, {came}")
    source = _read(config, len(cases), LOW_RANK_ALGOS)
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


def _read(config: Config, num_tasks: int | None, algos: tuple[str, ...]) -> _Source:
    folder = Path(str(config.warm_start))
    if not folder.is_dir():
        raise UsageError(f"`warm_start`: expected a run folder, but {folder} does not exist")
    source = read_config(folder)
    if source.algo not in algos or source.env != config.env:
        raise UsageError(
            f"`warm_start`: expected a run of {' or '.join(algos)} on {config.env}, got {source.algo} on {source.env}"
        )
    loaded = load_checkpoint(folder / "checkpoint", source.algo)
    if loaded is None:
        raise UsageError(f"`warm_start`: {folder} holds no checkpoint; let its run finish first")
    found = source.num_tasks if source.algo in LOW_RANK_ALGOS else loaded[0]["learnt.P"].shape[1]
    if found != num_tasks:
        raise UsageError(f"`warm_start`: expected a run with {num_tasks} tasks, got {found}; use `num_tasks={found}`")
    return _Source(folder, source, loaded[0])


def _num_runs(source: _Source) -> int:
    return len(source.tensors["learnt.P"])


def _learnt(source: _Source, run: int) -> Quadratic:
    """What a quadratic run has learnt from its largest data set, (tasks, …)."""
    return Quadratic(*(source.tensors[f"learnt.{name}"][run, :, -1] for name in Quadratic._fields))


def _copied(source: _Source, cold: tuple[Tensor, ...], seeds: Tensor) -> list[Tensor]:
    factors = []
    for mode, factor in enumerate(cold):
        stored = source.tensors[f"learner.factors.{mode}"]
        if stored.shape[1:] != factor.shape[1:]:
            raise UsageError(
                f"`warm_start`: expected factors of {tuple(factor.shape[1:])}, got {tuple(stored.shape[1:])}; "
                "use the source's `rank`, `features` and `state_modes`"
            )
        factors.append(stored.to(factor)[seeds % len(stored)])
    return factors


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
