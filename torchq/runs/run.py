"""A run folder as Python sees it: its configuration, curves, summary, and what was learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchq import checkpoint, families, tree
from torchq.config import Config
from torchq.engines.external import ExternalEnvironment
from torchq.errors import CheckpointError, UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.modes import Grid
from torchq.lowrank.qtensor import QTensor
from torchq.lowrank.tabular_q import TabularQ
from torchq.methods import LOW_RANK_ALGOS, QUADRATIC_ALGOS
from torchq.quadratic.forms import Quadratic
from torchq.runs.adaptation import known_rows, read_source, start_rows
from torchq.runs.experiment import cold_state, device_name, make_grid, make_learner, prepare
from torchq.runs.folder import CONFIG, SUMMARY, read_config
from torchq.runs.metrics import METRICS, Metrics, read_metrics
from torchq.runs.monte_carlo import make_cases
from torchq.runs.policy import ControlPolicy, GridPolicy
from torchq.runs.study import Row
from torchq.runs.study_results import read_rows
from torchq.runs.task_specs import read_tasks
from torchq.runs.tasks import TaskSet, num_tested, task_set
from torchq.runs.testing import returns_on


@dataclass(frozen=True)
class Run:
    """A run folder. Its files are read when they are asked for, and no code in them is executed.

    Args:
        folder: the run folder.
        index: which of the `num_seeds` runs in it `policy`, `q_tensor`, `table` and `quadratic` are of, from 0.
    """

    folder: Path
    index: int = 0

    @cached_property
    def config(self) -> Config:
        """Everything that decides the run's numbers."""
        return read_config(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.folder / SUMMARY).exists()

    @cached_property
    def metrics(self) -> Metrics:
        """Learning curves of a learner on a grid.

        Raises:
            MetricsError: if metrics.csv is damaged, or holds no evaluation yet.
            UsageError: if the run is a study of a quadratic learner, which has `rows`.
        """
        if self.is_study:
            raise UsageError(f"metrics: a study of {self.config.algo} has no learning curve; use rows")
        if not self.config.num_tasks:
            raise UsageError(f"`folder`: {self.folder / CONFIG} does not say how many tasks there are")
        return read_metrics(self.folder, self.config.num_seeds, num_tested(self.config))

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the metrics.csv of a study: one for each run, task and size of data set.

        Raises:
            MetricsError: if it is damaged.
        """
        return read_rows(self.folder / METRICS)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json.

        Raises:
            UsageError: if the run has not ended, or the file is damaged.
        """
        path = self.folder / SUMMARY
        try:
            summary = json.loads(path.read_bytes())
            summary["final_return"], summary["optimal_return"]
        except FileNotFoundError as error:
            raise UsageError(f"`folder`: the run in {self.folder} has not ended; go on with `resume=True`") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"`folder`: {path} is damaged ({error!r}); write it again with `resume=True`") from error
        return summary

    @property
    def is_study(self) -> bool:
        """Whether the run is a study of a quadratic learner, not a learning curve."""
        return self.config.algo in QUADRATIC_ALGOS

    @cached_property
    def policy(self) -> GridPolicy | ControlPolicy:
        """What the checkpoint has learnt to do, on raw observations; for a study, from its largest data set.

        Raises:
            CheckpointError: if there is no checkpoint, or it cannot be read.
        """
        config = self.config
        if self.is_study:
            learnt = Quadratic(*(part[:, -1] for part in self.quadratic))
            return ControlPolicy(tuple(make_cases(config, families.of(config))), learnt)
        learner, learnt, grid = self._learnt()
        return GridPolicy(learner, tree.select(learnt, self.index), grid, len(self.tasks.tasks))

    def _learnt(self) -> tuple[Any, Any, Grid]:
        """The learner on a grid, its policy of all runs side by side, and the grid."""
        config, env, tensors = self.config, families.of(self.config), self._tensors()
        grid = make_grid(config, env)
        learner = make_learner(config, grid, env, self.tasks)
        seeds, dtype = torch.arange(config.num_seeds), getattr(torch, config.dtype)
        template = cold_state(config, env, learner, self.tasks, seeds, dtype)
        return learner, learner.policy(tree.unflatten(template, tensors, "learner")), grid

    def policy_on(self, tasks: Any) -> GridPolicy:
        """What an stlrq run does on other tasks of its family, untrained on: `act` takes their numbers, from 0.

        With task modes, by their parameters; with a row per task, as on the nearest known one.

        Args:
            tasks: parameters, as `torchq.train` takes them.

        Raises:
            UsageError: if the run is of another method, or the tasks are not of its family.
        """
        source = read_source(self.folder, env := families.of(self.config))
        found = [type(source.tasks.tasks[0])(**task) for task in read_tasks(tasks, env)]
        known, shared = known_rows(source)
        rows = start_rows(source, known, found, env, first_nearest=True)[0].unsqueeze(1)
        state = LowRankState(tuple(part[self.index : self.index + 1] for part in (rows, *shared)), (), torch.tensor(0))
        grid = make_grid(self.config, env)
        learner = make_learner(
            self.config.replace(adapt_from=None, task_weights=()),
            grid,
            env,
            TaskSet(found, len(found), None),
        )
        return GridPolicy(learner, state, grid, len(found))

    @cached_property
    def tasks(self) -> TaskSet:
        """The tasks of a learner on a grid, and where they lie along the task modes."""
        return task_set(self.config, families.of(self.config))

    @cached_property
    def q_tensor(self) -> QTensor:
        """The Q-tensor of a low-rank learner; of lrq, which has one for each task, see `QTensor.from_run`.

        Raises:
            UsageError: if the learner has none.
        """
        policy = self.policy if self.config.algo in LOW_RANK_ALGOS else None
        if not isinstance(policy, GridPolicy) or not isinstance(policy.learner, LowRankQ):
            expected = ", ".join(LOW_RANK_ALGOS)
            came = f"got one of {self.config.algo}{self._instead()}"
            raise UsageError(f"q_tensor: expected a run of {expected}, {came}")
        return policy.learner.to_qtensor(policy.state)

    @cached_property
    def table(self) -> torch.Tensor:
        """Q[m, s₁, …, s_D, a] of a tabular run: its tables, (tasks, points of each state dimension…, actions).

        Where these points lie is in `policy.grid.modes[d].points()`; several action modes are flattened, the last one
        fastest.

        Raises:
            UsageError: if the run is of another method.
        """
        policy = self.policy if self.config.algo == "tabular" else None
        if not isinstance(policy, GridPolicy) or not isinstance(policy.learner, TabularQ):
            raise UsageError(f"table: expected a run of tabular, got one of {self.config.algo}{self._instead()}")
        return policy.state.table[0].unflatten(-1, (*policy.grid.mode_sizes, policy.learner.num_actions))

    @cached_property
    def quadratic(self) -> Quadratic:
        """P, S and R of a study, each (tasks, sizes, …): a Q-function for each data set size, `config.sizes` in order.

            Q(x, u) = V_b(x) + φᵀPφ + 2φᵀSũ − ũᵀRũ                                          [LMI, eq. (10)]

        Raises:
            CheckpointError: if there is no checkpoint, it cannot be read, or was written before this run was through.
            UsageError: if the run is of another method.
        """
        if not self.is_study:
            expected = ", ".join(QUADRATIC_ALGOS)
            came = f"got one of {self.config.algo}{self._instead()}"
            raise UsageError(f"quadratic: expected a run of {expected}, {came}")
        tensors = self._tensors()
        if self.index >= (through := len(tensors["learnt.P"])):
            raise CheckpointError(f"checkpoint: {self.folder} holds {through} runs yet, got run {self.index}")
        return Quadratic(*(tensors[f"learnt.{name}"][self.index] for name in Quadratic._fields))

    def _instead(self) -> str:
        """Where what the run has learnt is."""
        kind = "quadratic" if self.is_study else "table" if self.config.algo == "tabular" else "q_tensor"
        return f"; use {kind}"

    @torch.no_grad()
    def evaluate(self, episodes: int, device: str = "auto", tasks: Sequence[int] | None = None) -> np.ndarray:
        """Mean return of new greedy test episodes from the checkpoint, (seeds, tasks).

        Args:
            episodes: of each seed and task.
            device: where to play them.
            tasks: numbers of the tasks; None for those that the run tests.

        Raises:
            CheckpointError: if there is no checkpoint, or it cannot be read.
            UsageError: if the run is a study, whose test episodes are in `rows`.
        """
        if self.is_study:
            raise UsageError(
                "`episodes`: expected only with low-rank and tabular runs; a study has one test episode a run"
            )
        if not isinstance(episodes, int) or episodes < 1:
            raise UsageError(f"`episodes`: expected an integer of at least 1, got {episodes!r}")
        family, of_run = families.of(self.config), self.tasks
        numbers = list(of_run.numbers if tasks is None else tasks)
        if not isinstance(family, ExternalEnvironment):
            where = torch.device(device_name(device))
            learner, policy, grid = self._learnt()
            moved = tree.mapped(policy, lambda _, tensor: tensor.to(where))
            try:
                return returns_on(
                    family, [of_run.tasks[number] for number in numbers], numbers, learner, moved, grid,
                    range(self.config.seed, self.config.seed + self.config.num_seeds), episodes,
                    self.config.episodes + 1, getattr(torch, self.config.dtype),
                )  # fmt: skip
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                raise UsageError(f"`episodes`: expected tests that fit in memory, got {episodes:,}") from error
        config = self.config.replace(device=device, engine="external", eval_episodes=episodes, replay_capacity=1)
        experiment = prepare(config, family)
        state = tree.unflatten(experiment.initial_state.learner, self._tensors(), "learner")
        try:
            return experiment.evaluate(experiment.rollout.learner.policy(state), self.config.episodes + 1).cpu().numpy()
        finally:
            experiment.close()

    def _tensors(self) -> dict[str, torch.Tensor]:
        loaded = checkpoint.load_checkpoint(self.folder / "checkpoint", self.config.algo)
        if loaded is None:
            raise CheckpointError(f"checkpoint: {self.folder} holds none yet")
        return loaded[0]


def load(folder: str | Path, run: int = 0) -> Run:
    """The run in a folder.

        torchq.load("runs/a").policy.act(observation, task=2)

    Args:
        folder: the run folder.
        run: which of the runs side by side what is learnt is of, from 0.

    Raises:
        UsageError: a ValueError, if there is no run in the folder, or not so many.
    """
    if not isinstance(folder, str | Path):
        raise UsageError(f"`folder`: expected the path of a run folder, got {folder!r}")
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"`folder`: expected a run folder, but {path} does not exist")
    if not (path / CONFIG).exists() or not (path / METRICS).exists():
        inside = any((one / CONFIG).exists() for one in path.iterdir() if one.is_dir())
        hint = f"; it holds some: name them, as {path}/*" if inside else ""
        raise UsageError(f"`folder`: expected a run folder, but {path} has no {CONFIG} and {METRICS}{hint}")
    found = Run(path, run)
    if run not in range(found.config.num_seeds):
        raise UsageError(f"`run`: expected a number from 0 to {found.config.num_seeds - 1}, got {run}")
    return found
