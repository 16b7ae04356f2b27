"""Whether a run fits in memory, estimated before anything is allocated."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import NamedTuple

import torch

from torchq.config import ENGINES, Config
from torchq.engines.external import ExternalEnvironment
from torchq.engines.rollout import Rollout
from torchq.errors import UsageError
from torchq.lowrank import replay
from torchq.lowrank.low_rank_q import LowRankQ

_WORDS_PER_TRANSITION = 48
"""8-byte words of state, random numbers and transition that an environment needs in any engine, generously."""


_FUSED_PER_DRAWN = 32
"""Bytes that a fused program keeps of each stored transition that it draws."""
_COPIES_OF_ACTIONS = 4
"""Of an episode's actions, which are kept to repeat them: in states and beside environments, of training and tests."""
_BYTES_PER_SAMPLE = {"lspi": 2000, "program": 8000}
"""Of a study, roughly."""
_SHARE_FOR_REPLAY = 0.5
"""Of free memory, at most."""


class Need(NamedTuple):
    """Bytes of a run."""

    learner: int
    """Of tensors and moments, and of their successors while a step makes them."""
    per_env: int
    """Of one more environment in every task and run."""
    replay: int = 0
    """Of stored transitions, and of those that an update draws."""
    tests: int = 0
    """Of the episodes of a test."""


def replay_slots(config: Config, episode_length: int) -> int:
    """Slots for the transitions of a task: for those that are drawn from, and for some rounds that come after."""
    if config.replay_ratio == 0:
        return 0
    a_round = episode_length * config.num_envs
    return min(config.episodes * a_round, config.replay_capacity + max(a_round, config.replay_capacity // 4))


def replay_bytes(config: Config, num_modes: int, episode_length: int) -> int:
    """Bytes of all stored transitions of a run."""
    return replay_slots(config, episode_length) * _bytes_of_one(config, num_modes)


def _bytes_of_one(config: Config, num_modes: int) -> int:
    """Bytes of one stored transition of every task and run."""
    size = torch.finfo(getattr(torch, config.dtype)).bits // 8
    return config.num_seeds * int(config.num_tasks or 1) * replay.width(num_modes) * size


def affordable_capacity(config: Config, num_modes: int, episode_length: int, free: int | None) -> int:
    """The replay capacity of a configuration, or as much of it as memory allows.

    Args:
        config: hyper-parameters.
        num_modes: state modes.
        episode_length: steps of a round.
        free: bytes; None where the system does not say.
    """
    if free is None:
        return config.replay_capacity
    slots = int(_SHARE_FOR_REPLAY * free) // _bytes_of_one(config, num_modes)
    if replay_slots(config, episode_length) <= slots:
        return config.replay_capacity
    return max(1, min(config.replay_capacity, 4 * slots // 5))  # With room to write.


def needed(config: Config, rollout: Rollout, engine: str) -> Need:
    """Estimate for a run, from its sizes alone.

    Args:
        config: hyper-parameters.
        rollout: learner and environment.
        engine: by name; "fused" needs least.
    """
    size = torch.finfo(rollout.dtype).bits // 8
    learner, runs, num_tasks = rollout.learner, len(rollout.seeds), rollout.num_tasks
    if isinstance(learner, LowRankQ):
        moments = 0 if learner.optimizer == "sgd" else 2
        target = 0 if learner.target_rate is None else 1
        entries = learner.groups * sum(learner.sizes) * learner.rank * (1 + moments + target)
        interpolated = sum(mode.interpolates for mode in rollout.grid.modes)
        row = learner.rank * (rollout.env.num_actions + 4 * len(learner.sizes) + 8 * interpolated)
    else:
        entries = num_tasks * math.prod(rollout.grid.mode_sizes) * rollout.env.num_actions
        row = rollout.env.num_actions
    temporary = 0 if engine == "fused" else row * size
    config = config.replace(num_tasks=num_tasks, num_seeds=runs)  # Of those that learn here.
    stored, again, growing = 0, 0, 0
    if rollout.replay:
        num_modes, length = len(rollout.grid.mode_sizes), rollout.env.episode_length
        if replay_slots(config, length) == config.replay_capacity + length * config.num_envs:
            growing = length * _bytes_of_one(config, num_modes)  # Room for a round of one more environment.
        stored = replay_bytes(config, num_modes, length) - growing * config.num_envs
        each = _FUSED_PER_DRAWN if engine == "fused" else 8 * _WORDS_PER_TRANSITION + temporary
        again = runs * num_tasks * rollout.replay.batch * each
    copies, parts = 2, 0
    if rollout.device.type == "cuda":
        copies, stored, growing = 6, 3 * stored, 3 * growing  # Graphs keep buffers of their own.
        if isinstance(learner, LowRankQ) and config.protocol == "batched":
            blocks = min(1024, num_tasks // learner.groups * -(-config.num_envs // 16))
            parts = blocks * learner.groups * sum(rollout.grid.mode_sizes) * learner.rank
    learnt = runs * (copies * entries + parts) * size
    outside = isinstance(rollout.env, ExternalEnvironment)
    episode = _COPIES_OF_ACTIONS * 4 * rollout.env.episode_length if outside else 0
    each = 8 * _WORDS_PER_TRANSITION + temporary + episode
    tests = runs * rollout.num_tested * config.eval_episodes * each
    return Need(learnt, runs * num_tasks * each + growing, stored + again, tests)


def available(device: torch.device) -> int | None:
    """Bytes free on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(min(int(lines["MemAvailable"].split()[0]) * 1024, _left_by_limit()))
    except (OSError, KeyError, ValueError):
        pages = getattr(os, "sysconf_names", {}).get("SC_AVPHYS_PAGES")
        return None if pages is None else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_limit() -> float:
    """Bytes of addresses that `ulimit -v` leaves this process."""
    with suppress(ImportError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                return max(0, limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def check_study(config: Config) -> None:
    """See that the data sets of a study fit in memory.

    Raises:
        UsageError: if they do not.
    """
    free = available(torch.device("cpu"))
    need = max(config.sizes) * _BYTES_PER_SAMPLE["lspi" if config.algo == "lspi" else "program"]
    if free is not None and need > free:
        came = f"{max(config.sizes):,} samples need about {shown(need)}, {shown(free)} are free"
        raise UsageError(f"`sizes`: expected data sets that fit in memory, but {came}")


def too_large(config: Config, rollout: Rollout, free: int | None) -> dict[str, str]:
    """Engines whose runs need more than there is, with what would fit.

    Args:
        config: with the engine asked for.
        rollout: learner and environment.
        free: bytes; None where the system does not say.

    Raises:
        UsageError: if the engine asked for is among them, or with "auto" all are.
    """
    found = {}
    for engine in ENGINES if free is not None else ():
        if engine != "auto" and (advice := _advice(config, rollout, needed(config, rollout, engine), free or 0)):
            found[engine] = advice
    least = "external" if isinstance(rollout.env, ExternalEnvironment) else "fused"
    if refused := found.get(least if config.engine == "auto" else config.engine):
        raise UsageError(refused)
    return found


def _advice(config: Config, rollout: Rollout, need: Need, free: int) -> str | None:
    """What would fit where this does not."""
    fixed = need.learner + need.replay
    total = fixed + config.num_envs * need.per_env
    if total <= free:
        if fixed + need.tests <= free:  # They come one after the other.
            return None
        came = f"these need about {shown(need.tests)}, {shown(free)} are free"
        return f"`eval_episodes`, `eval_tasks`: expected tests that fit in memory, but {came}"
    came = f"this one needs about {shown(total)}, {shown(free)} are free"
    fitting = (free - fixed) // need.per_env
    if fitting >= 1:
        return f"`num_envs`: expected a run that fits in memory, but {came}; up to {fitting:,} would fit"
    runs = len(rollout.seeds) * free // (fixed + need.per_env)
    if runs >= 1:
        return (
            f"`num_seeds`: expected a run that fits in memory, but {came}; with `num_envs=1`, up to {runs:,} would fit"
        )
    share = free / (fixed + need.per_env) * len(rollout.seeds)
    advice = f"with one seed and environment, {share:.1%} of these tasks times this rank would fit"
    return f"`num_tasks`, `rank`: expected a run that fits in memory, but {came}; {advice}"


def capacity(config: Config, episode_length: int, num_modes: int, free: int | None) -> tuple[int, str | None]:
    """The replay capacity that memory allows, and what the user should know about it."""
    if config.replay_ratio == 0:
        return config.replay_capacity, None
    most = affordable_capacity(config, num_modes, episode_length, free)
    kept = f"the latest {config.replay_recent:.0%} of each task's, at most {most:,}"
    if most < config.replay_capacity:
        kept += f", not {config.replay_capacity:,}: that is what memory allows"
    config = config.replace(replay_capacity=most)
    size = shown(replay_bytes(config, num_modes, episode_length))
    updates = f"{config.replay_ratio} update{'s' if config.replay_ratio > 1 else ''} a step"
    drawn = f"{config.num_envs} new and {config.replay_batch} stored transitions of each task"
    return most, f"replay: {updates}, from {drawn}, drawn from {kept} ({size})"


def shown(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**28 else f"{count / 2**20:,.1f} MiB"
