"""The Triton kernels of the batched protocol and of greedy episodes: tensors to them and back."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState, Statistics
from torchq.engines.gpu.tensors import (
    STRICT,
    Kernels,
    copied_moments,
    copies,
    kernel_sizes,
    on_device,
    power_of_two,
)
from torchq.engines.rollout import Rollout
from torchq.lowrank import optim, task_modes
from torchq.lowrank.guide import aged, margin_after
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.optim import Moments

_BLOCKS, _GRADIENTS = 1024, 4096
"""Sums of a program's gradient at most, and numbers of them that are added at a time."""
_FEWEST = 16
"""Lanes that a product of matrices takes."""


class _Layout(NamedTuple):
    """How the transitions of a step, or of an update, are shared out."""

    programs: int
    """Runs, or tasks of runs that share nothing."""
    lanes: int
    """Environments, or transitions, of a task that are handled together."""
    pieces: int
    """Of a task's environments, or transitions."""
    tasks: int
    """Tasks that are handled together; 1 if they come in pieces."""
    chunks: int
    """Pieces, or groups of tasks, of a program."""
    blocks: int
    """Sums of a program's gradient."""


class _Sums(NamedTuple):
    """What the programs of a layout add up."""

    shared: Tensor
    """Semi-gradients of the shared modes, (programs, blocks, rows, rank)."""
    by_task: Tensor
    """Those of the task mode, (programs, chunks · tasks, rank)."""
    seen: Tensor
    """Statistics, (programs, chunks · tasks, fields)."""


class _Changed(NamedTuple):
    """Copies to write to: those of the kernels' modes or, where a task's row is made up, of its parameters' modes."""

    factors: list[Tensor]
    target: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]

    def after(self, count: int) -> _Changed:
        """Without those of some first modes."""
        return _Changed(*(tensors[count:] for tensors in self))

    def upto(self, count: int) -> _Changed:
        """Those of some first modes alone."""
        return _Changed(*(tensors[:count] for tensors in self))


def _lanes(rank: int) -> int:
    """Transitions that are handled together: as many as registers hold (benchmarks/results/gpu-nvidia-h200.md)."""
    return 64 if rank <= 16 else 32


def _warps(rank: int) -> int:
    """Warps of such a group."""
    return 2 if rank <= 16 else 4


def _layout(rollout: Rollout, learner: LowRankQ, per_task: int) -> _Layout:
    num_tasks, most = learner.num_tasks // learner.groups, _lanes(learner.rank)
    lanes = min(most, power_of_two(per_task))
    pieces = -(-per_task // lanes)
    tasks = 1 if pieces > 1 else min(most // lanes, power_of_two(num_tasks))
    lanes = max(lanes, _FEWEST // tasks)
    chunks = -(-num_tasks // tasks) * pieces
    return _Layout(len(rollout.seeds) * learner.groups, lanes, pieces, tasks, chunks, min(chunks, _BLOCKS))


class BatchedEngine:
    """Steps of the batched protocol: a kernel that plays, and one that descends, after one that learns with replay.

    Nothing is read back and counters stay on the device, so that steps can be captured in a graph.
    """

    name = "fused"

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self._weights = kernels, kernels.weights()
        rollout, learner = kernels.rollout, kernels.learner
        again = rollout.replay.batch if rollout.replay else 0
        self._acting = _layout(rollout, learner, rollout.num_envs)
        self._learning = _layout(rollout, learner, rollout.num_envs + again)

    def train(
        self, batch: Batch, state: RunState, rates: Rates, first_step: int | Tensor, *, updates: bool = True
    ) -> RunState:
        """Consecutive steps, with their updates, as in `CppEngine.train`; the first step may be a tensor (1,)."""
        if not batch.whole:
            raise NotImplementedError("joint updates of tasks that take turns have no Triton program")
        learner, env, statistics, memory = state
        rollout, replay = self.kernels.rollout, self.kernels.rollout.replay if updates else None
        all_modes = _Changed(copies(learner.factors), copies(learner.target), *copied_moments(learner))
        fields = copies(env)
        changed, clock = self._with_table(all_modes, learner), on_device(first_step, rollout.device)
        guide = self._guide(learner, len(rates.epsilon))
        played = self._sums(self._acting, len(Statistics._fields))
        learnt = self._sums(self._learning, 2) if replay else played
        for step_index in range(len(rates.epsilon)):
            self._play(batch, changed, guide, fields, played, memory, rates, clock, step_index, updates)
            for update in range(rollout.updates_per_step if updates else 0):
                if replay:
                    self._learn(batch, changed, learnt, memory, clock, step_index, update)
                self._descend(changed, learnt, rates, learner.num_updates, step_index, update)
                if self.kernels.learner.task_sizes:
                    self._descend_tasks(changed, all_modes, learnt, rates, learner, step_index, update)
        count = learner.num_updates + int(updates) * len(rates.epsilon) * rollout.updates_per_step
        moments = tuple(map(Moments, all_modes.first, all_modes.second))
        ours, target = self.kernels.learner, tuple(all_modes.target)
        after = learner._replace(
            factors=tuple(all_modes.factors), moments=moments, num_updates=count, target=target,
            guide=aged(learner.guide, count, ours.margin, ours.margin_updates[0]),
        )  # fmt: skip
        totals = self._totals(played, self._acting)
        if replay:
            totals[..., 2:] = self._totals(learnt, self._learning)
        news = (totals.view(*statistics.reward.shape, -1) / rollout.num_envs).unbind(-1)
        return RunState(after, type(env)(*fields), statistics.plus(*news), memory)

    def _guide(self, learner: LowRankState, steps: int) -> Any:
        """The guide's factors and its margin at each of some steps, if there is one."""
        if not learner.guide:
            return None
        ours, each = self.kernels.learner, self.kernels.rollout.updates_per_step
        count = learner.num_updates + each * torch.arange(steps, device=learner.num_updates.device)
        margins = margin_after(count, ours.margin, ours.margin_updates[0])
        return tuple(factor.contiguous() for factor in learner.guide.factors), margins

    def _sums(self, plan: _Layout, fields: int) -> _Sums:
        learner, rollout = self.kernels.learner, self.kernels.rollout
        new = partial(torch.zeros, plan.programs, device=rollout.device, dtype=rollout.dtype)
        task_rows = plan.chunks * plan.tasks
        return _Sums(
            new(plan.blocks, self._shared_rows, learner.rank), new(task_rows, learner.rank), new(task_rows, fields)
        )

    def _totals(self, sums: _Sums, plan: _Layout) -> Tensor:
        """Statistics of each task of each program, (programs, tasks, fields)."""
        tasks = self.kernels.learner.num_tasks // self.kernels.learner.groups
        return sums.seen[:, : tasks * plan.pieces].unflatten(1, (tasks, plan.pieces)).sum(2)

    def _sizes(self, plan: _Layout, memory: Any) -> tuple[int, ...]:
        learner, rollout = self.kernels.learner, self.kernels.rollout
        slots = memory.shape[2] if isinstance(memory, Tensor) else 1
        return (learner.groups, learner.num_tasks, rollout.num_envs, plan.pieces, plan.chunks, plan.blocks, slots)

    @property
    def _shared_rows(self) -> int:
        """Rows of all modes that tasks share."""
        learner = self.kernels.learner
        return sum((*learner.state_sizes, *learner.action_sizes))

    def _with_table(self, all_modes: _Changed, learner: LowRankState) -> _Changed:
        """The modes of the kernels: a row per task, made up of rows of its parameters where it has none."""
        own = len(self.kernels.learner.task_sizes)
        if not own:
            return all_modes
        rest, unused = all_modes.after(own), all_modes.first[:1]
        table, target = (
            [self._composed(factors[:own], learner).contiguous()] if factors else []
            for factors in (all_modes.factors, all_modes.target)
        )
        return _Changed(table + rest.factors, target + rest.target, unused + rest.first, unused + rest.second)

    def _composed(self, factors: list[Tensor], learner: LowRankState) -> Tensor:
        count = self.kernels.learner.num_tasks
        return task_modes.compose(factors, [place[:count] for place in learner.task_places])

    def _descend_tasks(
        self, changed: _Changed, all_modes: _Changed, sums: _Sums, rates: Rates, learner: LowRankState, step_index: int,
        update: int,
    ) -> None:  # fmt: skip
        """The optimiser's step on the modes of parameters, and the rows of tasks that are made up of them."""
        ours, rollout, own = self.kernels.learner, self.kernels.rollout, len(self.kernels.learner.task_sizes)
        plan, tasks = self._learning if rollout.replay else self._acting, all_modes.upto(own)
        by_task = sums.by_task[:, : ours.num_tasks * plan.pieces].unflatten(1, (ours.num_tasks, plan.pieces)).sum(2)
        places = [place[: ours.num_tasks] for place in learner.task_places]
        gradients = task_modes.spread(by_task.unsqueeze(1), tasks.factors, places)
        number = learner.num_updates + step_index * rollout.updates_per_step + update + 1
        step, rate = optim.OPTIMIZERS[ours.optimizer], rates.learning_rate[step_index]
        for mode, gradient in enumerate(gradients):
            moments = Moments(tasks.first[mode], tasks.second[mode])
            factor, moments = step(tasks.factors[mode], gradient, moments, number, rate)
            tasks.factors[mode].copy_(factor), tasks.first[mode].copy_(moments.first)
            tasks.second[mode].copy_(moments.second)
            if tasks.target:
                tasks.target[mode].add_((ours.target_rate or 0.0) * (factor - tasks.target[mode]))
        for table, factors in zip((changed.factors, changed.target), (tasks.factors, tasks.target), strict=True):
            if factors:
                table[0].copy_(self._composed(factors, learner))

    def _play(
        self, batch: Batch, changed: _Changed, guide: Any, fields: list[Tensor], sums: _Sums, memory: Any, rates: Rates,
        clock: Tensor, step_index: int, updates: bool,
    ) -> None:  # fmt: skip
        """One step of all environments; what it brings is summed up, or stored."""
        from torchq.engines.gpu import batched_kernels

        plan, rollout = self._acting, self.kernels.rollout
        stores = updates and rollout.replay is not None
        batched_kernels.play[(plan.programs * plan.blocks,)](
            tuple(changed.factors), tuple(changed.target or changed.factors),
            *(guide or (tuple(changed.factors), clock)), tuple(fields), batch.parameters, rollout.seeds,
            batch.task_index, self._weights, tuple(sums), memory if stores else sums.shared, rates.epsilon, clock,
            step_index, self._sizes(plan, memory), SHARED_ROWS=self._shared_rows, TASKS=plan.tasks, ENVS=plan.lanes,
            LEARN=int(updates and not stores), STORE=int(stores), num_warps=_warps(self.kernels.learner.rank),
            **self.kernels.constants,
        )  # fmt: skip

    def _learn(
        self, batch: Batch, changed: _Changed, sums: _Sums, memory: Tensor, clock: Tensor, step_index: int, update: int
    ) -> None:
        """The sums of one update of a step, from its own transitions and stored ones."""
        from torchq.engines.gpu import batched_kernels

        plan, rollout, replay = self._learning, self.kernels.rollout, self.kernels.rollout.replay
        assert replay is not None
        batched_kernels.learn[(plan.programs * plan.blocks,)](
            tuple(changed.factors), tuple(changed.target or changed.factors), rollout.seeds, batch.task_index,
            self._weights, tuple(sums), memory, clock, step_index, self._sizes(plan, memory),
            (replay.batch, replay.capacity), MODEL=self.kernels.model, SHARED_ROWS=self._shared_rows,
            TASKS=plan.tasks, LANES=plan.lanes, UPDATE=update, RECENT=replay.recent,
            num_warps=_warps(self.kernels.learner.rank), **STRICT,
        )  # fmt: skip

    def _descend(
        self, changed: _Changed, sums: _Sums, rates: Rates, num_updates: Tensor, step_index: int, update: int
    ) -> None:
        """The optimiser's step on every factor, from the sums that `play` or `learn` left, and the target's."""
        from torchq.engines.gpu import batched_kernels

        rollout, learner, sizes = self.kernels.rollout, self.kernels.learner, kernel_sizes(self.kernels.learner)
        plan = self._learning if rollout.replay else self._acting
        tasked = [learner.has_task_mode and mode == 0 for mode in range(len(sizes))]
        moves = tuple(not learner.task_sizes if first else not learner.only_tasks for first in tasked)
        rows = sum(size for size, moved in zip(sizes, moves, strict=True) if moved)
        if not rows:
            return
        most = _GRADIENTS // power_of_two(learner.rank)
        batched_kernels.descend[(plan.programs * rows,)](
            tuple(changed.factors), tuple(changed.first), tuple(changed.second),
            tuple(changed.target or changed.factors), tuple(sums), rates.learning_rate, num_updates, step_index,
            (plan.blocks, self._shared_rows, plan.pieces, plan.chunks * plan.tasks), MODEL=self.kernels.model,
            MOVES=moves, ROWS=rows, TILES=tuple(min(most, power_of_two(n)) for n in (plan.pieces, plan.blocks)),
            UPDATE=update, UPDATES=rollout.updates_per_step, **STRICT,
        )  # fmt: skip

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
    guide = learner.guide
    following = ([factor.contiguous() for factor in guide.factors], guide.margin) if guide else (factors, rollout.seeds)
    batched_kernels.greedy[(runs * num_tasks * pieces,)](
        tuple(factors), tuple(following[0]), following[1], tuple(factor.shape[1] for factor in factors),
        tuple(factor.shape[2] for factor in factors), tuple(copies(env)), rollout.test_batch().parameters,
        rollout.seeds, total, on_device(first_step, rollout.device), rollout.env.episode_length, num_tasks, envs,
        pieces, LANES=lanes, **kernels.constants,
    )  # fmt: skip
    return total
