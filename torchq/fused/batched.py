"""The Triton kernels of the batched protocol and of greedy episodes: tensors to them and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchq.fused.online import (
    constants,
    counter,
    episodes_ended,
    own,
    own_fields,
    own_moments,
    parameters,
    power_of_two,
)
from torchq.learners import LowRankQ
from torchq.learners.lowrank import LowRankState
from torchq.optim import Moments
from torchq.protocols import Tables
from torchq.rollout import Problem, Statistics

_BLOCKS, _TILE = 1024, 64


def _lanes(rank: int) -> int:
    """Transitions that a program handles together: as many as its registers hold."""
    return max(16, min(64, 2048 // power_of_two(rank)))


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
        from torchq.fused import batched_kernels

        if task is not None:
            raise NotImplementedError("joint updates of tasks that take turns have no Triton program")
        problem, groups, sizes, rank = self.problem, self.learner.groups, self.learner.sizes, self.learner.rank
        device, dtype, envs = problem.seeds.device, problem.dtype, problem.num_envs
        factors, (ones, twos), fields = own(learner.factors), own_moments(learner), own_fields(env)
        columns, clock = parameters(tasks), counter(first, device)
        names = torch.arange(self.learner.num_tasks, device=device)
        lanes = min(_lanes(rank), power_of_two(envs))
        pieces, num_tasks = -(-envs // lanes), self.learner.num_tasks // groups
        together = 1 if pieces > 1 else min(_lanes(rank) // lanes, power_of_two(num_tasks))
        chunks, programs = -(-num_tasks // together) * pieces, len(problem.seeds) * groups
        blocks = min(chunks, _BLOCKS)
        has_task = int(self.learner.has_task_mode)
        shared_rows = sum(sizes[has_task:])
        shared = torch.empty(programs, blocks, shared_rows, rank, device=device, dtype=dtype)
        by_task = torch.empty(programs, chunks * together, rank, device=device, dtype=dtype)
        sums = torch.zeros(programs, chunks * together, 3, device=device, dtype=dtype)
        compiled = constants(problem, len(fields), columns.shape[1])
        own_rank = {name: compiled[name] for name in ("RANK", "RANK_P", "enable_fp_fusion")}
        steps = len(rates.epsilon)
        for number in range(steps):
            batched_kernels.play[(programs * blocks,)](
                tuple(factors), tuple(fields.values()), columns, problem.seeds, names, self._weights, shared, by_task,
                sums, rates.epsilon, clock, number, groups, self.learner.num_tasks, envs, pieces, chunks, blocks,
                SHARED_ROWS=shared_rows, TASKS=together, ENVS=lanes, LEARN=int(updates), **compiled,
            )  # fmt: skip
            first_row = 0
            for mode, size in enumerate(sizes if updates else ()):
                tasked = bool(has_task) and mode == 0
                parts = pieces if tasked else blocks
                batched_kernels.descend[(programs * size,)](
                    factors[mode], ones[mode], twos[mode], by_task if tasked else shared, rates.learning_rate,
                    learner.num_updates, number, first_row, size, parts,
                    chunks * together if tasked else shared_rows,
                    BY_TASK=tasked, TILE=min(_TILE, power_of_two(parts)), **own_rank,
                )  # fmt: skip
                first_row += 0 if tasked else size
        after = LowRankState(
            tuple(factors), tuple(map(Moments, ones, twos)), learner.num_updates + int(updates) * steps
        )
        seen = sums[:, : num_tasks * pieces].reshape(*statistics.reward.shape, pieces, 3)
        totals = seen.sum(-2) / envs
        news = (totals[..., 0], episodes_ended(problem, env, steps), totals[..., 1], totals[..., 2])
        moved = env._replace(elapsed=env.elapsed + steps, **fields)
        return after, moved, Statistics(*(old + new for old, new in zip(statistics, news, strict=True)))


def greedy(problem: Problem, tasks: Any, learner: LowRankState, env: Any, first: int | Tensor) -> Tensor:
    """Undiscounted returns of greedy episodes in one launch; arguments as in `evaluation.Greedy`."""
    from torchq.fused import batched_kernels

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
