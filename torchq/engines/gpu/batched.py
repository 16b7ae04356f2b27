"""The Triton kernels of the batched protocol and of greedy episodes: tensors to them and back."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.engines.gpu.online import (
    constants,
    counter,
    episodes_ended,
    own,
    own_fields,
    own_moments,
    parameters,
    power_of_two,
)
from torchq.engines.protocols import Tables
from torchq.engines.rollout import Problem, Statistics
from torchq.lowrank.low_rank_q import LowRankQ, LowRankState
from torchq.lowrank.optim import Moments

_BLOCKS, _TILE = 1024, 64


class _Layout(NamedTuple):
    """How the transitions of a step are shared out."""

    programs: int
    """Runs, or tasks of runs that share nothing."""
    envs: int
    """Environments of a task that are handled together."""
    pieces: int
    """Of a task's environments."""
    tasks: int
    """Tasks that are handled together; 1 if they come in pieces."""
    chunks: int
    """Pieces, or groups of tasks, of a program."""
    blocks: int
    """Sums of a program's gradient."""


def _lanes(rank: int) -> int:
    """Transitions that are handled together: as many as registers hold."""
    return max(16, min(64, 2048 // power_of_two(rank)))


def _layout(problem: Problem, learner: LowRankQ) -> _Layout:
    num_tasks, lanes = learner.num_tasks // learner.groups, _lanes(learner.rank)
    envs = min(lanes, power_of_two(problem.num_envs))
    pieces = -(-problem.num_envs // envs)
    tasks = 1 if pieces > 1 else min(lanes // envs, power_of_two(num_tasks))
    chunks = -(-num_tasks // tasks) * pieces
    return _Layout(len(problem.seeds) * learner.groups, envs, pieces, tasks, chunks, min(chunks, _BLOCKS))


class BatchedProgram:
    """Steps of the batched protocol, one kernel and one per mode each.

    Nothing is read back and counters stay on the device, so that steps can be captured in a graph.

    Args:
        problem: with joint Adamax updates of a low-rank learner.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        assert isinstance(problem.learner, LowRankQ)
        self.learner = problem.learner
        weights = self.learner.task_weights or (1.0,) * self.learner.num_tasks
        device = problem.seeds.device
        self._weights = self.learner.loss_scale * torch.tensor(weights, dtype=problem.dtype, device=device)

    def train(
        self, tasks: Any, learner: LowRankState, env: Any, statistics: Statistics, first: int | Tensor, rates: Tables,
        task: Tensor | None, *, updates: bool = True,
    ) -> tuple[LowRankState, Any, Statistics]:  # fmt: skip
        """Consecutive steps, with their updates; arguments as in `FusedProgram.train`, and left as they were."""
        from torchq.engines.gpu import batched_kernels

        if task is not None:
            raise NotImplementedError("joint updates of tasks that take turns have no Triton program")
        problem, own_learner, sizes = self.problem, self.learner, self.learner.sizes
        factors, (ones, twos), fields = own(learner.factors), own_moments(learner), own_fields(env)
        columns, clock = parameters(tasks), counter(first, problem.seeds.device)
        names = torch.arange(own_learner.num_tasks, device=problem.seeds.device)
        plan, has_task = _layout(problem, own_learner), int(own_learner.has_task_mode)
        shared_rows, task_rows = sum(sizes[has_task:]), plan.chunks * plan.tasks
        new = partial(torch.zeros, plan.programs, device=problem.seeds.device, dtype=problem.dtype)
        shared = new(plan.blocks, shared_rows, own_learner.rank)
        by_task, sums = new(task_rows, own_learner.rank), new(task_rows, 3)
        compiled = constants(problem, len(fields), columns.shape[1])
        own_rank = {name: compiled[name] for name in ("RANK", "RANK_P", "enable_fp_fusion")}
        steps = len(rates.epsilon)
        for number in range(steps):
            batched_kernels.play[(plan.programs * plan.blocks,)](
                tuple(factors), tuple(fields.values()), columns, problem.seeds, names, self._weights, shared, by_task,
                sums, rates.epsilon, clock, number, own_learner.groups, own_learner.num_tasks, problem.num_envs,
                plan.pieces, plan.chunks, plan.blocks, SHARED_ROWS=shared_rows, TASKS=plan.tasks, ENVS=plan.envs,
                LEARN=int(updates), **compiled,
            )  # fmt: skip
            first_row = 0
            for mode, size in enumerate(sizes if updates else ()):
                tasked = bool(has_task) and mode == 0
                buffer, parts, stride = (
                    (by_task, plan.pieces, task_rows) if tasked else (shared, plan.blocks, shared_rows)
                )
                batched_kernels.descend[(plan.programs * size,)](
                    factors[mode], ones[mode], twos[mode], buffer, rates.learning_rate, learner.num_updates, number,
                    first_row, size, parts, stride, BY_TASK=tasked, TILE=min(_TILE, power_of_two(parts)), **own_rank,
                )  # fmt: skip
                first_row += 0 if tasked else size
        after = LowRankState(
            tuple(factors), tuple(map(Moments, ones, twos)), learner.num_updates + int(updates) * steps
        )
        used = own_learner.num_tasks // own_learner.groups * plan.pieces
        totals = sums[:, :used].reshape(*statistics.reward.shape, plan.pieces, 3).sum(-2) / problem.num_envs
        news = (totals[..., 0], episodes_ended(problem, env, steps), totals[..., 1], totals[..., 2])
        moved = env._replace(elapsed=env.elapsed + steps, **fields)
        return after, moved, Statistics(*(old + new for old, new in zip(statistics, news, strict=True)))


def greedy(problem: Problem, tasks: Any, learner: LowRankState, env: Any, first: int | Tensor) -> Tensor:
    """Undiscounted returns of greedy episodes in one launch; arguments as in `evaluation.Greedy`."""
    from torchq.engines.gpu import batched_kernels

    factors, fields, columns = [f.contiguous() for f in learner.factors], own_fields(env), parameters(tasks)
    runs, num_tasks, envs = env.elapsed.shape
    total = torch.empty(env.elapsed.shape, device=problem.seeds.device, dtype=problem.dtype)
    lanes = min(_lanes(factors[0].shape[-1]), power_of_two(envs))
    pieces = -(-envs // lanes)
    batched_kernels.greedy[(runs * num_tasks * pieces,)](
        tuple(factors), tuple(factor.shape[1] for factor in factors), tuple(fields.values()), columns, problem.seeds,
        total, counter(first, problem.seeds.device), problem.env.episode_length, num_tasks, envs, pieces,
        LANES=lanes, **constants(problem, len(fields), columns.shape[1]),
    )  # fmt: skip
    return total
