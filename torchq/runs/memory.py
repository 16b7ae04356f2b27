"""Whether a run fits in memory, estimated before anything is allocated."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch

from torchq.errors import UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.config import Config
from torchq.engines.rollout import Problem

_WORDS_PER_TRANSITION = 40
"""8-byte words of state, random numbers and transition that an environment needs in any engine, generously."""


class Need(NamedTuple):
    """Bytes of a run."""

    learner: int
    """Of tensors and moments, and of their successors while a step makes them."""
    per_env: int
    """Of one more environment in every task and run."""


def needed(config: Config, problem: Problem, num_tasks: int) -> Need:
    """Estimate for a run, from its sizes alone.

    Args:
        config: "auto" counts as "fused", the engine that needs least.
        problem: learner and environment.
        num_tasks: M.
    """
    size = torch.finfo(problem.dtype).bits // 8
    learner, runs = problem.learner, len(problem.seeds)
    if isinstance(learner, LowRankQ):
        moments = 0 if learner.optimizer == "sgd" else 2
        entries = learner.groups * sum(learner.sizes) * learner.rank * (1 + moments)
        row = learner.rank * (problem.env.num_actions + 4 * len(learner.sizes))
    else:
        entries = num_tasks * math.prod(problem.grid.mode_sizes) * problem.env.num_actions
        row = problem.env.num_actions
    temporary = 0 if config.engine in ("auto", "fused") else row * size
    copies, parts = 2, 0
    if problem.seeds.device.type == "cuda":
        copies = 6  # Graphs keep buffers of their own.
        if isinstance(learner, LowRankQ) and config.protocol == "batched":
            blocks = min(1024, num_tasks // learner.groups * -(-config.num_envs // 16))
            parts = blocks * learner.groups * sum(problem.grid.mode_sizes) * learner.rank
    return Need(runs * (copies * entries + parts) * size, runs * num_tasks * (8 * _WORDS_PER_TRANSITION + temporary))


def available(device: torch.device) -> int | None:
    """Bytes free on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = getattr(os, "sysconf_names", {}).get("SC_AVPHYS_PAGES")
        return None if pages is None else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check(config: Config, problem: Problem, num_tasks: int, free: int | None) -> None:
    """Refuse a run that needs more than there is.

    Raises:
        UsageError: with what would fit.
    """
    need = needed(config, problem, num_tasks)
    total = need.learner + config.num_envs * need.per_env
    if free is None or total <= free:
        return
    came = f"this one needs about {_shown(total)}, {_shown(free)} are free"
    fitting = (free - need.learner) // need.per_env
    if fitting >= 1:
        raise UsageError(f"--num-envs: expected a run that fits in memory, but {came}; up to {fitting:,} would fit")
    runs = len(problem.seeds) * free // (need.learner + need.per_env)
    if runs >= 1:
        raise UsageError(
            f"--num-seeds: expected a run that fits in memory, but {came}; with --num-envs 1, up to {runs:,} would fit"
        )
    share = free / (need.learner + need.per_env) * len(problem.seeds)
    advice = f"with one seed and environment, {share:.1%} of these tasks times this rank would fit"
    raise UsageError(f"--num-tasks, --rank: expected a run that fits in memory, but {came}; {advice}")


def _shown(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**28 else f"{count / 2**20:,.1f} MiB"
