"""Places between two rounds, and how a run is saved at one and goes on from it, whoever shares it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchq import checkpoint, tree
from torchq.engines.contract import RunState
from torchq.errors import CheckpointError, DivergedError
from torchq.runs.experiment import Experiment
from torchq.runs.folder import SUMMARY
from torchq.runs.metrics import check_own, read_metrics
from torchq.runs.replay_log import ReplayLog, clean
from torchq.runs.share import Cut


class Position(NamedTuple):
    """A place between two rounds, from which a run can go on."""

    state: RunState
    episode: int
    """Rounds played."""
    metrics_size: int
    """Bytes of metrics.csv."""
    seconds: float
    """Wall time spent."""
    read_episode: int
    """Rounds played when the statistics were last read."""
    read_seconds: float
    """Wall time spent by then."""
    metrics_digest: str = ""
    """Of those bytes; "" of a checkpoint that does not know it."""
    segments: tuple[Any, ...] = ()
    """Of stored transitions that lie beside the checkpoint, see `ReplayLog`."""


_COUNTERS = {"episode": int, "metrics_size": int, "seconds": float, "read_episode": int, "read_seconds": float}
"""Of a position, with their types."""


def beginning(experiment: Experiment) -> Position:
    """Before the first round."""
    return Position(experiment.initial_state, 0, 0, 0.0, 0, 0.0)


def num_stored(experiment: Experiment, episode: int) -> int:
    """Transitions of each task so far."""
    return episode * experiment.rollout.env.episode_length * experiment.config.num_envs


def log_of(experiment: Experiment, folder: Path, segments: Any = ()) -> ReplayLog:
    """Stored transitions of this rank's part of a run."""
    return ReplayLog(folder / "checkpoint", experiment.config.replay_capacity, segments, experiment.share.which)


def save(experiment: Experiment, folder: Path, here: Position, log: ReplayLog) -> None:
    """Checkpoint a position: every rank writes its part, then the first lets these be the checkpoint.

    Raises:
        DivergedError: if something in it is not finite; the checkpoint before it stays.
    """
    share, path = experiment.share, folder / "checkpoint"
    tensors = tree.flatten(here.state._replace(replay=()))
    if not tree.all_finite(tensors) and (bad := tree.not_finite(tensors)):
        seed = experiment.config.seed + share.own.seeds[0] + bad[1]
        raise DivergedError(diverged(f"{bad[0]} (seed {seed})", here.read_episode + 1, here.episode, folder))
    tensors |= {f"learner.task_places.{mode}": places for mode, places in enumerate(experiment.places)}
    part = checkpoint.write_part(path, tensors, here.episode, share.which)
    stored = log.append(here.state.replay, num_stored(experiment, here.episode)) if experiment.rollout.replay else []
    found = share.ranks.gathered((part, stored, log.names))
    if not found:
        return
    counters = {name: getattr(here, name) for name in (*_COUNTERS, "metrics_digest")}
    counters |= {"algo": experiment.config.algo}
    if len(found) > 1:
        counters |= {"cuts": share.cuts}
    if experiment.rollout.replay:
        counters["replay"] = [segments for _, segments, _ in found] if len(found) > 1 else stored
    axes = {name: share.axis(name, tensor, experiment.rollout.learner) for name, tensor in tensors.items()}
    along = {name: axis for name, axis in axes.items() if axis is not None}
    checkpoint.switch(path, [one for one, _, _ in found], along, counters)
    clean(path, set().union(*(names for _, _, names in found)))


def diverged(what: str, first: int, last: int, folder: Path) -> str:
    """What is said where a value is not finite."""
    way = "there is no checkpoint yet: start again with a lower `learning_rate`"
    if (folder / "checkpoint" / "checkpoint.json").exists():
        way = f"the last good checkpoint is kept: go on with `resume=True` `out={folder}` and a lower `learning_rate`"
    return (
        f"training stopped: {what} became NaN or infinite between episodes {first} and {last}; check the environment's "
        f"rewards; {way}"
    )


def load(experiment: Experiment, folder: Path) -> Position:
    """Where the checkpoint of a run folder stands, or the beginning if it was killed before its first.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded, or does not fit the experiment or metrics.csv.
    """
    loaded = checkpoint.load_checkpoint(folder / "checkpoint", experiment.config.algo)
    if loaded is None:
        if (folder / SUMMARY).exists():
            raise CheckpointError(f"checkpoint: the finished run in {folder} has lost it; start a new run")
        return beginning(experiment)
    tensors, counters = loaded
    try:
        values = [kind(counters[name]) for name, kind in _COUNTERS.items()]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: its counters are corrupted ({error!r}); start a new run") from error
    if min(values) < 0:
        raise CheckpointError("checkpoint: expected counters of at least 0; it is corrupted, start a new run")
    memory = experiment.initial_state.replay
    own = {name: experiment.part(name, tensor) for name, tensor in tensors.items()}
    state = tree.unflatten(experiment.initial_state._replace(replay=()), own)._replace(replay=memory)
    segments = _restored(experiment, folder, memory, counters, values[0]) if experiment.rollout.replay else ()
    digest = str(counters.get("metrics_digest", ""))
    if digest:
        check_own(folder, values[1], digest)
    here = Position(state, *values, digest, segments)  # type: ignore[call-arg]
    if here.read_episode:
        read_metrics(folder, experiment.config.num_seeds, len(experiment.task_list))
    return here


def _restored(experiment: Experiment, folder: Path, memory: Tensor, counters: dict[str, Any], episode: int) -> Any:
    """Fill a memory with the stored transitions of a checkpoint; the segments that its log goes on with."""
    share, listed, count = experiment.share, counters.get("replay", ()), num_stored(experiment, episode)
    path, capacity = folder / "checkpoint", experiment.config.replay_capacity
    if "cuts" not in counters and share.by == "whole":
        ReplayLog(path, capacity, listed).restore(memory, count)
        return listed
    try:
        cuts = [Cut(*map(tuple, cut)) for cut in counters["cuts"]] if "cuts" in counters else [experiment.whole]
        parts = listed if "cuts" in counters else [listed]
        for number, (cut, segments) in enumerate(zip(cuts, parts, strict=True)):
            if (overlap := share.own.overlap(cut)) is None:
                continue
            which = f"{number}of{len(cuts)}" if "cuts" in counters else ""
            mine, theirs = overlap
            ReplayLog(path, capacity, segments, which).restore(memory[mine.seeds, mine.tasks], count, theirs)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: its parts are corrupted ({error!r}); start a new run") from error
    return listed[share.ranks.index] if tuple(cuts) == share.cuts else ()
