"""The Triton program of the online protocol: tensors to the kernel and back."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from torchq.learners import LowRankQ
from torchq.learners.lowrank import LowRankState
from torchq.optim import Moments
from torchq.protocols import Tables
from torchq.rollout import Problem, Statistics


def obstacle(problem: Problem) -> str | None:
    """What keeps the Triton program from running a problem, in one line; None if nothing does."""
    learner, env = problem.learner, problem.env
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if problem.seeds.device.type != "cuda" and not interpreted:
        return f"Triton needs a GPU, got {problem.seeds.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; install it with: pip install triton"
    if not isinstance(learner, LowRankQ):
        return "it needs stlrq, lrq or clrq"
    if getattr(env, "triton_step", None) is None:
        return f"{env.name} has no step in Triton"
    default = dataclasses.replace(type(env)(), episode_length=env.episode_length)  # type: ignore[type-var]
    if env != default:
        return f"its step has the default constants of {env.name}"
    if learner.optimizer != "adamax" or learner.normalised or len(learner.action_sizes) != 1:
        return "it needs plain Adamax steps and one action mode"
    if learner.update_order == "block" and problem.num_envs != 1:
        return "blocks of modes need --num-envs 1"
    if learner.update_order == "joint" and learner.num_sweeps != 1:
        return "joint updates need one sweep"
    return None


def power_of_two(size: int) -> int:
    """The next power of two, at least 1."""
    return 1 << (size - 1).bit_length()


def own_tensors(tasks: Any, learner: LowRankState, env: Any) -> tuple[Any, ...]:
    """Copies for a kernel to change: factors, both moments, names and fields of the state; and task parameters."""
    factors, ones, twos = (
        [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        for tensors in (learner.factors, [m.first for m in learner.moments], [m.second for m in learner.moments])
    )
    names = [name for name in env._fields if name != "elapsed"]
    fields = [getattr(env, name).clone(memory_format=torch.contiguous_format) for name in names]
    parameters = torch.stack([value.flatten() for value in vars(tasks).values()], dim=-1).contiguous()
    return factors, ones, twos, names, fields, parameters


class OnlineProgram:
    """Whole episodes of the online protocol in one launch, a program for each run.

    Args:
        problem: without an `obstacle`.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        assert isinstance(problem.learner, LowRankQ)
        self.learner = problem.learner
        device = problem.seeds.device
        weights = self.learner.task_weights or (1.0,) * self.learner.num_tasks
        self._weights = self.learner.loss_scale * torch.tensor(weights, dtype=problem.dtype, device=device)

    def train(
        self, tasks: Any, learner: LowRankState, env: Any, statistics: Statistics, first: int, rates: Tables,
        task: Tensor | None,
    ) -> tuple[LowRankState, Any, Statistics]:  # fmt: skip
        """Consecutive steps with their updates; arguments as in `protocols.Advance`, and left as they were.

        The batch must be one task, or tasks that share nothing.
        """
        from torchq.fused import kernels

        problem, grid, own = self.problem, self.problem.grid, self.learner
        device, steps = problem.seeds.device, len(rates.epsilon)
        numbers = torch.arange(own.num_tasks, device=device) if task is None else task
        assert len(numbers) == 1 or own.groups == own.num_tasks
        factors, first_moments, second_moments, names, fields, parameters = own_tensors(tasks, learner, env)
        runs = len(problem.seeds) * len(numbers)
        sums = torch.zeros(runs, 3, device=device, dtype=problem.dtype)
        observe, step = problem.env.triton_step()  # type: ignore[attr-defined]
        kernels.train[(runs,)](
            tuple(factors), tuple(first_moments), tuple(second_moments), tuple(fields), parameters, problem.seeds,
            numbers, rates.epsilon, rates.learning_rate, sums, self._weights[numbers], first,
            int(learner.num_updates), steps, len(numbers), problem.gamma,
            OBSERVE=observe, STEP=step, FIELDS=len(fields), PARAMETERS=parameters.shape[1],
            UNIFORMS=problem.env.num_step_uniforms, SIZES=tuple(own.sizes),
            SIZES_P=tuple(map(power_of_two, own.sizes)), LOW=tuple(grid.low), HIGH=tuple(grid.high),
            GRID=tuple(grid.sizes), DIMENSIONS=len(grid.sizes), JOINT=grid.joint, HAS_TASK=int(own.has_task_mode),
            MODES=len(own.sizes), ACTIONS=problem.env.num_actions, ACTIONS_P=power_of_two(problem.env.num_actions),
            RANK=own.rank, RANK_P=power_of_two(own.rank), SWEEPS=own.num_sweeps,
        )  # fmt: skip
        moments = tuple(Moments(*pair) for pair in zip(first_moments, second_moments, strict=True))
        after = LowRankState(tuple(factors), moments, learner.num_updates + steps * own.num_sweeps)
        reward, absolute, squared = sums.view(*statistics.reward.shape, 3).unbind(-1)
        ended = torch.full_like(reward, steps // problem.env.episode_length)
        totals = (old + new for old, new in zip(statistics, (reward, ended, absolute, squared), strict=True))
        return (
            after,
            env._replace(elapsed=env.elapsed + steps, **dict(zip(names, fields, strict=True))),
            Statistics(*totals),
        )
