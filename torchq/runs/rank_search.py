"""An automatic rank: short pilots with larger and larger tensors, for as long as the error falls.

The rule comes from benchmarks/results/sharing.md: a pilot with the next rank must lower the mean squared TD error of
its last third by 15%. Its samples are not counted among those of the run that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchq.config import Config
from torchq.engines import torch_settings
from torchq.errors import UsageError
from torchq.runs.experiment import prepare

RANKS = (8, 15, 30, 60)
_SAMPLES, _PARTS, _GAIN, _SEEDS = 3000, 3, 0.15, 8


@torch.no_grad()
def search_rank(config: Config, env: Any, tell: Callable[[str], None]) -> int:
    """The last rank whose pilot paid.

    Args:
        config: of the run, with any rank.
        env: the family.
        tell: takes a line about each pilot.

    Raises:
        UsageError: if the run starts from another, whose rank it has.
    """
    if config.warm_start is not None or config.adapt_from is not None:
        raise UsageError("`rank`: expected that of the run to start from, got auto; leave it out")
    part = -(-_SAMPLES // (_PARTS * env.episode_length * config.num_envs))
    pilot = config.replace(episodes=_PARTS * part, eval_every=part, num_seeds=min(config.num_seeds, _SEEDS))
    chosen, before = RANKS[0], float("inf")
    for rank in RANKS:
        error = _error(pilot.replace(rank=rank), env)
        pays = error < (1.0 - _GAIN) * before
        verdict = "" if before == float("inf") else ", which pays" if pays else ", which does not pay"
        tell(f"rank {rank}: mean squared TD error {error:.4g} after {pilot.episodes} episodes{verdict}")
        if not pays:
            break
        chosen, before = rank, error
    return chosen


def _error(config: Config, env: Any) -> float:
    """Mean squared TD error over the last part of a pilot."""
    experiment = prepare(config, env)
    try:
        with torch_settings.threads_kept():
            torch_settings.limit_threads(experiment.work)
            _, evaluations = experiment.play_block(experiment.initial_state, 0, config.episodes)
    finally:
        experiment.close()
    last = evaluations[-1].statistics.squared_error.double()
    return float(last.mean()) / (config.eval_every * env.episode_length)
