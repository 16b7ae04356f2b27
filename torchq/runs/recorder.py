"""What a run shows while it learns: metrics.csv, TensorBoard, and progress on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from torchq import tree
from torchq.config import Config
from torchq.engines.contract import Evaluation, RunState, Statistics
from torchq.engines.external import ExternalEnvironment
from torchq.engines.rollout import Rollout
from torchq.errors import DivergedError
from torchq.philox import Purpose
from torchq.runs import policy_picture
from torchq.runs.experiment import Experiment
from torchq.runs.metrics import QUANTILES, MetricsFile, TensorBoard, read_metrics
from torchq.runs.policy import GridPolicy
from torchq.runs.positions import Position, diverged, num_stored

LINE_SECONDS = 10.0
"""Between two lines of progress, where there is no bar."""
MAX_TASKS_ON_BOARD = 64
"""Of which each has a line."""


class Recorder:
    """The files that grow while a run learns, of which one rank alone writes.

    Args:
        experiment: what is trained.
        folder: the run folder.
        here: where the run goes on.
        resumed: whether it does, and older events beyond that are to be dropped.
        progress: whether to show a bar; None shows it on a terminal, and elsewhere tells a line now and then.
        tell: takes these lines.

    Raises:
        CheckpointError: if metrics.csv does not fit the position.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, here: Position, resumed: bool, progress: bool | None,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        from tqdm import tqdm

        config = experiment.config
        self._experiment, self._folder, self._tell, self._told = experiment, folder, tell, here.seconds
        self._tasks = experiment.task_set.numbers
        self._samples = experiment.rollout.env.episode_length * config.num_envs
        self.metrics = MetricsFile(folder, here.metrics_size)
        self._board = TensorBoard(folder, here.episode * self._samples if resumed else None)
        self._board.begin(config.model_dump(mode="json"))
        shown = None if progress is None else not progress
        self._bar = tqdm(total=config.episodes, initial=here.episode, unit="ep", disable=shown)
        self._tells = progress is None and self._bar.disable

    def record(self, evaluations: list[Evaluation], before: Position, after: Position) -> Position:
        """Write what the tests of a block found; the position after it, with these read."""
        config, seeds = self._experiment.config, range(self._experiment.config.num_seeds)
        for evaluation in evaluations:
            after, report = _reported(self._experiment, self._folder, evaluation, before, after)
            samples = evaluation.episode * self._samples
            numbers = [config.seed + seed for seed in seeds]
            self.metrics.append(evaluation.episode, samples, numbers, self._tasks, evaluation.returns.tolist())
            self._board.log(report, samples)
            said = (f"return {report['eval/mean_reward']:.1f}, ε {report['rollout/exploration_rate']:.3f}, "
                    f"{report['time/fps']:,.0f} transitions/s")  # fmt: skip
            self._bar.set_postfix_str(said)
            if self._tells and after.seconds - self._told > LINE_SECONDS:
                self._tell(f"episode {evaluation.episode:,} of {config.episodes:,}: {said}")
                self._told = after.seconds
        if evaluations and self._experiment.rollout.replay:
            self._board.log(_replay_report(self._experiment, after.state, after.episode), after.episode * self._samples)
        self._bar.update(after.episode - before.episode)
        return after._replace(metrics_size=self.metrics.size(), metrics_digest=self.metrics.digest())

    def conclude(self, here: Position) -> None:
        """What a finished run shows in TensorBoard beside its curves."""
        experiment, config, rollout = self._experiment, self._experiment.config, self._experiment.rollout
        if here.read_episode == 0:
            return
        final = read_metrics(self._folder, config.num_seeds, len(experiment.task_list)).final_return()
        results = {"final/mean_reward": float(final[:, : experiment.task_set.num_learnt].mean())}
        learnt = tree.select(rollout.learner.policy(here.state.learner), 0)
        policy = GridPolicy(rollout.learner, learnt, rollout.grid, rollout.num_tasks)
        picture = policy_picture.picture(policy)
        self._board.end(config.model_dump(mode="json"), results, picture, here.episode * self._samples)

    def close(self) -> None:
        """Close the files."""
        self._bar.close()
        self._board.close()
        self.metrics.close()


def _reported(
    experiment: Experiment, folder: Path, evaluation: Evaluation, before: Position, after: Position
) -> tuple[Position, dict[str, float]]:
    """The position after a block with an evaluation of it read, and the report; time passes evenly in a block."""
    share = (evaluation.episode - before.episode) / (after.episode - before.episode)
    seconds = before.seconds + share * (after.seconds - before.seconds)
    report = _report(experiment, folder, evaluation, after.read_episode, seconds - after.read_seconds)
    return after._replace(read_episode=evaluation.episode, read_seconds=seconds), report


def _report(
    experiment: Experiment, folder: Path, evaluation: Evaluation, read_episode: int, seconds: float
) -> dict[str, float]:
    """Means since the last reading, for TensorBoard; the only place where training reads from the device.

    Raises:
        DivergedError: naming the first task and seed with a value that is not finite, rewards before errors.
    """
    config, episode, first = experiment.config, evaluation.episode, read_episode + 1
    totals = zip(Statistics._fields, evaluation.statistics, strict=True)
    sums = {name: total.double().cpu().numpy() for name, total in totals}
    greedy, learnt = evaluation.returns.cpu().numpy(), experiment.task_set.num_learnt
    for name, values in (("reward", sums["reward"]), ("TD error", sums["squared_error"]), ("greedy return", greedy)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            seed = config.seed + bad[0][0]
            raise DivergedError(diverged(f"the {name} of task {bad[0][1]} (seed {seed})", first, episode, folder))
    if not evaluation.finite:
        raise DivergedError(diverged("a factor or its moments", first, episode, folder))
    steps = (episode - read_episode) * experiment.rollout.env.episode_length
    report = {
        "rollout/ep_rew_mean": float((sums["reward"] / np.maximum(sums["episodes"], 1.0)).mean()),
        "rollout/exploration_rate": _epsilon(config, experiment.rollout, episode),
        "time/fps": steps * config.num_envs * sums["reward"].size / seconds,
        "train/td_error": float(sums["absolute_error"].mean() / steps),
        "train/loss": float(0.5 * sums["squared_error"].mean() / steps),
        "eval/mean_reward": float(greedy[:, :learnt].mean()),
    }
    if experiment.task_set.held_out:
        report["eval/held_out_mean_reward"] = float(greedy[:, learnt:].mean())
    return report | _by_task(greedy.mean(0), experiment.task_set.numbers)


def _by_task(returns: np.ndarray, numbers: Sequence[int]) -> dict[str, float]:
    """A line a task, or where there are many one for each quantile of them."""
    if len(returns) <= MAX_TASKS_ON_BOARD:
        return {f"eval/mean_reward/{task}": float(value) for task, value in zip(numbers, returns, strict=True)}
    found = np.quantile(returns, QUANTILES)
    return {f"eval/quantile/{share:.2f}": float(value) for share, value in zip(QUANTILES, found, strict=True)}


def _epsilon(config: Config, rollout: Rollout, episode: int) -> float:
    """Exploration rate after some episodes."""
    samples = config.samples_before + episode * rollout.env.episode_length * config.num_envs
    ticks = samples * config.epsilon_clock(rollout.num_tasks)
    return max(config.epsilon_end, config.epsilon_start * math.exp(ticks * math.log(config.epsilon_decay)))


def _replay_report(experiment: Experiment, state: RunState, episode: int) -> dict[str, float]:
    """How full the memory is, and what the target tensor expects from the start of an episode: maxₐ Q̄(s₀, a).

    Both are of this rank's tasks and seeds.
    """
    config, rollout = experiment.config, experiment.rollout
    report = {"replay/fill": min(1.0, num_stored(experiment, episode) / config.replay_capacity)}
    if not isinstance(rollout.env, ExternalEnvironment):  # Where episodes of those start is not known before.
        first = episode * rollout.env.episode_length
        start = rollout.index(rollout.reset(rollout.test_batch(), first, Purpose.EVALUATION_RESET))
        values = rollout.learner.action_values(rollout.tested(rollout.learner.policy(state.learner)), start).amax(-1)
        report["train/target_value"] = float(values.mean())
    return report
