"""The Triton kernels of the batched protocol: tensors to them and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchq.fused.online import own_tensors, power_of_two
from torchq.learners import LowRankQ
from torchq.learners.lowrank import LowRankState
from torchq.optim import Moments
from torchq.protocols import Tables
from torchq.rollout import Problem, Statistics

_LANES, _BLOCKS = 64, 1024


class BatchedProgram:
    """Steps of the batched protocol, one kernel and one per mode each.

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
        self, tasks: Any, learner: LowRankState, env: Any, statistics: Statistics, first: int, rates: Tables,
        task: Tensor | None,
    ) -> tuple[LowRankState, Any, Statistics]:  # fmt: skip
        """Consecutive steps with their updates; arguments as in `protocols.Advance`, and left as they were."""
        from torchq.fused import batched_kernels

        problem, grid, own = self.problem, self.problem.grid, self.learner
        if task is not None:
            raise NotImplementedError("joint updates of tasks that take turns have no Triton program")
        device, dtype = problem.seeds.device, problem.dtype
        factors, ones, twos, names, fields, parameters = own_tensors(tasks, learner, env)
        groups, envs = own.groups, problem.num_envs
        num_tasks = own.num_tasks // groups
        lanes = min(_LANES, power_of_two(envs))
        pieces = -(-envs // lanes)
        chunks, programs = num_tasks * pieces, len(problem.seeds) * groups
        blocks = min(chunks, _BLOCKS)
        has_task = int(own.has_task_mode)
        shared_rows = sum(own.sizes[has_task:])
        shared = torch.empty(programs, blocks, shared_rows, own.rank, device=device, dtype=dtype)
        by_task = torch.empty(programs, chunks, own.rank, device=device, dtype=dtype)
        sums = torch.zeros(programs, chunks, 3, device=device, dtype=dtype)
        observe, step = problem.env.triton_step()  # type: ignore[attr-defined]
        updates = int(learner.num_updates)
        rank_p = power_of_two(own.rank)
        for number in range(len(rates.epsilon)):
            batched_kernels.play[(blocks, programs)](
                tuple(factors), tuple(fields), parameters, problem.seeds,
                torch.arange(own.num_tasks, device=device), self._weights, shared, by_task, sums,
                rates.epsilon[number : number + 1], first + number, groups, own.num_tasks, envs, pieces,
                chunks, blocks, problem.gamma,
                OBSERVE=observe, STEP=step, FIELDS=len(fields), PARAMETERS=parameters.shape[1],
                UNIFORMS=problem.env.num_step_uniforms, SIZES=tuple(own.sizes),
                LOW=tuple(grid.low), HIGH=tuple(grid.high),
                GRID=tuple(grid.sizes), DIMENSIONS=len(grid.sizes), JOINT=grid.joint, HAS_TASK=has_task,
                MODES=len(own.sizes), ACTIONS=problem.env.num_actions, RANK=own.rank, RANK_P=rank_p,
                SHARED_ROWS=shared_rows, LANES=lanes,
            )  # fmt: skip
            updates, first_row = updates + 1, 0
            for mode, size in enumerate(own.sizes):
                tasked = bool(has_task) and mode == 0
                batched_kernels.descend[(size, programs)](
                    factors[mode], ones[mode], twos[mode], by_task if tasked else shared,
                    rates.learning_rate[number : number + 1], 1.0 - 0.9**updates, first_row, size,
                    pieces if tasked else blocks, shared_rows, RANK=own.rank, RANK_P=rank_p, BY_TASK=tasked,
                )  # fmt: skip
                first_row += 0 if tasked else size
        moments = tuple(Moments(*pair) for pair in zip(ones, twos, strict=True))
        steps = len(rates.epsilon)
        after = LowRankState(tuple(factors), moments, learner.num_updates + steps)
        totals = sums.view(*statistics.reward.shape, pieces, 3).sum(-2) / envs
        ended = torch.full_like(totals[..., 0], steps // problem.env.episode_length)
        news = (totals[..., 0], ended, totals[..., 1], totals[..., 2])
        moved = env._replace(elapsed=env.elapsed + steps, **dict(zip(names, fields, strict=True)))
        return after, moved, Statistics(*(old + new for old, new in zip(statistics, news, strict=True)))
