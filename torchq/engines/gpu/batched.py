"""The Triton kernels of the batched protocol and of greedy episodes: tensors to them and back."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState
from torchq.engines.gpu.tensors import Kernels, copied_moments, copies, on_device, power_of_two
from torchq.engines.rollout import Rollout
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


def _layout(rollout: Rollout, learner: LowRankQ) -> _Layout:
    num_tasks, lanes = learner.num_tasks // learner.groups, _lanes(learner.rank)
    envs = min(lanes, power_of_two(rollout.num_envs))
    pieces = -(-rollout.num_envs // envs)
    tasks = 1 if pieces > 1 else min(lanes // envs, power_of_two(num_tasks))
    chunks = -(-num_tasks // tasks) * pieces
    return _Layout(len(rollout.seeds) * learner.groups, envs, pieces, tasks, chunks, min(chunks, _BLOCKS))


class BatchedEngine:
    """Steps of the batched protocol, one kernel and one per mode each.

    Nothing is read back and counters stay on the device, so that steps can be captured in a graph.
    """

    name = "fused"

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self._weights = kernels, kernels.weights()
        self._plan = _layout(kernels.rollout, kernels.learner)

    def train(
        self, batch: Batch, state: RunState, rates: Rates, first_step: int | Tensor, *, updates: bool = True
    ) -> RunState:
        """Consecutive steps, with their updates, as in `CppEngine.train`; the first step may be a tensor (1,)."""
        from torchq.engines.gpu import batched_kernels

        if not batch.whole:
            raise NotImplementedError("joint updates of tasks that take turns have no Triton program")
        learner, env, statistics = state
        rollout, plan = self.kernels.rollout, self._plan
        groups, num_tasks = self.kernels.learner.groups, self.kernels.learner.num_tasks
        factors, moments, fields = copies(learner.factors), copied_moments(learner), copies(env)
        columns, clock = batch.parameters, on_device(first_step, rollout.device)
        task_rows = plan.chunks * plan.tasks
        new = partial(torch.zeros, plan.programs, device=rollout.device, dtype=rollout.dtype)
        rows, rank = self._shared_rows, self.kernels.learner.rank
        shared, by_task, sums = new(plan.blocks, rows, rank), new(task_rows, rank), new(task_rows, 4)
        sizes = (groups, num_tasks, rollout.num_envs, plan.pieces, plan.chunks, plan.blocks)
        steps = len(rates.epsilon)
        for step_index in range(steps):
            batched_kernels.play[(plan.programs * plan.blocks,)](
                tuple(factors), tuple(fields), columns, rollout.seeds, batch.task_index, self._weights,
                (shared, by_task, sums), rates.epsilon, clock, step_index, sizes, SHARED_ROWS=rows, TASKS=plan.tasks,
                ENVS=plan.envs, LEARN=int(updates), **self.kernels.constants,
            )  # fmt: skip
            if updates:
                self._descend(factors, moments, shared, by_task, rates, learner.num_updates, step_index)
        after = LowRankState(tuple(factors), tuple(map(Moments, *moments)), learner.num_updates + int(updates) * steps)
        used = num_tasks // groups * plan.pieces
        totals = sums[:, :used].reshape(*statistics.reward.shape, plan.pieces, 4).sum(-2) / rollout.num_envs
        return RunState(after, type(env)(*fields), statistics.plus(*totals.unbind(-1)))

    @property
    def _shared_rows(self) -> int:
        """Rows of all modes that tasks share."""
        learner = self.kernels.learner
        return sum(learner.sizes[int(learner.has_task_mode) :])

    def _descend(
        self, factors: list[Tensor], moments: tuple[list[Tensor], list[Tensor]], shared: Tensor, by_task: Tensor,
        rates: Rates, num_updates: Tensor, step_index: int,
    ) -> None:  # fmt: skip
        """The optimiser's step on every factor, from the sums that `play` left."""
        from torchq.engines.gpu import batched_kernels

        plan, learner, first_row = self._plan, self.kernels.learner, 0
        for mode, size in enumerate(learner.sizes):
            tasked = learner.has_task_mode and mode == 0
            buffer, parts = (by_task, plan.pieces) if tasked else (shared, plan.blocks)
            batched_kernels.descend[(plan.programs * size,)](
                factors[mode], moments[0][mode], moments[1][mode], buffer, rates.learning_rate, num_updates, step_index,
                first_row, size, parts, buffer.shape[-2], BY_TASK=tasked, TILE=min(_TILE, power_of_two(parts)),
                **self.kernels.rank,
            )  # fmt: skip
            first_row += 0 if tasked else size

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes in one launch, as in `Engine`."""
        return greedy_returns(self.kernels, learner, env, first_step)


def greedy_returns(kernels: Kernels, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
    """Returns of greedy episodes in one launch, as in `Engine`."""
    from torchq.engines.gpu import batched_kernels

    rollout, factors = kernels.rollout, [factor.contiguous() for factor in learner.factors]
    runs, num_tasks, envs = env.elapsed.shape
    total = torch.empty(env.elapsed.shape, device=rollout.device, dtype=rollout.dtype)
    lanes = min(_lanes(factors[0].shape[-1]), power_of_two(envs))
    pieces = -(-envs // lanes)
    batched_kernels.greedy[(runs * num_tasks * pieces,)](
        tuple(factors), tuple(factor.shape[1] for factor in factors), tuple(copies(env)), rollout.batch().parameters,
        rollout.seeds, total, on_device(first_step, rollout.device), rollout.env.episode_length, num_tasks, envs,
        pieces, LANES=lanes, **kernels.constants,
    )  # fmt: skip
    return total
