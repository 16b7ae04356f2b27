"""Policies of some tasks out of those of all, put together again, and looked up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq.lowrank import cp
from torchq.lowrank.low_rank_state import LowRankState


def at_tasks(state: LowRankState, tasks: Int[Tensor, " tasks"], has_task_mode: bool) -> LowRankState:
    """What the action values of some tasks depend on, of a policy, in their order."""

    def own(factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if has_task_mode:
            return (factors[0].index_select(2, tasks), *factors[1:])
        return tuple(factor.index_select(1, tasks) if factor.shape[1] > 1 else factor for factor in factors)

    guide = state.guide and state.guide._replace(factors=own(state.guide.factors))
    return LowRankState(own(state.factors), (), state.num_updates, guide=guide)


def joined(states: Sequence[LowRankState], has_task_mode: bool) -> LowRankState:
    """A policy whose action values of task m are those of states[m]: each task has a group of its own."""

    def cat(factors: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        columns = list(zip(*factors, strict=True))
        first = torch.cat(columns[0], dim=2 if has_task_mode else 1)
        return (first, *(torch.cat(column, dim=1) for column in columns[1:]))

    guide = states[-1].guide
    if guide:
        guide = guide._replace(factors=cat([one.guide.factors for one in states]))
    return LowRankState(cat([one.factors for one in states]), (), states[-1].num_updates, guide=guide)


def lookup(
    factors: Sequence[Tensor], index: Sequence[Tensor], task: Int[Tensor, " batch"], has_task_mode: bool
) -> Float[Tensor, "seeds batch actions"]:
    """Q(s, ·) of a flat batch, a task for each.

    Args:
        factors: [task,] states, actions, (seeds, groups, size, rank) each.
        index: places along the state modes, (batch,) each.
        task: numbers of tasks.
        has_task_mode: whether the first factor has a row per task.
    """
    rows = [factors[0][:, 0, task]] if has_task_mode else []
    states, actions = factors[len(rows) : len(rows) + len(index)], cp.khatri_rao(factors[len(rows) + len(index) :])
    for factor, place in zip(states, index, strict=True):
        group = task if factor.shape[1] > 1 else torch.zeros_like(task)

        def gather(row: Tensor, factor: Tensor = factor, group: Tensor = group) -> Tensor:
            return factor[:, group, row]

        rows.append(cp.interpolate(gather, place, factor.shape[2]))  # (seeds, batch, rank)
    group = task if actions.shape[1] > 1 else torch.zeros_like(task)
    return (cp.product(rows).unsqueeze(-2) * actions[:, group]).sum(-1)
