"""Act, step, learn: one step of every environment of a batch, and the random numbers for many steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchq import philox
from torchq.engines.contract import Batch, EnvState, LearnerState, RunState, Tasks
from torchq.engines.shards import TaskShare
from torchq.lowrank import replay
from torchq.lowrank.exploration import epsilon_greedy
from torchq.lowrank.learner import Learner
from torchq.lowrank.modes import Grid
from torchq.lowrank.replay import Replay
from torchq.lowrank.transitions import Transition
from torchq.philox import Purpose


class Environment(Protocol):
    """What the loop asks of an environment: pure functions on batches shaped (seeds, tasks, envs)."""

    name: str
    terminates: bool
    num_reset_uniforms: int
    num_step_uniforms: int

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        ...

    @property
    def episode_length(self) -> int:
        """Steps until an episode is truncated."""
        ...

    @property
    def grid_low(self) -> tuple[float, ...]:
        """Lowest grid point per observation dimension."""
        ...

    @property
    def grid_high(self) -> tuple[float, ...]:
        """Highest grid point per observation dimension."""
        ...

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Grid points per observation dimension."""
        ...

    def reset(self, tasks: Tasks, uniforms: Tensor) -> EnvState:
        """State at the start of an episode."""
        ...

    def step(
        self, tasks: Tasks, state: EnvState, action: Tensor, uniforms: Tensor
    ) -> tuple[EnvState, Tensor, Tensor, Tensor]:
        """State, reward, terminated and truncated after one step."""
        ...

    def observe(self, state: EnvState) -> Tensor:
        """Observation, shaped (seeds, tasks, envs, dimensions)."""
        ...


def selected(tasks: Tasks, index: Tensor) -> Tasks:
    """Parameters of some tasks, by their numbers."""
    fields = {field.name: getattr(tasks, field.name) for field in dataclasses.fields(tasks)}
    return type(tasks)(**{name: values[index.to(values.device)] for name, values in fields.items()})


def _count(tasks: Tasks) -> int:
    return len(getattr(tasks, dataclasses.fields(tasks)[0].name))


class Draws(NamedTuple):
    """Random numbers of one step or, with a leading axis, of many; shapes (seeds, tasks, envs[, n])."""

    explore: Tensor
    random_action: Tensor
    step: Tensor
    autoreset: Tensor
    own_slots: Tensor
    """Where the step's transitions are stored, (envs,)."""
    stored_slots: Tensor
    """Where those to learn from again lie, (seeds, tasks, batch, updates)."""


@dataclass(frozen=True)
class Rollout:
    """Everything that stays the same during a run, and one step of it.

    Args:
        env: the family of environments.
        tasks: parameters of all tasks.
        grid: from observations to rows of the factors.
        learner: the method.
        gamma: discount γ in [0, 1].
        seeds: int64 seeds of the runs, (seeds,).
        num_envs: environments per run and task.
        dtype: floating-point type of environments and learner.
        replay: what is learnt from again at each step; None: each step's transitions, once.
        test_tasks: parameters of the tasks that are tested, those that learn first; None: only they are.
        test_rows: numbers of the tasks that are tested, (tested tasks,), among those that learn and, after them, those
            that do not; None: they are all of these.
        share: which of a run's tasks these are, where other processes have others.
    """

    env: Environment
    tasks: Tasks
    grid: Grid
    learner: Learner
    gamma: float
    seeds: Tensor
    num_envs: int
    dtype: torch.dtype
    replay: Replay | None = None
    test_tasks: Tasks | None = None
    test_rows: Tensor | None = None
    share: TaskShare | None = None

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return self.seeds.device

    @property
    def num_tasks(self) -> int:
        """M, of those that learn."""
        return _count(self.tasks)

    @property
    def num_tested(self) -> int:
        """Tasks that are tested."""
        return self.num_tasks if self.test_tasks is None else _count(self.test_tasks)

    def batch(self, task: int | None = None) -> Batch:
        """All tasks, or one of them."""
        index = torch.arange(self.num_tasks, device=self.device)
        if task is None:
            return Batch(self.tasks, index, whole=True)
        index = index[task : task + 1]
        return Batch(selected(self.tasks, index), index, whole=False)

    def test_batch(self) -> Batch:
        """All tasks that are tested."""
        tasks = self.tasks if self.test_tasks is None else self.test_tasks
        return Batch(tasks, torch.arange(self.num_tested, device=self.device), whole=True)

    def bits(self, purpose: Purpose, steps: Tensor, tasks: Tensor, num_envs: int, count: int) -> Tensor:
        """Random words of this run's seeds on this run's device."""
        envs = torch.arange(num_envs, device=self.device)
        return philox.random_bits(self.seeds, steps, purpose, self.names(tasks, purpose), envs, count)

    def names(self, tasks: Tensor, purpose: Purpose = Purpose.STEP) -> Tensor:
        """Numbers in the whole run of tasks of a batch, or of one of those tested, by which random numbers follow."""
        if self.test_rows is not None and purpose in (Purpose.EVALUATION_RESET, Purpose.EVALUATION_STEP):
            tasks = self.test_rows[tasks]
        return tasks if self.share is None else self.share.names[tasks]

    def tested(self, policy: LearnerState) -> LearnerState:
        """A learner's policy on the tasks that are tested."""
        return policy if self.test_rows is None else self.learner.at_tasks(policy, self.test_rows)

    @property
    def updates_per_step(self) -> int:
        """Updates of the learner at each step."""
        return 1 if self.replay is None else self.replay.ratio

    def empty_memory(self, slots: int) -> Any:
        """Room for stored transitions, with so many slots for each task; () without replay."""
        if self.replay is None:
            return ()
        shape = (len(self.seeds), self.num_tasks, slots, replay.width(len(self.grid.mode_sizes)))
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def draw(self, steps: Tensor, tasks: Tensor, num_slots: int = 0) -> Draws:
        """Random numbers of training steps, with a leading axis of steps.

        Args:
            steps: their numbers.
            tasks: which take part.
            num_slots: of the memory of stored transitions.
        """
        explore, action = self.bits(Purpose.EXPLORATION, steps, tasks, self.num_envs, 2).unbind(-1)
        step = self.bits(Purpose.STEP, steps, tasks, self.num_envs, self.env.num_step_uniforms)
        num_reset = self.env.num_reset_uniforms if self.env.terminates else 0
        autoreset = self.bits(Purpose.AUTORESET, steps, tasks, self.num_envs, num_reset)
        return Draws(
            philox.uniform(explore, self.dtype),
            philox.integers(action, self.env.num_actions),
            philox.uniform(step, self.dtype),
            philox.uniform(autoreset, self.dtype),
            *self._slots(steps, tasks, num_slots),
        )

    def _slots(self, steps: Tensor, tasks: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        if self.replay is None:
            return steps.new_zeros(len(steps), 0), steps.new_zeros(len(steps), 0)
        bits = self.bits(Purpose.REPLAY, steps, tasks, self.replay.batch, self.replay.ratio)
        own = self.replay.own(steps, self.num_envs, num_slots)
        return own, self.replay.drawn(bits, steps, self.num_envs, num_slots)

    def reset(self, batch: Batch, step: int, purpose: Purpose = Purpose.RESET, num_envs: int | None = None) -> EnvState:
        """Environments at the start of an episode, when each has taken so many steps; unless said, those that train."""
        first, num_envs = torch.full((1,), step, device=self.device), num_envs or self.num_envs
        bits = self.bits(purpose, first, batch.task_index, num_envs, self.env.num_reset_uniforms)[0]
        return self.env.reset(batch.tasks, philox.uniform(bits, self.dtype))

    def index(self, env_state: EnvState) -> tuple[Tensor, ...]:
        """Rows of the state modes."""
        return self.grid.index(self.env.observe(env_state))

    def step(self, batch: Batch, state: RunState, draws: Draws, epsilon: Tensor, learning_rate: Tensor) -> RunState:
        """One step of the behaviour policy in every environment, and the updates that it brings.

        Args:
            batch: who plays.
            state: before.
            draws: random numbers of this step.
            epsilon: exploration rate, shape ().
            learning_rate: η, shape ().
        """
        learner, env, statistics, memory = state
        index = self.index(env)
        values = self.learner.action_values(learner, index, batch.task)
        action = epsilon_greedy(values, epsilon, draws.explore, draws.random_action)
        env, reward, terminated, truncated = self.env.step(batch.tasks, env, action, draws.step)
        discount = self.gamma * (~terminated).to(reward.dtype)
        transition = Transition(index, action, reward, discount, self.index(env))
        learner, memory, error = self.learn(learner, memory, transition, draws, learning_rate, batch.task)
        done = terminated | truncated
        seen = (reward, done.to(reward.dtype), error.abs(), error * error)
        statistics = statistics.plus(*(x.mean(-1) for x in seen))
        if self.env.terminates:
            fresh = self.env.reset(batch.tasks, draws.autoreset)
            env = type(env)(*(torch.where(done, new, old) for new, old in zip(fresh, env, strict=True)))
        return RunState(learner, env, statistics, memory)

    def learn(
        self, learner: LearnerState, memory: Any, new: Transition, draws: Draws, rate: Tensor, task: Tensor | None
    ) -> tuple[LearnerState, Any, Tensor]:
        """The learner after one update from a step's transitions, or several from them and stored ones; δ of the first.

        What is stored with the step can be drawn by it.
        """
        if self.replay is None:
            learner, error = self.learner.update(learner, new, rate, task)
            return learner, memory, error
        memory, errors = replay.store(memory, draws.own_slots, new), []
        for slots in draws.stored_slots.unbind(-1):  # (seeds, tasks, batch)
            again = replay.joined(new, replay.recall(memory, slots, new))
            learner, error = self.learner.update(learner, again, rate, task)
            errors.append(error)
        return learner, memory, errors[0][..., : self.num_envs]
