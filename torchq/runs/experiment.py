"""From a configuration to a run in memory: environment, learner and engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchq import families, tree
from torchq.config import Config
from torchq.engines import blocks, protocols
from torchq.engines.contract import Engine, Evaluation, LearnerState, RunState, Statistics
from torchq.engines.evaluation import evaluate
from torchq.engines.external import ExternalEngine, noisy
from torchq.engines.rollout import Environment, Rollout
from torchq.engines.select import select
from torchq.errors import UsageError
from torchq.lowrank import row_fit
from torchq.lowrank.guide import Guide, aged
from torchq.lowrank.learner import Learner
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import Grid, Mode
from torchq.lowrank.replay import Replay
from torchq.lowrank.tabular_q import TabularQ
from torchq.philox import Purpose
from torchq.ranks import ALONE, Ranks
from torchq.runs import memory
from torchq.runs.share import TOGETHER, Cut, Share, connected, plan
from torchq.runs.tasks import KINDS, TaskSet, task_set

CONTRACT = (
    "name", "terminates", "num_actions", "episode_length", "num_reset_uniforms", "num_step_uniforms", "grid_low",
    "grid_high", "grid_sizes", "sample_tasks", "reset", "step", "observe",
)  # fmt: skip


_GUIDE_BEHAVES = 0.25
"""Share of the time with a guide in which it has a say in what behaves: later, learning needs what lies off its way."""


@dataclass(frozen=True)
class Experiment:
    """A run ready to start: what is fixed, and how it plays a round and tests a policy."""

    config: Config
    rollout: Rollout
    task_set: TaskSet
    engine: Engine
    initial_state: RunState
    share: Share
    """Which part of the run this rank has."""
    places: tuple[Tensor, ...] = ()
    """Where all tasks of the run lie along each task mode; () with a row per task."""
    notes: tuple[str, ...] = ()
    """What the user should know about the choices made, one line each."""
    about_replay: str | None = None
    """What is learnt from again, in one line."""

    @property
    def task_list(self) -> list[Any]:
        """The tasks that are tested, those that learn first."""
        return self.task_set.tested

    @property
    def whole(self) -> Cut:
        """All of the run."""
        trained, tested = self.task_set.num_trained, len(self.task_set.tasks)
        return Cut((0, self.config.num_seeds), (0, trained), (0, tested - trained))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a tensor of the run's state, by its dotted name."""
        return self.share.part(name, whole, self.task_set.num_trained, self.rollout.learner)

    @property
    def longest_block(self) -> int:
        """Rounds that leave what the state before them can draw from as it was."""
        if self.rollout.replay is None:
            return self.config.episodes
        slots, a_round = self.initial_state.replay.shape[2], self.rollout.env.episode_length * self.config.num_envs
        if slots >= self.config.episodes * a_round:
            return self.config.episodes
        return max(1, (slots - self.config.replay_capacity) // a_round)

    @property
    def work(self) -> int:
        """Elements that one step touches, to the order of magnitude: all factors, and their rows for the batch."""
        again = self.config.replay_batch if self.rollout.replay else 0
        transitions = self.task_set.num_trained * (self.config.num_envs + again)
        batch = transitions * sum(self.rollout.grid.mode_sizes) * self.config.rank
        state = sum(tensor.numel() for tensor in tree.flatten(self.initial_state.learner).values())
        return self.config.num_seeds * batch + state

    def close(self) -> None:
        """End what runs outside of this process."""
        if isinstance(self.engine, ExternalEngine):
            self.engine.close()

    def play(self, state: RunState, episode: int) -> tuple[RunState, LearnerState]:
        """One round: the state after an episode of every task, and the learner whose greedy policy is tested."""
        return protocols.play_round(self.config, self.rollout, self.engine, state, episode)

    def play_block(self, state: RunState, first: int, count: int) -> tuple[RunState, list[Evaluation]]:
        """Consecutive rounds, and what their evaluations found; see `blocks.play`."""
        return blocks.play(self.config, self.rollout, self.engine, state, first, count)

    def evaluate(self, policy: LearnerState, evaluation: int) -> Tensor:
        """Returns of a learner's greedy policy, mean over test episodes; shaped (seeds, tasks)."""
        return evaluate(self.rollout, self.engine, policy, evaluation, self.config.eval_episodes)


def make_grid(config: Config, env: Environment) -> Grid:
    """From observations to places along the state factors, as a configuration asks for.

    Cells are those of `grid_low`, `grid_high` and `grid_sizes`. Interpolated modes are those of the family's
    `dimensions`, or lie between the points of the same grid where it has none.

    Raises:
        UsageError: if the family's dimensions are not as expected.
    """
    joint = config.state_modes == "joint"
    if config.features == "cells":
        return Grid.cells(env.grid_low, env.grid_high, env.grid_sizes, joint)
    dimensions = getattr(env, "dimensions", None)
    if dimensions is None:
        bounds = zip(env.grid_low, env.grid_high, env.grid_sizes, strict=True)
        return Grid(tuple(Mode(low, high, size, "linear") for low, high, size in bounds))
    try:
        if len(dimensions) != len(env.grid_low):
            raise ValueError(f"expected {len(env.grid_low)}, as many as in grid_low, got {len(dimensions)}")
        return Grid(tuple(Mode(one.low, one.high, one.points, KINDS[one.kind]) for one in dimensions))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"dimensions with low, high, points and a kind of {', '.join(KINDS)}"
        raise UsageError(f"`env`: expected {expected}, but {type(env).__name__} has others ({error})") from error


def make_replay(config: Config) -> Replay | None:
    """What is learnt from again at each step."""
    if config.replay_ratio == 0:
        return None
    return Replay(config.replay_ratio, config.replay_batch, config.replay_capacity, config.replay_recent)


def make_learner(config: Config, grid: Grid, env: Environment, tasks: TaskSet) -> Learner:
    """The learner that a configuration asks for.

    Raises:
        UsageError: if the task weights do not match the tasks.
    """
    num_tasks = tasks.num_trained
    action_sizes = getattr(env, "action_sizes", (env.num_actions,))
    if config.task_weights and len(config.task_weights) != num_tasks:
        raise UsageError(
            f"`task_weights`: expected one weight for each of {num_tasks} tasks, got {len(config.task_weights)}"
        )
    if config.algo == "tabular":
        return TabularQ(grid.mode_sizes, env.num_actions, num_tasks)
    return LowRankQ(
        sharing=config.algo,  # type: ignore[arg-type]
        state_sizes=grid.mode_sizes,
        action_sizes=action_sizes,
        num_tasks=num_tasks,
        rank=config.rank,
        optimizer=config.optimizer,
        update_order=config.update,
        normalised=config.normalised,
        num_sweeps=config.num_sweeps,
        loss_scale=config.loss_scale,
        task_weights=config.task_weights,
        init_scale=config.init_scale,
        target_rate=config.target_rate or None,
        task_sizes=() if tasks.modes is None else tasks.modes.sizes,
        only_tasks=config.adapt_from is not None and not config.grow,
        margin=config.guide_margin if config.warm_start else 0.0,
        margin_updates=_guide_updates(config, num_tasks),
    )


def _guide_updates(config: Config, num_tasks: int) -> tuple[float, float]:
    """Updates after which leaving a guide need not pay: in what behaves, and in what is tested."""
    per_sample = max(1, config.replay_ratio) * config.num_sweeps / config.num_envs
    if config.protocol == "online" and config.algo != "lrq":
        per_sample *= num_tasks
    return _GUIDE_BEHAVES * config.guide_samples * per_sample, config.guide_samples * per_sample


def cold_state(
    config: Config, env: Environment, learner: Learner, tasks: TaskSet, seeds: Tensor, dtype: torch.dtype
) -> Any:
    """The learner's state before the first transition."""
    state = learner.init(seeds, device=seeds.device, dtype=dtype)
    if places := tasks.places(seeds.device, dtype):
        state = state._replace(task_places=places)
    if isinstance(learner, LowRankQ) and learner.margin:
        guide = Guide(tuple(map(torch.zeros_like, state.factors)), state.num_updates)
        state = state._replace(guide=aged(guide, state.num_updates, learner.margin, learner.margin_updates[0]))
    if protocols.fits(config):
        rows = state.factors[0].expand(-1, row_fit.num_starts(noisy(env)), -1, -1)
        state = state._replace(fit=row_fit.begin(rows, state.factors[0][:, 0]))  # (seeds, starts, tasks, rank)
    return state


def device_name(device: str) -> str:
    """The device that "auto" stands for.

    Raises:
        UsageError: if a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("`device`: expected a machine with a CUDA GPU for cuda, found none; use cpu or auto")
    return ("cuda" if available else "cpu") if device == "auto" else device


def prepare(
    config: Config,
    env: Any,
    warm_start: Callable[[Config, Rollout, Any], Any] | None = None,
    *,
    fit_replay: bool = True,
    ranks: Ranks = ALONE,
) -> Experiment:
    """Build everything of a run in memory, with the engine chosen; writes nothing.

    Args:
        config: hyper-parameters.
        env: the family.
        warm_start: from the cold state of the learner to another, before the engine is tried on it.
        fit_replay: whether the replay capacity may be lowered to what memory allows; not for a run that goes on, which
            must draw from what it would have drawn from.
        ranks: who shares the run; this one prepares its part.

    Raises:
        UsageError: if the configuration contradicts the environment, or the run does not fit in memory.
    """
    families.check(env, CONTRACT, "discrete actions and a grid", config.algo)
    of_run = task_set(config, env)
    config = config.replace(num_tasks=len(of_run.tasks) - len(config.test_tasks), device=device_name(config.device))
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    tasks = families.stack_tasks(of_run.trained, device=device, dtype=dtype)
    tested, numbers = None, None
    if of_run.held_out or of_run.sample is not None:
        tested = families.stack_tasks(of_run.tested, device=device, dtype=dtype)
        numbers = None if of_run.sample is None else torch.tensor(of_run.sample, device=device)
    grid = make_grid(config, env)
    learner = make_learner(config, grid, env, of_run)
    seeds = torch.arange(config.seed, config.seed + config.num_seeds, device=device)
    free = memory.available(device)
    if free is not None and device.type == "cpu":
        free = int(ranks.numbers(free // ranks.local_count).min())
    room = None if free is None else free * ranks.count  # For the whole run.
    room = room if room is None or device.type == "cpu" else room // 3  # Graphs keep buffers of their own.
    room = room if fit_replay else None
    learning = config.replace(num_tasks=of_run.num_trained)
    capacity, about_replay = memory.capacity(learning, env.episode_length, len(grid.mode_sizes), room)
    config = config.replace(replay_capacity=capacity)
    replay = make_replay(config)
    whole = Rollout(env, tasks, grid, learner, config.gamma, seeds, config.num_envs, dtype, replay, tested, numbers)
    share = plan(config, whole, len(of_run.held_out), ranks)
    rollout = share.local(whole)
    too_large = memory.too_large(config, rollout, free)

    in_turns = protocols.takes_turns(config, rollout)
    batch = rollout.batch(0 if in_turns else None)
    cold = cold_state(config, env, learner, of_run, seeds, dtype)
    nothing = Statistics.zeros(len(rollout.seeds), rollout.num_tasks, device, dtype)
    first = warm_start(config, whole, cold) if warm_start else cold
    places = getattr(first, "task_places", ())
    first = tree.mapped(first, lambda name, part: share.part(name, part, whole.num_tasks, learner), "learner")
    stored = rollout.empty_memory(memory.replay_slots(config, env.episode_length))
    state = RunState(first, rollout.reset(batch, 0), nothing, stored)
    if (count := env.observe(state.env).shape[-1]) != len(env.grid_low):
        came = f"{type(env).__name__} observes {count}, and has a grid of {len(env.grid_low)}"
        raise UsageError(f"`env`: expected a dimension of the grid for each number of the observation, but {came}")
    num_steps = config.episodes * env.episode_length * (of_run.num_trained if in_turns else 1)
    with ranks.one_before_the_others():
        together = share.by == "tasks" and learner.couples_tasks
        asked = TOGETHER[device.type] if together and config.engine == "auto" else config.engine
        engine, passed_over = select(asked, rollout, batch, state, num_steps, too_large, whole)
    if together:
        engine = connected(engine, rollout, share.ranks)
        rollout = engine.rollout
    if made := getattr(engine, "starts", None):
        state = state._replace(env=type(state.env)(*(x[0] for x in made(batch, Purpose.RESET, [0], config.num_envs))))
    notes = tuple(f"engine {name} passed over: {reason}" for name, reason in passed_over.items())
    config = config.replace(engine=engine.name)
    return Experiment(config, rollout, of_run, engine, state, share, places, notes, about_replay)
