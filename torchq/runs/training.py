"""The training loop: rounds, evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from torchq.engines.torch_settings import wait_for
from torchq.runs import positions, summary
from torchq.runs.experiment import Experiment
from torchq.runs.positions import Position
from torchq.runs.recorder import Recorder
from torchq.runs.replay_log import ReplayLog

CHECKPOINT_SECONDS = 15.0
_LONG, _SHARE_OF_CHECKPOINTS = 1.5, 0.1
"""Seconds of a checkpoint that takes long, and the share of the time that such ones take at most."""
BLOCK_SECONDS = 0.5
"""Of rounds played in one call: long enough to hide it, short enough for progress and Ctrl-C."""
MAX_STARTS = 1 << 20
"""Of episodes prepared at a time, where episodes are short: they are held in memory."""


@torch.no_grad()
def train(
    experiment: Experiment,
    folder: Path,
    *,
    start: Position | None = None,
    progress: bool | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train until the last episode, and write everything that a run folder holds.

    Every rank plays its part of each block; what their tests find goes to the first, which writes, and says when.

    Args:
        experiment: from `prepare`.
        folder: the run folder, with its config.json.
        start: where to go on, from `positions.load`; None for a new run.
        progress: whether to show a bar; None shows it on a terminal, and elsewhere tells a line now and then.
        tell: takes these lines.

    Raises:
        CheckpointError: if metrics.csv does not fit the checkpoint.
        DivergedError: if a value that is not finite was met; the last good checkpoint stays.
        RankError: if another rank cannot be reached.
    """
    config, rollout, ranks = experiment.config, experiment.rollout, experiment.share.ranks
    here = start or positions.beginning(experiment)
    log = positions.log_of(experiment, folder, here.segments)
    recorder = Recorder(experiment, folder, here, start is not None, progress, tell) if ranks.index == 0 else None
    begun, saved, took, count = time.monotonic() - here.seconds, here.seconds, 0.0, 1
    episodes_a_round = len(rollout.seeds) * rollout.num_tested * max(config.num_envs, config.eval_episodes)
    longest = min(max(1, MAX_STARTS // episodes_a_round), experiment.longest_block)
    try:
        while here.episode < config.episodes:
            count = ranks.agree(min(count, longest, config.episodes - here.episode))
            state, evaluations = experiment.play_block(here.state, here.episode, count)
            wait_for(rollout.device)
            after = here._replace(state=state, episode=here.episode + count, seconds=time.monotonic() - begun)
            wanted = count * min(BLOCK_SECONDS, CHECKPOINT_SECONDS) / max(after.seconds - here.seconds, 1e-9)
            found = experiment.share.joined(ranks.gathered(evaluations))
            here = recorder.record(found, here, after) if recorder else after
            pause = took / _SHARE_OF_CHECKPOINTS if took > _LONG else 0.0
            due = here.episode == config.episodes or here.seconds - saved > max(CHECKPOINT_SECONDS, pause)
            if ranks.numbers(int(due))[0, 0]:
                _save(experiment, folder, here, log, recorder)
                saved, took = here.seconds, time.monotonic() - begun - here.seconds
            count = max(1, min(int(wanted), 4 * count))
        if recorder:
            recorder.conclude(here)
    except KeyboardInterrupt:
        _save(experiment, folder, here, log, recorder)
        raise
    finally:
        if recorder:
            recorder.close()
    if recorder:
        summary.write(experiment, folder, here.seconds)
    ranks.numbers(0)  # Nobody leaves before there is one.


def _save(experiment: Experiment, folder: Path, here: Position, log: ReplayLog, recorder: Recorder | None) -> None:
    if recorder:
        recorder.metrics.sync()
    positions.save(experiment, folder, here, log)
