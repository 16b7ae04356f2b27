"""A run's greedy policy without torchq: as ONNX, as a program of PyTorch, or as arrays for NumPy.

    weights = ∏_d φ_d(s_d)ᵀ F_d ∘ T[m, :],   a = argmaxₐ Σₖ A[a, k] weights[k]

Feature maps φ_d (`torchq.lowrank.modes`) are part of it: observations go in raw. Places along the modes are computed in
the run's own type, as in training, all else in double precision, so that every form gives the same actions.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchq.checkpoint import write_atomically
from torchq.errors import UsageError
from torchq.lowrank import cp
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import Grid
from torchq.lowrank.tabular_q import TabularQ
from torchq.runs.policy import GridPolicy

FORMATS = (".onnx", ".pt2", ".npz")
_BATCH = 3


class Policy(nn.Module):
    """Numbers of actions from a batch of observations (batch, dimensions) and numbers of tasks (batch,).

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
        self.grid, self.dtype, self.has_tasks, self.count = grid, dtype, tasks is not None, len(states)
        for name, tensor in self._named(states, actions, tasks).items():
            self.register_buffer(name, tensor.double().contiguous())

    @staticmethod
    def _named(states: list[Tensor], actions: Tensor, tasks: Tensor | None) -> dict[str, Tensor]:
        named = {f"state_{number}": factor for number, factor in enumerate(states)}
        return {**named, "actions": actions, **({} if tasks is None else {"tasks": tasks})}

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


def exported(policy: Any) -> Policy:
    """What is exported of a policy.

    Raises:
        UsageError: if it has no such form.
    """
    if not isinstance(policy, GridPolicy):
        raise UsageError("`folder`: expected a run with a tensor, got a study of a quadratic learner")
    state, learner, kind = policy.state, policy.learner, policy.dtype
    if isinstance(learner, TabularQ):
        table = state.table[0]  # (tasks, states · actions)
        values = table.view(policy.num_tasks, -1, learner.num_actions)
        flat = Grid(policy.grid.modes, joint=True)
        if policy.grid.interpolates:
            raise UsageError("`folder`: expected a table of cells, or a low-rank run, got a table that interpolates")
        return Policy(flat, [values], torch.eye(learner.num_actions).unsqueeze(0), None, kind)
    assert isinstance(learner, LowRankQ)
    if state.guide and bool(state.guide.margin > 0):
        raise UsageError("`folder`: the run still follows its warm start; train it longer, or with `guide_margin=0`")
    factors = [factor[0] for factor in state.factors]  # (groups, size, rank)
    first = int(learner.has_task_mode)
    last = len(factors) - len(learner.action_sizes)
    tasks = factors[0][0] if first else None
    return Policy(policy.grid, factors[first:last], cp.khatri_rao(factors[last:]), tasks, kind)


def export(policy: Any, path: Path) -> list[Path]:
    """Write a policy to a file whose name says the form; returns the files.

    Raises:
        UsageError: if there is no such form, or a package for it is missing.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"`out`: expected a file that ends in {', '.join(FORMATS)}, got {path}")
    made = exported(policy)
    if path.suffix == ".npz":
        write_atomically(path, _arrays(made))
        reader = path.with_name(f"{path.stem}_numpy.py")
        text = resources.files("torchq.runs").joinpath("numpy_policy.txt").read_text(encoding="utf-8")
        write_atomically(reader, text.replace("POLICY", path.name).encode())
        return [path, reader]
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(_BATCH, len(made.grid.modes), dtype=made.dtype), torch.zeros(_BATCH, dtype=torch.int64))
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of PyTorch's own code.
        program = torch.export.export(made, example, dynamic_shapes=({0: batch}, {0: batch}))
        if path.suffix == ".pt2":
            torch.export.save(program, content)
        else:
            _onnx(program, content)
    write_atomically(path, content.getvalue())
    return [path]


def _onnx(program: Any, content: io.BytesIO) -> None:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # That packages are missing which nobody asked for.
    try:
        found = torch.onnx.export(
            program, dynamo=True, input_names=["observation", "task"], output_names=["action"], verbose=False
        )
    except ImportError as error:
        raise UsageError(f"`out`: ONNX needs packages, pip install 'torchq[export]' ({error})") from error
    finally:
        logging.disable(before)
    assert found is not None
    content.write(found.model_proto.SerializeToString())


def _arrays(policy: Policy) -> bytes:
    """Factors and modes as an .npz."""
    modes = [{"low": m.low, "high": m.high, "size": m.size, "kind": m.kind} for m in policy.grid.modes]
    about = {"modes": modes, "joint": policy.grid.joint, "dtype": str(policy.dtype).removeprefix("torch.")}
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: buffer.numpy() for name, buffer in policy.named_buffers()}
    np.savez(content, about=np.array(json.dumps(about)), **arrays)
    return content.getvalue()
