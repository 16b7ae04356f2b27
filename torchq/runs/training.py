"""The training loop: rounds, evaluations, checkpoints, and the files of a run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torchq import checkpoint, tree
from torchq.config import Config
from torchq.engines.contract import Evaluation, RunState, Statistics
from torchq.engines.external import ExternalEnvironment
from torchq.engines.rollout import Rollout
from torchq.engines.torch_settings import wait_for
from torchq.errors import CheckpointError, DivergedError
from torchq.runs import policy_picture, summary
from torchq.runs.experiment import Experiment
from torchq.runs.folder import SUMMARY
from torchq.runs.metrics import MetricsFile, TensorBoard, check_own, read_metrics
from torchq.runs.policy import GridPolicy
from torchq.runs.replay_log import ReplayLog

CHECKPOINT_SECONDS = 15.0
LINE_SECONDS = 10.0
"""Between two lines of progress, where there is no bar."""
BLOCK_SECONDS = 0.5
"""Of rounds played in one call: long enough to hide it, short enough for progress and Ctrl-C."""
MAX_STARTS = 1 << 20
"""Of episodes prepared at a time, where episodes are short: they are held in memory."""
MAX_TASKS_ON_BOARD = 64


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


@torch.no_grad()
def train(
    experiment: Experiment,
    folder: Path,
    *,
    start: Position | None = None,
    progress: bool | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train until the last episode, and write everything that a run folder holds.

    Args:
        experiment: from `prepare`.
        folder: the run folder, with its config.json.
        start: where to go on, from `load`; None for a new run.
        progress: whether to show a bar; None shows it on a terminal, and elsewhere tells a line now and then.
        tell: takes these lines.

    Returns:
        The content of summary.json.

    Raises:
        CheckpointError: if metrics.csv does not fit the checkpoint.
        DivergedError: if a value that is not finite was met; the last good checkpoint stays.
    """
    from tqdm import tqdm

    config, rollout = experiment.config, experiment.rollout
    here = start or beginning(experiment)
    samples_per_episode = rollout.env.episode_length * config.num_envs
    metrics = MetricsFile(folder, here.metrics_size)
    log = ReplayLog(folder / "checkpoint", config.replay_capacity, here.segments)
    board = TensorBoard(folder, here.episode * samples_per_episode if start else None)
    board.begin(config.model_dump(mode="json"))
    bar = tqdm(
        total=config.episodes, initial=here.episode, unit="ep", disable=None if progress is None else not progress
    )
    begun, saved, told, count = time.monotonic() - here.seconds, here.seconds, here.seconds, 1
    episodes_a_round = len(rollout.seeds) * rollout.num_tested * max(config.num_envs, config.eval_episodes)
    longest = min(max(1, MAX_STARTS // episodes_a_round), experiment.longest_block)
    try:
        while here.episode < config.episodes:
            count = min(count, longest, config.episodes - here.episode)
            state, evaluations = experiment.play_block(here.state, here.episode, count)
            wait_for(rollout.device)
            after = here._replace(state=state, episode=here.episode + count, seconds=time.monotonic() - begun)
            for evaluation in evaluations:
                after, report = _reported(experiment, evaluation, here, after)
                samples = evaluation.episode * samples_per_episode
                metrics.append(evaluation.episode, samples, rollout.seeds.tolist(), evaluation.returns.tolist())
                board.log(report, samples)
                said = (f"return {report['eval/mean_reward']:.1f}, ε {report['rollout/exploration_rate']:.3f}, "
                        f"{report['time/fps']:,.0f} transitions/s")  # fmt: skip
                bar.set_postfix_str(said)
                if progress is None and bar.disable and after.seconds - told > LINE_SECONDS:
                    tell(f"episode {evaluation.episode:,} of {config.episodes:,}: {said}")
                    told = after.seconds
            if evaluations and rollout.replay:
                board.log(_replay_report(experiment, state, here.episode + count), after.episode * samples_per_episode)
            wanted = count * min(BLOCK_SECONDS, CHECKPOINT_SECONDS) / (after.seconds - here.seconds)
            here = after._replace(metrics_size=metrics.size(), metrics_digest=metrics.digest())
            if here.episode == config.episodes or here.seconds - saved > CHECKPOINT_SECONDS:
                metrics.sync()
                _save(experiment, folder, here, log)
                saved = here.seconds
            bar.update(count)
            count = max(1, min(int(wanted), 4 * count))
        _conclude(experiment, here, folder, board, here.episode * samples_per_episode)
    except KeyboardInterrupt:
        metrics.sync()
        _save(experiment, folder, here, log)
        raise
    finally:
        bar.close()
        board.close()
        metrics.close()
    return summary.write(experiment, folder, here.seconds)


def _conclude(experiment: Experiment, here: Position, folder: Path, board: TensorBoard, samples: int) -> None:
    """What a finished run shows in TensorBoard beside its curves."""
    config, rollout = experiment.config, experiment.rollout
    if here.read_episode == 0:
        return
    final = read_metrics(folder, config.num_seeds, len(experiment.task_list)).final_return()
    results = {"final/mean_reward": float(final[:, : experiment.task_set.num_trained].mean())}
    learnt = tree.select(rollout.learner.policy(here.state.learner), 0)
    policy = GridPolicy(rollout.learner, learnt, rollout.grid, rollout.num_tested)
    board.end(config.model_dump(mode="json"), results, policy_picture.picture(policy), samples)


def _diverged(what: str, first: int, last: int) -> str:
    return (
        f"training stopped: {what} became NaN or infinite between episodes {first} and {last}; the last good "
        "checkpoint is kept; check the environment's rewards, or lower `learning_rate`"
    )


def _reported(
    experiment: Experiment, evaluation: Evaluation, before: Position, after: Position
) -> tuple[Position, dict[str, float]]:
    """The position after a block with an evaluation of it read, and the report; time passes evenly in a block."""
    share = (evaluation.episode - before.episode) / (after.episode - before.episode)
    seconds = before.seconds + share * (after.seconds - before.seconds)
    report = _report(experiment, evaluation, after.read_episode, seconds - after.read_seconds)
    return after._replace(read_episode=evaluation.episode, read_seconds=seconds), report


def _report(experiment: Experiment, evaluation: Evaluation, read_episode: int, seconds: float) -> dict[str, float]:
    """Means since the last reading, for TensorBoard; the only place where training reads from the device.

    Raises:
        DivergedError: naming the first task and seed with a value that is not finite, rewards before errors.
    """
    config, episode, first = experiment.config, evaluation.episode, read_episode + 1
    totals = zip(Statistics._fields, evaluation.statistics, strict=True)
    sums = {name: total.double().cpu().numpy() for name, total in totals}
    greedy = evaluation.returns.cpu().numpy()
    for name, values in (("reward", sums["reward"]), ("TD error", sums["squared_error"]), ("greedy return", greedy)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            seed = config.seed + bad[0][0]
            raise DivergedError(_diverged(f"the {name} of task {bad[0][1]} (seed {seed})", first, episode))
    if not evaluation.finite:
        raise DivergedError(_diverged("a factor or its moments", first, episode))
    steps = (episode - read_episode) * experiment.rollout.env.episode_length
    report = {
        "rollout/ep_rew_mean": float((sums["reward"] / np.maximum(sums["episodes"], 1.0)).mean()),
        "rollout/exploration_rate": _epsilon(config, experiment.rollout, episode),
        "time/fps": steps * config.num_envs * sums["reward"].size / seconds,
        "train/td_error": float(sums["absolute_error"].mean() / steps),
        "train/loss": float(0.5 * sums["squared_error"].mean() / steps),
        "eval/mean_reward": float(greedy[:, : experiment.task_set.num_trained].mean()),
    }
    if experiment.task_set.held_out:
        report["eval/held_out_mean_reward"] = float(greedy[:, experiment.task_set.num_trained :].mean())
    shown = greedy.mean(0)[:MAX_TASKS_ON_BOARD]
    return report | {f"eval/mean_reward/{task}": float(value) for task, value in enumerate(shown)}


def _epsilon(config: Config, rollout: Rollout, episode: int) -> float:
    """Exploration rate after some episodes."""
    samples = config.samples_before + episode * rollout.env.episode_length * config.num_envs
    ticks = samples * config.epsilon_clock(rollout.num_tasks)
    return max(config.epsilon_end, config.epsilon_start * math.exp(ticks * math.log(config.epsilon_decay)))


def _replay_report(experiment: Experiment, state: RunState, episode: int) -> dict[str, float]:
    """How full the memory is, and what the target tensor expects from the start of an episode: maxₐ Q̄(s₀, a)."""
    config, rollout = experiment.config, experiment.rollout
    report = {"replay/fill": min(1.0, _num_stored(experiment, episode) / config.replay_capacity)}
    if not isinstance(rollout.env, ExternalEnvironment):  # Where episodes of those start is not known before.
        start = rollout.index(rollout.reset(rollout.test_batch(), episode * rollout.env.episode_length))
        values = rollout.learner.action_values(rollout.learner.policy(state.learner), start).amax(-1)
        report["train/target_value"] = float(values.mean())
    return report


def _save(experiment: Experiment, folder: Path, here: Position, log: ReplayLog) -> None:
    """Checkpoint a position.

    Raises:
        DivergedError: if something in it is not finite; the checkpoint before it stays.
    """
    tensors = tree.flatten(here.state._replace(replay=()))
    if not tree.all_finite(tensors):
        raise DivergedError(_diverged("the state of the run", 1, here.episode))
    counters = {name: getattr(here, name) for name in (*_COUNTERS, "metrics_digest")}
    if experiment.rollout.replay:
        counters["replay"] = log.append(here.state.replay, _num_stored(experiment, here.episode))
    checkpoint.save_checkpoint(folder / "checkpoint", tensors, {"algo": experiment.config.algo, **counters})
    log.clean()


def _num_stored(experiment: Experiment, episode: int) -> int:
    """Transitions of each task so far."""
    return episode * experiment.rollout.env.episode_length * experiment.config.num_envs


def beginning(experiment: Experiment) -> Position:
    """Before the first round."""
    return Position(experiment.initial_state, 0, 0, 0.0, 0, 0.0)


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
    memory, segments = experiment.initial_state.replay, counters.get("replay", ())
    state = tree.unflatten(experiment.initial_state._replace(replay=()), tensors)._replace(replay=memory)
    if experiment.rollout.replay:
        log = ReplayLog(folder / "checkpoint", experiment.config.replay_capacity, segments)
        log.restore(memory, _num_stored(experiment, values[0]))
    digest = str(counters.get("metrics_digest", ""))
    if digest:
        check_own(folder, values[1], digest)
    here = Position(state, *values, digest, segments)  # type: ignore[call-arg]
    if here.read_episode:
        read_metrics(folder, experiment.config.num_seeds, len(experiment.task_list))
    return here
