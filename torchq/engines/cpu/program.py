"""Tensors to the compiled program and back."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from typing import Any

import torch
from torch import Tensor

from torchq.engines.codegen import cpp, trace
from torchq.engines.cpu import build
from torchq.engines.protocols import Tables
from torchq.engines.rollout import Problem, Statistics
from torchq.lowrank.low_rank_q import LowRankQ, LowRankState
from torchq.lowrank.optim import Moments

_OPTIMIZERS = {"sgd": 0, "adam": 1, "adamax": 2}
_COUNTS = ("seeds", "groups", "tasks", "envs", "steps", "first_step", "updates", "num_updates", "threads")


def obstacle(problem: Problem) -> str | None:
    """What keeps the fused engine from running a problem, in one line; None if nothing does."""
    if problem.seeds.device.type != "cpu":
        return f"it needs the CPU, got {problem.seeds.device.type}"
    if not isinstance(problem.learner, LowRankQ):
        return "it needs stlrq, lrq or clrq"
    if len(problem.learner.action_sizes) != 1:
        return "it needs one action mode"
    try:
        FusedProgram(problem)
    except (RuntimeError, OSError) as error:
        return str(error).strip().partition("\n")[0]
    return None


class FusedProgram:
    """Whole episodes of a problem in one call: `train` and `greedy`.

    Args:
        problem: with a low-rank learner and an environment that has a `program`, on the CPU.

    Raises:
        RuntimeError: if it does not compile.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, env, grid = problem, problem.env, problem.grid
        learner = problem.learner
        assert isinstance(learner, LowRankQ)
        self.learner = learner
        self.real: Any = ctypes.c_float if problem.dtype == torch.float32 else ctypes.c_double
        self.modes = len(learner.sizes)

        def braces(values: Any) -> str:
            return "{" + ",".join(map(str, values)) + "}"

        constants = {
            "REAL": "float" if problem.dtype == torch.float32 else "double",
            "RANK": learner.rank, "ACTIONS": env.num_actions, "JOINT": int(grid.joint),
            "HAS_TASK": int(learner.has_task_mode), "GRID_LOW": braces(grid.low), "GRID_HIGH": braces(grid.high),
            "GRID_SIZES": braces(grid.sizes), "OPTIMIZER": _OPTIMIZERS[learner.optimizer],
            "BLOCK_ORDER": int(learner.update_order == "block"), "NORMALISED": int(learner.normalised),
            "SWEEPS": learner.num_sweeps, "LOSS_SCALE": learner.loss_scale,
        }  # fmt: skip
        import envs
        tl = env.sample_tasks(1)
        tasks = envs.stack_tasks(tl, dtype=problem.dtype)
        state = problem.reset(tasks, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        family = cpp.family(trace.trace_family(env, tasks, state, problem.dtype))
        self._library = build.library({k: str(v) for k, v in constants.items()}, family)

    def train(
        self,
        tasks: Any,
        learner_state: LowRankState,
        env_state: Any,
        statistics: Statistics,
        first_step: int,
        rates: Tables,
        task: Tensor | None,
        *,
        updates: bool = True,
    ) -> tuple[LowRankState, Any, Statistics]:
        """Consecutive steps of the behaviour policy with their updates; the arguments stay as they were.

        Args:
            tasks: environment parameters of the tasks in the batch.
            learner_state: before.
            env_state: before.
            statistics: sums so far.
            first_step: counter of the first step.
            rates: of each step.
            task: None if the batch holds all tasks in order, else the number of its only task, shape (1,).
            updates: whether to learn; without, the environments are played by the behaviour policy alone.
        """
        numbers = torch.arange(self.learner.num_tasks) if task is None else task
        factors = [factor.clone(memory_format=torch.contiguous_format) for factor in learner_state.factors]
        moments = [Moments(*(x.clone(memory_format=torch.contiguous_format) for x in m)) for m in learner_state.moments]
        steps = len(rates.epsilon)
        sums = torch.zeros(*statistics.reward.shape, 4, dtype=torch.float64)
        fields, rebuilt = _own_fields(env_state)
        weights = None
        if self.learner.task_weights:
            weights = torch.tensor(self.learner.task_weights, dtype=self.problem.dtype)[numbers]
        self._call(
            "torchq_train", tasks, numbers, factors, fields, steps, first_step, self.learner.groups,
            moments=moments, epsilon=rates.epsilon, learning_rate=rates.learning_rate, task_weights=weights,
            statistics=sums, num_updates=int(learner_state.num_updates), updates=updates,
        )  # fmt: skip
        after = LowRankState(
            tuple(factors), tuple(moments), learner_state.num_updates + int(updates) * steps * self.learner.num_sweeps
        )
        totals = (old + new.to(old.dtype) for old, new in zip(statistics, sums.unbind(-1), strict=True))
        return after, rebuilt(fields, steps), Statistics(*totals)

    def greedy(self, tasks: Any, learner_state: LowRankState, env_state: Any, first_step: int) -> Tensor:
        """Undiscounted return of a greedy episode in every environment, (seeds, tasks, envs)."""
        factors = [factor.contiguous() for factor in learner_state.factors]
        groups = max(factor.shape[1] for factor in factors)
        fields, _ = _own_fields(env_state)
        total = torch.zeros(fields[0].shape, dtype=torch.float64)
        self._call(
            "torchq_greedy", tasks, torch.arange(fields[0].shape[1]), factors, fields, self.problem.env.episode_length,
            first_step, groups, total=total,
        )  # fmt: skip
        return total.to(self.problem.dtype)

    def _call(
        self, name: str, tasks: Any, numbers: Tensor, factors: list[Tensor], fields: list[Tensor], steps: int,
        first_step: int, groups: int, *, moments: list[Moments] | None = None, epsilon: Tensor | None = None,
        learning_rate: Tensor | None = None, task_weights: Tensor | None = None, statistics: Tensor | None = None,
        total: Tensor | None = None, num_updates: int = 0, updates: bool = True,
    ) -> None:  # fmt: skip
        seeds, num_tasks, envs = fields[0].shape
        parameters = torch.stack([value.flatten() for value in vars(tasks).values()], dim=-1).contiguous()
        numbers, seed_numbers = numbers.contiguous(), self.problem.seeds.contiguous()
        kept = [moment for pair in moments or [] for moment in pair]

        class Args(ctypes.Structure):
            _fields_ = [
                *((count, ctypes.c_int64) for count in _COUNTS),
                ("seed_numbers", ctypes.c_void_p), ("task_numbers", ctypes.c_void_p), ("parameters", ctypes.c_void_p),
                ("state", ctypes.c_void_p * len(fields)), ("factors", ctypes.c_void_p * self.modes),
                ("factor_groups", ctypes.c_int64 * self.modes), ("first", ctypes.c_void_p * self.modes),
                ("second", ctypes.c_void_p * self.modes), ("rows", ctypes.c_int64 * self.modes),
                *((pointer, ctypes.c_void_p) for pointer in
                  ("epsilon", "learning_rate", "task_weights", "statistics", "total")),
                ("gamma", self.real),
            ]  # fmt: skip

        args = Args(seeds, groups, num_tasks, envs, steps, first_step, int(updates), num_updates, num_threads())
        args.seed_numbers, args.task_numbers, args.parameters = map(_pointer, (seed_numbers, numbers, parameters))
        args.state[:] = [_pointer(field) for field in fields]
        args.factors[:] = [_pointer(factor) for factor in factors]
        args.factor_groups[:] = [factor.shape[1] for factor in factors]
        args.rows[:] = [factor.shape[2] for factor in factors]
        if kept:
            args.first[:] = [_pointer(first) for first, _ in moments or []]
            args.second[:] = [_pointer(second) for _, second in moments or []]
        given = {"epsilon": epsilon, "learning_rate": learning_rate, "task_weights": task_weights,
                 "statistics": statistics, "total": total}  # fmt: skip
        for pointer, tensor in given.items():
            setattr(args, pointer, None if tensor is None else _pointer(tensor))
        args.gamma = self.problem.gamma
        assert ctypes.sizeof(args) == self._library.torchq_size()
        getattr(self._library, name)(ctypes.byref(args))


def num_threads() -> int:
    """All processors that this process may use, or OMP_NUM_THREADS of them."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS", available))


def _pointer(tensor: Tensor) -> int | None:
    assert tensor.is_contiguous()
    return tensor.data_ptr() or None


def _own_fields(env_state: Any) -> tuple[list[Tensor], Any]:
    """Copies of the floating-point fields of a state, and how to make a state of them some steps later."""
    names = list(env_state._fields)
    fields = [getattr(env_state, name).clone(memory_format=torch.contiguous_format) for name in names]

    def rebuilt(after: list[Tensor], steps: int) -> Any:
        return env_state._replace(**dict(zip(names, after, strict=True)))

    return fields, rebuilt
