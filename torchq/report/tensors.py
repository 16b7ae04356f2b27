"""What a page shows of a run's action values: rows of its factors at the places that are drawn, or a whole table.

The page multiplies them itself, so that any two dimensions of any task are a click away: a few kilobytes are enough.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.lowrank import cp
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import Mode
from torchq.lowrank.tabular_q import TabularQ
from torchq.runs.policy import GridPolicy

PLACES = 61
"""Along a dimension that is interpolated."""
MAX_TASKS = 64
MAX_NUMBERS = 1 << 20
"""Of a run, in a page."""


class CP(NamedTuple):
    """The Q-functions of a run as one tensor, in float64, a component for each of (task, k) where tasks share none."""

    states: tuple[Tensor, ...]
    """(size, rank)."""
    actions: Tensor
    """(actions, rank)."""
    tasks: Tensor | None
    """(tasks, rank); None where they share everything."""

    @property
    def factors(self) -> list[Tensor]:
        """All of them, the tasks last."""
        return [*self.states, self.actions, *([] if self.tasks is None else [self.tasks])]


def decomposition(policy: Any, tasks: Sequence[int]) -> CP | None:
    """The factors of a low-rank policy with the rows of some tasks; None of any other policy."""
    if not isinstance(policy, GridPolicy) or not isinstance(policy.learner, LowRankQ):
        return None
    learner = policy.learner
    first, last = int(learner.has_task_mode), len(policy.state.factors) - len(learner.action_sizes)
    factors = [factor[0].double() for factor in policy.state.factors]  # (groups, size, rank)
    chosen = torch.tensor(list(tasks))
    if len(factors[-1]) > 1:
        own = [factor[chosen] for factor in factors]
        rank = own[0].shape[-1]
        flat = [factor.movedim(0, 1).flatten(1) for factor in own]  # (size, tasks · rank)
        return CP(tuple(flat[:last]), cp.khatri_rao(flat[last:]), _one_hot(len(chosen), rank))
    flat = [factor[0] for factor in factors]
    return CP(tuple(flat[first:last]), cp.khatri_rao(flat[last:]), flat[0][chosen] if first else None)


def _one_hot(count: int, rank: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64).repeat_interleave(rank, 1)


def places(mode: Mode) -> Tensor:
    """Where along a dimension values are drawn, in its units: at the points of cells, closely where it is smooth."""
    if not mode.interpolates:
        return mode.points()
    if mode.kind == "log":
        return torch.logspace(math.log10(mode.low), math.log10(mode.high), PLACES, dtype=torch.float64)
    return torch.linspace(mode.low, mode.high, PLACES, dtype=torch.float64)


def described(policy: Any, tasks: Sequence[int]) -> dict[str, Any] | None:
    """Action values of a policy on a grid for some tasks, as the page reads them; None if they are too many.

        {"axes": [[…], …], "num_actions": A, "rank": K,
         "factors": [{"dims": […], "rows": base64}, …], "actions": base64, "tasks": base64}

    with float32 rows one after the other; a factor of several dimensions has rows in their order, the last fastest. A
    table has the rank 0 and its values, (tasks, places, actions), as "table".
    """
    if not isinstance(policy, GridPolicy):
        return None
    axes = [places(mode) for mode in policy.grid.modes]
    found = decomposition(policy, tasks)
    if found is None:
        table = _table(policy, axes, tasks)
        return None if table is None else {**_head(axes, table.shape[-1]), "rank": 0, "table": encoded(table)}
    rank = found.actions.shape[1]
    if rank * (sum(map(len, found.factors)) + sum(map(len, axes))) > MAX_NUMBERS:
        return None
    if policy.grid.joint:
        drawn = [{"dims": list(range(len(axes))), "rows": encoded(found.states[0])}]
    else:
        drawn = [
            {"dims": [number], "rows": encoded(_rows(factor, mode, axis))}
            for number, (factor, mode, axis) in enumerate(zip(found.states, policy.grid.modes, axes, strict=True))
        ]
    rows = torch.ones(len(tasks), rank) if found.tasks is None else found.tasks
    return {
        **_head(axes, len(found.actions)), "rank": rank, "factors": drawn, "actions": encoded(found.actions),
        "tasks": encoded(rows),
    }  # fmt: skip


def _head(axes: list[Tensor], num_actions: int) -> dict[str, Any]:
    return {"axes": [[float(f"{x:.6g}") for x in axis.tolist()] for axis in axes], "num_actions": num_actions}


def _rows(factor: Tensor, mode: Mode, axis: Tensor) -> Tensor:
    """Rows of a factor at places along its dimension, (places, rank)."""
    return cp.interpolate(lambda index: factor[index], mode.place(axis), mode.size)


def _table(policy: GridPolicy, axes: list[Tensor], tasks: Sequence[int]) -> Tensor | None:
    """Values of a table at all places, (tasks, places, actions)."""
    assert isinstance(policy.learner, TabularQ)
    count = int(torch.tensor([len(axis) for axis in axes]).prod())
    if count * len(tasks) * policy.learner.num_actions > MAX_NUMBERS:
        return None
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (places, dims)
    index = policy.grid.index(points.to(policy.dtype))
    each = [policy.learner.lookup(policy.state, index, torch.full((count,), task))[0] for task in tasks]
    return torch.stack(each)


def encoded(tensor: Tensor) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(tensor.detach().float().contiguous().numpy().astype("<f4").tobytes()).decode()
