"""The Triton program of the online protocol: tensors to the kernel and back."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from torchq.engines.protocols import Tables
from torchq.engines.rollout import Problem, Statistics
from torchq.lowrank.low_rank_q import LowRankQ, LowRankState
from torchq.lowrank.optim import Moments


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
    if learner.update_order == "joint" and max(problem.grid.mode_sizes) > MAX_ROWS:
        return f"joint updates need state modes of at most {MAX_ROWS} rows"
    return None


STRICT: dict[str, Any] = {"enable_fp_fusion": False}
"""No fused multiply-adds: a state that is a rounding error off can fall on another grid point than in eager mode. In
double precision the rest rounds as in eager mode too; in single, divisions and roots are off by a unit or two."""

_ROWS = 32
MAX_ROWS = 256


def power_of_two(size: int) -> int:
    """The next power of two, at least 1."""
    return 1 << (size - 1).bit_length()


def constants(problem: Problem, num_fields: int, num_parameters: int) -> dict[str, Any]:
    """What every kernel is compiled for."""
    learner, grid, env = problem.learner, problem.grid, problem.env
    assert isinstance(learner, LowRankQ)
    observe, step = env.triton_step()  # type: ignore[attr-defined]
    return {
        "OBSERVE": observe, "STEP": step, "FIELDS": num_fields, "PARAMETERS": num_parameters,
        "UNIFORMS": env.num_step_uniforms, "SIZES": tuple(learner.sizes), "LOW": tuple(grid.low),
        "HIGH": tuple(grid.high), "GRID": tuple(grid.sizes), "DIMENSIONS": len(grid.sizes), "JOINT": grid.joint,
        "HAS_TASK": int(learner.has_task_mode), "MODES": len(learner.sizes), "ACTIONS": env.num_actions,
        "RANK": learner.rank, "RANK_P": power_of_two(learner.rank), "GAMMA": problem.gamma, **STRICT,
    }  # fmt: skip


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies for a kernel to change, made in one launch."""
    given = list(tensors)
    copies = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]
    torch._foreach_copy_(copies, given)
    return copies


def own_moments(learner: LowRankState) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the first and of the second moments."""
    return own(moment.first for moment in learner.moments), own(moment.second for moment in learner.moments)


def own_fields(env: Any) -> dict[str, Tensor]:
    """Copies of the fields of a state but the steps elapsed, by name."""
    names = [name for name in env._fields if name != "elapsed"]
    return dict(zip(names, own(getattr(env, name) for name in names), strict=True))


def parameters(tasks: Any) -> Tensor:
    """Task parameters in columns."""
    return torch.stack([value.flatten() for value in vars(tasks).values()], dim=-1).contiguous()


def episodes_ended(problem: Problem, env: Any, steps: int) -> Tensor:
    """Episodes that end during some steps, mean over environments; (seeds, tasks)."""
    return ((env.elapsed + steps) // problem.env.episode_length).to(problem.dtype).mean(-1)


def counter(value: int | Tensor, device: torch.device) -> Tensor:
    """A counter on the device, shape (1,); a tensor is one already."""
    return value if isinstance(value, Tensor) else torch.full((1,), value, device=device, dtype=torch.int64)


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
        from torchq.engines.gpu import online_kernels

        problem, sweeps, sizes = self.problem, self.learner.num_sweeps, self.learner.sizes
        device, steps = problem.seeds.device, len(rates.epsilon)
        # A tensor of its own, for kernels are compiled anew for a slice that is aligned otherwise.
        numbers = torch.arange(self.learner.num_tasks, device=device) if task is None else task.clone()
        assert len(numbers) == 1 or self.learner.groups == self.learner.num_tasks
        factors, (ones, twos), fields = own(learner.factors), own_moments(learner), own_fields(env)
        columns = parameters(tasks)
        runs = len(problem.seeds) * len(numbers)
        sums = torch.zeros(runs, 3, device=device, dtype=problem.dtype)
        online_kernels.train[(runs,)](
            tuple(factors), tuple(ones), tuple(twos), tuple(fields.values()), columns, problem.seeds, numbers,
            rates.epsilon, rates.learning_rate, sums, self._weights[numbers], counter(first, device),
            learner.num_updates, steps, len(numbers),
            SIZES_P=tuple(min(_ROWS, power_of_two(size)) for size in sizes),
            ACTIONS_P=power_of_two(problem.env.num_actions), SWEEPS=sweeps,
            **constants(problem, len(fields), columns.shape[1]),
        )  # fmt: skip
        after = LowRankState(tuple(factors), tuple(map(Moments, ones, twos)), learner.num_updates + steps * sweeps)
        reward, absolute, squared = sums.view(*statistics.reward.shape, 3).unbind(-1)
        seen = (reward, episodes_ended(problem, env, steps), absolute, squared)
        totals = (old + new for old, new in zip(statistics, seen, strict=True))
        return after, env._replace(elapsed=env.elapsed + steps, **fields), Statistics(*totals)
