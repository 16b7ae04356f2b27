"""From a configuration to a run in memory: environment, learner, and the functions that play and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchq import checkpoint, tree
from torchq.engines import evaluation, select, protocols
from torchq.runs import memory
from torchq.errors import UsageError
from torchq.lowrank.grid import Grid
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.tabular_q import TabularQ
from torchq.lowrank.learner import Learner
from torchq.config import Config
from torchq.engines.protocols import RunState
from torchq.engines.rollout import Environment, Problem, Statistics

_CONTRACT = (
    "name", "terminates", "num_actions", "episode_length", "num_reset_uniforms", "num_step_uniforms", "grid_low",
    "grid_high", "grid_sizes", "sample_tasks", "reset", "step", "observe",
)  # fmt: skip


class EnvironmentLibrary(Protocol):
    """What training asks of a package of environments; `envs` is one."""

    FAMILIES: dict[str, Callable[[], Any]]

    def stack_tasks(self, tasks: Any, *, device: Any, dtype: Any) -> Any:
        """One parameters dataclass of tensors from a list of them."""
        ...

    def select_tasks(self, tasks: Any, index: Tensor) -> Any:
        """The parameters of some of the tasks."""
        ...

    def optimal_returns(self, env: Any, tasks: list[Any], device: Any) -> list[float] | None:
        """Optimal return of each task, or None where it is not known."""
        ...


class Experiment(NamedTuple):
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
        state = sum(tensor.numel() for tensor in tree.flatten(self.initial_state.learner).values())
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


def prepare(config: Config, library: EnvironmentLibrary) -> Experiment:
    """Build everything of a run in memory, with the engine chosen; writes nothing.

    Raises:
        UsageError: if the configuration contradicts the environment, or the run does not fit in memory.
    """
    env: Environment = library.FAMILIES[config.env]()
    missing = [name for name in _CONTRACT if not hasattr(env, name)]
    if missing:
        raise UsageError(f"--env: expected an environment with {', '.join(missing)}, but {type(env).__name__} has none")
    task_list = env.sample_tasks(config.num_tasks)  # type: ignore[attr-defined]
    turns = len(task_list) if config.protocol == "online" else 1
    num_steps = config.episodes * env.episode_length * turns
    config = replace(config, num_tasks=len(task_list))
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    tasks = library.stack_tasks(task_list, device=device, dtype=dtype)
    grid = Grid(env.grid_low, env.grid_high, env.grid_sizes, joint=config.state_modes == "joint")
    learner = make_learner(config, grid, env.num_actions, len(task_list))
    seeds = torch.arange(config.seed, config.seed + config.num_seeds, device=device)
    problem = Problem(env, grid, learner, config.gamma, seeds, config.num_envs, dtype)
    free = memory.available(device)
    memory.check(config, problem, len(task_list), free)
    in_turns = protocols.takes_turns(config, problem)

    first = torch.zeros(1, dtype=torch.int64, device=device)
    numbers = first if in_turns else torch.arange(len(task_list), device=device)
    state = RunState(
        learner.init(seeds, device=device, dtype=dtype),
        problem.reset(library.select_tasks(tasks, numbers), first, numbers),
        Statistics.zeros(len(seeds), len(task_list), device, dtype),
    )
    playing, task = library.select_tasks(tasks, numbers), numbers if in_turns else None
    chosen = select.choose(config.engine, problem, playing, state, task, num_steps)
    config = replace(config, engine=chosen.name)
    memory.check(config, problem, len(task_list), free)

    def play(state: RunState, episode: int) -> tuple[RunState, Any]:
        if not in_turns:
            state = protocols.batched_round(config, problem, tasks, state, episode, chosen.advance)
            return state, state.learner
        state, snapshots = protocols.turns_round(
            config, problem, library.select_tasks, tasks, state, episode, chosen.advance
        )
        return state, learner.join(snapshots)

    def evaluate(policy: Any, number: int) -> Tensor:
        return evaluation.evaluate(problem, tasks, policy, number, config.eval_episodes, chosen.greedy)

    return Experiment(config, problem, task_list, tasks, play, evaluate, state)
