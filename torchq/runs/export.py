"""A run's greedy policy without torchq: as ONNX, as a program of PyTorch, or as arrays for NumPy.

    weights = ∏_d φ_d(s_d)ᵀ F_d ∘ T[m, :],   a = argmaxₐ Σₖ A[a, k] weights[k]          (low-rank learners)
    u = π_b(x) + R⁻¹Sᵀφ(x)                                                              (quadratic learners)

Feature maps φ_d (`torchq.lowrank.modes`) and φ are part of it: observations go in raw. Places along the modes are
computed in the run's own type, as in training, all else in double precision, so that every form gives the same actions.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torchq.checkpoint import write_atomically
from torchq.errors import UsageError
from torchq.lowrank import cp
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import Grid
from torchq.lowrank.tabular_q import TabularQ, TabularState
from torchq.quadratic import forms
from torchq.runs.policy import ControlPolicy, GridPolicy

FORMATS = (".onnx", ".pt2", ".npz")
_BATCH = 3

Levels = Sequence[Sequence[float]] | None
"""What the environment is given for each action, a number for each axis; None where its number says it all."""


class Exported(NamedTuple):
    """A policy in the form in which it is taken away."""

    program: nn.Module
    """From observations (batch, dimensions) and numbers of tasks (batch,) to what is to be done."""
    num_tasks: int
    dimensions: int
    dtype: torch.dtype
    """Of observations."""
    output: str
    """The name of what comes out."""
    shown: str
    """The shape and type of it."""
    about: dict[str, Any] | None
    """What NumPy needs besides the program's arrays; None where they are not enough."""

    @property
    def signature(self) -> str:
        """What goes in and what comes out."""
        kind = str(self.dtype).removeprefix("torch.")
        given = f"observation (batch, {self.dimensions}) {kind}, task (batch,) int64"
        return f"{given} -> {self.output} {self.shown}; tasks are 0 to {self.num_tasks - 1}"


class LowRankPolicy(nn.Module):
    """Numbers of actions from factors.

    Args:
        grid: from observations to places.
        states: factors of the state modes, (groups, size, rank) each; a group for each task, or one.
        actions: rows of all actions, (groups, actions, rank).
        tasks: a row for each task, (tasks, rank); None where tasks have none.
        dtype: in which observations fall on the grid.
    """

    actions: Tensor
    tasks: Tensor

    def __init__(
        self, grid: Grid, states: list[Tensor], actions: Tensor, tasks: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.grid, self.dtype, self.has_tasks = grid, dtype, tasks is not None
        named = {f"state_{number}": factor for number, factor in enumerate(states)}
        for name, tensor in {**named, "actions": actions, **({} if tasks is None else {"tasks": tasks})}.items():
            self.register_buffer(name, tensor.double().contiguous())

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """The first action of largest value."""
        places = self.grid.index(observation.to(self.dtype))
        rows: list[Tensor] = [self.tasks[task]] if self.has_tasks else []
        for number, place in enumerate(places):
            factor = self.get_buffer(f"state_{number}")
            size, flat = factor.shape[1], factor.flatten(0, 1)  # (groups · size, rank)
            first = task * size if factor.shape[0] > 1 else torch.zeros_like(task)
            where = place.double() if place.is_floating_point() else place
            rows.append(cp.interpolate(partial(_at, flat, first), where, size))
        group = task if self.actions.shape[0] > 1 else torch.zeros_like(task)
        return (cp.product(rows).unsqueeze(-2) * self.actions[group]).sum(-1).argmax(-1)


def _at(flat: Tensor, first: Tensor, row: Tensor) -> Tensor:
    return flat[first + row]


class TablePolicy(nn.Module):
    """Numbers of actions from a table for each task, (tasks, states, actions)."""

    table: Tensor

    def __init__(self, grid: Grid, learner: TabularQ, table: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.grid, self.learner, self.dtype = grid, learner, dtype
        self.register_buffer("table", table.double().contiguous())

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """The first action of largest value."""
        state = TabularState(self.table.flatten(1).unsqueeze(0), task)
        return self.learner.lookup(state, self.grid.index(observation.to(self.dtype)), task)[0].argmax(-1)


class Controls(nn.Module):
    """Controls u = π_b(x) + R⁻¹Sᵀφ(x).                                                      [LMI, eq. (11)]

    Args:
        features: φ.
        gains: R⁻¹Sᵀ of each task, (tasks, controls, features).
        baselines: K_b of each task, π_b(x) = −K_b x, (tasks, controls, dimensions).
    """

    gains: Tensor
    baselines: Tensor

    def __init__(self, features: Callable[[Tensor], Tensor], gains: Tensor, baselines: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("gains", gains.contiguous())
        self.register_buffer("baselines", baselines.contiguous())

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """Controls, (batch, controls)."""
        phi = self.features(observation)
        learnt = (self.gains[task] * phi.unsqueeze(-2)).sum(-1)
        return learnt - (self.baselines[task] * observation.unsqueeze(-2)).sum(-1)


def exported(policy: GridPolicy | ControlPolicy) -> Exported:
    """What is exported of a policy.

    Raises:
        UsageError: if it has no such form.
    """
    if isinstance(policy, ControlPolicy):
        baselines = torch.stack([case.design.gain for case in policy.cases])
        controls = Controls(policy.cases[0].env.features, forms.greedy_gain(policy.learnt), baselines)
        tasks, count, dimensions = baselines.shape
        return Exported(controls, tasks, dimensions, torch.float64, "control", f"(batch, {count}) float64", None)
    modes = [{"low": m.low, "high": m.high, "size": m.size, "kind": m.kind} for m in policy.grid.modes]
    about = {"modes": modes, "joint": policy.grid.joint, "dtype": str(policy.dtype).removeprefix("torch.")}
    return Exported(_on_grid(policy), policy.num_tasks, len(modes), policy.dtype, "action", "(batch,) int64", about)


def _on_grid(policy: GridPolicy) -> LowRankPolicy | TablePolicy:
    state, learner, kind = policy.state, policy.learner, policy.dtype
    if isinstance(learner, TabularQ):
        table = state.table[0].unflatten(-1, (-1, learner.num_actions))  # (tasks, states, actions)
        return TablePolicy(policy.grid, learner, table, kind)
    assert isinstance(learner, LowRankQ)
    if state.guide and bool(state.guide.margin > 0):
        raise UsageError("`folder`: the run still follows its warm start; train it longer, or with `guide_margin=0`")
    factors = [factor[0] for factor in state.factors]  # (groups, size, rank)
    first = int(learner.has_task_mode)
    last = len(factors) - len(learner.action_sizes)
    tasks = factors[0][0] if first else None
    return LowRankPolicy(policy.grid, factors[first:last], cp.khatri_rao(factors[last:]), tasks, kind)


def write(made: Exported, path: Path, levels: Levels = None) -> list[Path]:
    """Write a policy to a file whose name says the form; returns the files.

    Args:
        made: from `exported`.
        path: of the file.
        levels: what the actions are to the environment; goes along.

    Raises:
        UsageError: if there is no such form, or a package for it is missing.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"`file`: expected a file that ends in {', '.join(FORMATS)}, got {path}")
    if path.suffix == ".npz":
        if made.about is None:
            raise UsageError("`file`: expected .onnx or .pt2 for a quadratic learner, whose features φ are a program, "
                             f"got {path}")  # fmt: skip
        write_atomically(path, _arrays(made.program, made.about, levels))
        reader = path.with_name(f"{path.stem}_numpy.py")
        text = resources.files("torchq.runs").joinpath("numpy_policy.txt").read_text(encoding="utf-8")
        write_atomically(reader, text.replace("POLICY", path.name).encode())
        return [path, reader]
    example = (torch.zeros(_BATCH, made.dimensions, dtype=made.dtype), torch.zeros(_BATCH, dtype=torch.int64))
    batch = {0: torch.export.Dim("batch", min=1)}
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of PyTorch's own code.
        program = _traced(made, example, batch)
        if path.suffix == ".pt2":
            torch.export.save(program, content, extra_files={"levels": json.dumps(levels)} if levels else None)
        else:
            _onnx(program, made.output, levels, content)
    write_atomically(path, content.getvalue())
    return [path]


def _traced(made: Exported, example: tuple[Tensor, Tensor], batch: Any) -> Any:
    try:
        return torch.export.export(made.program, example, dynamic_shapes=(batch, batch))
    except Exception as error:  # Whatever the features of a user's family raise.
        if not isinstance(made.program, Controls):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"`folder`: its family's features φ are not what torch.export takes ({reason})") from error


def _onnx(program: Any, output: str, levels: Levels, content: io.BytesIO) -> None:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # That packages are missing which nobody asked for.
    try:
        found = torch.onnx.export(
            program, dynamo=True, input_names=["observation", "task"], output_names=[output], verbose=False
        )
    except ImportError as error:
        raise UsageError(f"`file`: ONNX needs packages, pip install 'torchq[export]' ({error})") from error
    finally:
        logging.disable(before)
    assert found is not None
    model = found.model_proto
    if levels:
        model.metadata_props.add(key="levels", value=json.dumps(levels))
    content.write(model.SerializeToString())


def _arrays(program: nn.Module, about: dict[str, Any], levels: Levels) -> bytes:
    """Factors or tables, and modes, as an .npz."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: buffer.numpy() for name, buffer in program.named_buffers()}
    if levels:
        arrays["levels"] = np.array(levels, dtype=np.float64)
    np.savez(content, about=np.array(json.dumps(about)), **arrays)
    return content.getvalue()
