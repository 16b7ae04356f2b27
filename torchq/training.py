"""The training loop: rounds, evaluations, checkpoints, and the files of a run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchq import checkpoint, engine, evaluation, protocols
from torchq.checkpoint import write_atomically
from torchq.errors import DivergedError, UsageError
from torchq.grid import Grid
from torchq.learners import LowRankQ, TabularQ
from torchq.learners.base import Learner
from torchq.logging import MetricsFile, TensorBoard, read_metrics
from torchq.plotting import Curve, plot_learning_curves
from torchq.presets import Config
from torchq.protocols import RunState
from torchq.rollout import Environment, Problem, Statistics
from torchq.versions import versions

CHECKPOINT_SECONDS = 15.0
MAX_TASKS_FOR_OPTIMUM = 16


class EnvironmentLibrary(Protocol):
    """What training asks of a package of environments; `envs` is one."""

    FAMILIES: dict[str, Callable[[], Any]]

    def stack_tasks(self, tasks: Any, *, device: Any, dtype: Any) -> Any:
        """One parameters dataclass of tensors from a list of them."""
        ...

    def select_tasks(self, tasks: Any, index: Tensor) -> Any:
        """The parameters of some of the tasks."""
        ...

    def optimal_returns(self, env: Any, tasks: list[Any], device: Any) -> list[float]:
        """Optimal return of each task."""
        ...


class Session(NamedTuple):
    """A run ready to start: what is fixed, and the functions that play a round and test the policy."""

    config: Config
    problem: Problem
    task_list: list[Any]
    tasks: Any
    play: Callable[[RunState, int], tuple[RunState, Any]]
    evaluate: Callable[[Any, int], Tensor]
    initial_state: RunState

    @property
    def work(self) -> int:
        """Elements that one step touches, to the order of magnitude: all factors, and their rows for the batch."""
        batch = len(self.task_list) * self.config.num_envs * sum(self.problem.grid.mode_sizes) * self.config.rank
        state = sum(tensor.numel() for tensor in checkpoint.flatten(self.initial_state.learner).values())
        return self.config.num_seeds * batch + state


def make_learner(config: Config, grid: Grid, num_actions: int, num_tasks: int) -> Learner:
    """The learner that a configuration asks for.

    Raises:
        UsageError: if the task weights do not match the tasks.
    """
    if config.task_weights and len(config.task_weights) != num_tasks:
        raise UsageError(
            f"--task-weights: expected one weight for each of {num_tasks} tasks, got {len(config.task_weights)}"
        )
    if config.algo == "tabular":
        return TabularQ(grid.mode_sizes, num_actions, num_tasks)
    return LowRankQ(
        sharing=config.algo,  # type: ignore[arg-type]
        state_sizes=grid.mode_sizes,
        action_sizes=(num_actions,),
        num_tasks=num_tasks,
        rank=config.rank,
        optimizer=config.optimizer,
        update_order=config.update,
        normalised=config.normalised,
        num_sweeps=config.num_sweeps,
        loss_scale=config.loss_scale,
        task_weights=config.task_weights,
        init_scale=config.init_scale,
    )


def prepare(config: Config, library: EnvironmentLibrary) -> Session:
    """Build everything of a run in memory; writes nothing.

    Raises:
        UsageError: if the configuration contradicts the environment.
    """
    env: Environment = library.FAMILIES[config.env]()
    task_list = env.sample_tasks(config.num_tasks)  # type: ignore[attr-defined]
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    tasks = library.stack_tasks(task_list, device=device, dtype=dtype)
    grid = Grid(env.grid_low, env.grid_high, env.grid_sizes, joint=config.state_modes == "joint")
    learner = make_learner(config, grid, env.num_actions, len(task_list))
    seeds = torch.arange(config.seed, config.seed + config.num_seeds, device=device)
    problem = Problem(env, grid, learner, config.gamma, seeds, config.num_envs, dtype)
    step = engine.prepare(problem.step, config.engine)
    greedy_step = engine.prepare(evaluation.greedy_step, config.engine)
    turns = protocols.takes_turns(config, problem)

    def play(state: RunState, episode: int) -> tuple[RunState, Any]:
        if not turns:
            state = protocols.batched_round(config, problem, tasks, state, episode, step)
            return state, state.learner
        state, snapshots = protocols.turns_round(config, problem, library.select_tasks, tasks, state, episode, step)
        return state, learner.join(snapshots)

    def evaluate(policy: Any, number: int) -> Tensor:
        return evaluation.evaluate(problem, tasks, policy, number, config.eval_episodes, greedy_step)

    first = torch.zeros(1, dtype=torch.int64, device=device)
    numbers = first if turns else torch.arange(len(task_list), device=device)
    state = RunState(
        learner.init(seeds, device=device, dtype=dtype),
        problem.reset(library.select_tasks(tasks, numbers), first, numbers),
        Statistics.zeros(len(seeds), len(task_list), device, dtype),
    )
    return Session(config, problem, task_list, tasks, play, evaluate, state)


@torch.no_grad()
def train(
    session: Session,
    library: EnvironmentLibrary,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train until the last episode, and write everything that a run folder holds.

    Args:
        session: from `prepare`.
        library: the environments.
        folder: the run folder, with its config.json.
        resume: continue from the folder's checkpoint, if it has one.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The content of summary.json.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded.
        DivergedError: if a value that is not finite was met; the last good checkpoint stays.
    """
    from tqdm import tqdm

    config, problem = session.config, session.problem
    state, episode, metrics_size, earlier_s = _load(session, folder) if resume else (session.initial_state, 0, 0, 0.0)
    seeds, num_tasks = problem.seeds.tolist(), len(session.task_list)
    samples_per_episode = problem.env.episode_length * config.num_envs
    metrics = MetricsFile(folder, metrics_size)
    board = TensorBoard(folder, episode * samples_per_episode if resume else None)
    bar = tqdm(total=config.episodes, initial=episode, unit="ep", disable=None if progress is None else not progress)
    started = saved = read = time.monotonic()
    read_episode, finite = episode, True
    try:
        while episode < config.episodes:
            state, policy = session.play(state, episode)
            episode += 1
            last = episode == config.episodes
            if episode % config.eval_every == 0 or last:
                returns = session.evaluate(policy, episode).tolist()
                report = _read_statistics(state, returns, read_episode, episode, problem.env.episode_length)
                now = time.monotonic()
                transitions = (episode - read_episode) * samples_per_episode * len(seeds) * num_tasks
                report["time/fps"] = transitions / (now - read)
                report["rollout/exploration_rate"] = _epsilon(config, problem, num_tasks, episode)
                state = state._replace(statistics=session.initial_state.statistics)
                metrics.append(episode, episode * samples_per_episode, seeds, returns)
                board.log(report, episode * samples_per_episode)
                bar.set_postfix_str(
                    f"return {report['eval/mean_reward']:.1f}, ε {report['rollout/exploration_rate']:.3f}, "
                    f"{report['time/fps']:,.0f} transitions/s"
                )
                read, read_episode = now, episode
            if last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                finite = _save(session, folder, state, episode, metrics.sync(), earlier_s + time.monotonic() - started)
                if not finite:
                    raise DivergedError(_diverged("the factors", read_episode + 1, episode))
                saved = time.monotonic()
            bar.update()
    finally:
        bar.close()
        board.close()
        metrics.close()
    return _finish(session, library, folder, earlier_s + time.monotonic() - started)


def _diverged(what: str, first: int, last: int) -> str:
    return (
        f"training stopped: {what} became NaN or infinite between episodes {first} and {last}; the last good "
        "checkpoint is kept; check the environment's rewards, or lower --learning-rate"
    )


def _read_statistics(
    state: RunState, returns: list[list[float]], read: int, episode: int, episode_length: int
) -> dict[str, float]:
    """Means since the last reading, for TensorBoard; the only place where training waits for the device.

    Raises:
        DivergedError: naming the first task and seed with a value that is not finite, rewards before errors.
    """
    totals = zip(Statistics._fields, state.statistics, strict=True)
    sums = {name: total.double().cpu().numpy() for name, total in totals}
    greedy = np.array(returns)
    suspects = (("reward", sums["reward"]), ("TD error", sums["squared_error"]), ("greedy return", greedy))
    for name, values in suspects:
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise DivergedError(_diverged(f"the {name} of task {bad[0][1]} (run {bad[0][0]})", read + 1, episode))
    factors = checkpoint.flatten(state.learner, "learner")
    if not checkpoint.all_finite(factors):
        raise DivergedError(_diverged("the factors", read + 1, episode))
    steps = (episode - read) * episode_length
    report = {
        "rollout/ep_rew_mean": float((sums["reward"] / np.maximum(sums["episodes"], 1.0)).mean()),
        "train/td_error": float(sums["absolute_error"].mean() / steps),
        "train/loss": float(0.5 * sums["squared_error"].mean() / steps),
        "eval/mean_reward": float(greedy.mean()),
    }
    return report | {f"eval/mean_reward/{task}": float(value) for task, value in enumerate(greedy.mean(0))}


def _epsilon(config: Config, problem: Problem, num_tasks: int, episode: int) -> float:
    """Exploration rate after some episodes."""
    ticks = episode * problem.env.episode_length * config.num_envs * config.epsilon_clock(num_tasks)
    return max(config.epsilon_end, config.epsilon_start * math.exp(ticks * math.log(config.epsilon_decay)))


def _save(session: Session, folder: Path, state: RunState, episode: int, metrics_size: int, wall_time: float) -> bool:
    """Checkpoint a state, unless something in it is not finite; returns whether it did."""
    tensors = checkpoint.flatten(state)
    if not checkpoint.all_finite(tensors):
        return False
    counters = {
        "algo": session.config.algo,
        "episode": episode,
        "metrics_size": metrics_size,
        "wall_time_s": wall_time,
    }
    checkpoint.save_checkpoint(folder / "checkpoint", tensors, counters)
    return True


def _load(session: Session, folder: Path) -> tuple[RunState, int, int, float]:
    """State, episode, size of metrics.csv and seconds spent, from the checkpoint or from the beginning."""
    loaded = checkpoint.load_checkpoint(folder / "checkpoint", session.config.algo)
    if loaded is None:
        return session.initial_state, 0, 0, 0.0
    tensors, counters = loaded
    state = checkpoint.unflatten(session.initial_state, tensors)
    return state, counters["episode"], counters["metrics_size"], counters["wall_time_s"]


def _finish(session: Session, library: EnvironmentLibrary, folder: Path, wall_time: float) -> dict[str, Any]:
    """Write summary.json and learning_curve.png."""
    config, problem = session.config, session.problem
    wanted = config.optimal if config.optimal is not None else len(session.task_list) <= MAX_TASKS_FOR_OPTIMUM
    optimal = library.optimal_returns(problem.env, session.task_list, problem.seeds.device) if wanted else None
    metrics = read_metrics(folder)
    low, median, high = np.percentile(metrics.final_return(), [25, 50, 75], axis=0)
    samples = config.episodes * problem.env.episode_length * config.num_envs
    transitions = samples * len(session.task_list) * config.num_seeds
    summary = {
        "algo": config.algo,
        "env": config.env,
        "preset": config.preset,
        "num_seeds": config.num_seeds,
        "tasks": [vars(task) for task in session.task_list],
        "samples_per_task": samples,
        "transitions": transitions,
        "wall_time_s": wall_time,
        "transitions_per_s": transitions / wall_time,
        "device": config.device,
        "dtype": config.dtype,
        "engine": config.engine,
        **({"lrq_convention": config.lrq_convention} if config.algo == "lrq" else {}),
        "final_return": {"median": median.tolist(), "q25": low.tolist(), "q75": high.tolist()},
        "optimal_return": optimal,
        "versions": versions(),
    }
    plot_learning_curves([Curve(config.algo, metrics)], folder / "learning_curve.png", optimal, config.env)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    return summary
