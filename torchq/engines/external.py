"""The engine of environments outside of PyTorch: they step in processes of their own while the learner learns.

At each step the environments are given their actions, and the learner updates from the transitions of the step before
while they compute. A policy is one update behind that of the other engines; nothing else differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState, UnavailableError
from torchq.engines.eager import draws
from torchq.engines.rollout import Draws, Rollout
from torchq.errors import ExternalError
from torchq.lowrank.exploration import epsilon_greedy
from torchq.lowrank.transitions import Transition

_LOG = logging.getLogger("torchq")


class Simulators(Protocol):
    """Live environments, numbered in a row; they raise RuntimeError, with one line, where one fails."""

    def reset(self, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start those of a mask with their seeds; the observations of all, (environments, dimensions)."""
        ...

    def start(self, actions: np.ndarray, mask: np.ndarray) -> None:
        """Begin a step of those of a mask; actions are whole numbers, (environments, axes)."""
        ...

    def finish(self) -> Any:
        """Observation, reward, terminated and truncated after the step that was begun."""
        ...

    def close(self) -> None:
        """End them."""
        ...


@runtime_checkable
class ExternalEnvironment(Protocol):
    """A family whose environments are opened; its states hold `observation`, `elapsed`, `seed` and `actions`."""

    action_sizes: tuple[int, ...]

    def open(self, tasks: Sequence[Any], num_seeds: int, num_envs: int) -> Simulators:
        """Live environments, (seeds, tasks, envs) in a row."""
        ...


def noisy(env: Any) -> bool:
    """Whether an environment's steps are random, or may be: what is written elsewhere does not say."""
    return env.num_step_uniforms > 0 or isinstance(env, ExternalEnvironment)


class _Live:
    """A batch of live environments beside what tells where they stand."""

    def __init__(self, env: Any, tasks: Any, shape: torch.Size, dtype: torch.dtype) -> None:
        self.env, self.shape, self.dtype = env, shape, dtype
        self._tasks = _listed(tasks, np.finfo(torch.empty(0, dtype=dtype).numpy().dtype).precision)
        self.simulators = self._opened()
        count = int(np.prod(shape))
        self.seed, self.elapsed = np.full(count, -1), np.zeros(count, dtype=np.int64)
        self.actions = np.zeros((count, env.episode_length), dtype=np.int32)
        self.observation = np.zeros((count, 1))

    def bring(self, state: EnvState) -> None:
        """Have the environments stand where a state does: reset with its seeds, and repeat its actions.

        One that does not come out where it was, whose random numbers do not all follow from its seed, starts a new
        episode; where one fails at what it did before, all of them do.
        """
        seed, elapsed = state.seed.flatten().cpu().numpy(), state.elapsed.flatten().cpu().numpy().astype(np.int64)
        actions = state.actions.flatten(0, 2).cpu().numpy()
        there = (seed == self.seed) & (elapsed == self.elapsed) & (actions == self.actions).all(1)
        if there.all():
            return
        lost = self._repeated(seed, elapsed, actions, ~there)
        expected = state.observation.flatten(0, 2).cpu().double().numpy()
        near = np.isclose(self.observation.astype(expected.dtype), expected, rtol=1e-5, atol=1e-6).all(1)
        lost |= ~there & (elapsed > 0) & ~near
        if lost.any():
            _LOG.warning(
                "%d of %d environments do not come out where they were (their random numbers do not follow from the "
                "seed of reset): they start new episodes, and the run differs from one that was never interrupted",
                int(lost.sum()), len(lost),
            )  # fmt: skip
            self.restart(seed, lost)

    def _repeated(self, seed: np.ndarray, elapsed: np.ndarray, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Reset those of a mask and repeat their actions; those that did not get as far as before."""
        lost = np.zeros_like(mask)
        self.restart(seed, mask)
        try:
            for step in range(int(elapsed[mask].max())):
                going = mask & ~lost & (step < elapsed)
                self.begin(actions[:, step].astype(np.int64), going)
                _, terminated, truncated = self.end(going)
                lost |= going & (terminated | truncated) & (step + 1 < elapsed)
        except ExternalError as error:
            _LOG.warning("an environment fails at what it did before the interruption: %s", error)
            self.simulators.close()
            self.simulators = self._opened()
            lost[:] = True
            self.restart(seed, lost)
        return lost

    def _opened(self) -> Simulators:
        return _asked(lambda: self.env.open(self._tasks, self.shape[0], self.shape[2]))

    def restart(self, seed: np.ndarray, mask: np.ndarray) -> None:
        """Start new episodes of a mask."""
        self.observation = _asked(lambda: self.simulators.reset(seed, mask)).copy()
        self.seed[mask], self.elapsed[mask], self.actions[mask] = seed[mask], 0, 0

    def begin(self, action: np.ndarray, mask: np.ndarray) -> None:
        """Begin a step of a mask with an action each, as one number."""
        axes = np.stack(np.unravel_index(action, self.env.action_sizes), axis=1)
        _asked(lambda: self.simulators.start(axes, mask))
        rows = np.flatnonzero(mask)
        self.actions[rows, self.elapsed[rows] % self.actions.shape[1]] = action[rows]

    def end(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward, terminated and truncated of the step that was begun."""
        self.observation, reward, terminated, truncated = map(np.array, _asked(self.simulators.finish))
        self.elapsed[mask] += 1
        over = self.elapsed >= self.actions.shape[1]
        return reward, terminated, (truncated | over) & ~terminated

    def observed(self, like: Tensor) -> Tensor:
        """Observations of all, (seeds, tasks, envs, dimensions)."""
        return torch.from_numpy(self.observation).to(like.device, self.dtype).view(*self.shape, -1)

    def tensor(self, numbers: np.ndarray, like: Tensor) -> Tensor:
        """Numbers of all, (seeds, tasks, envs)."""
        found = torch.from_numpy(numbers).view(self.shape)
        return found.to(like.device, self.dtype if found.is_floating_point() else found.dtype)

    def state(self, like: EnvState) -> EnvState:
        """Where they stand."""
        return like._replace(
            observation=self.observed(like.elapsed).clone(),
            elapsed=self.tensor(self.elapsed, like.elapsed).to(like.elapsed.dtype),
            seed=self.tensor(self.seed, like.elapsed).clone(),
            actions=torch.from_numpy(self.actions.copy()).view(*self.shape, -1).to(like.elapsed.device),
        )


def _asked(call: Callable[[], Any]) -> Any:
    """What simulators answer.

    Raises:
        ExternalError: if they fail.
    """
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        raise ExternalError(str(error)) from error


class ExternalEngine:
    """Trains in live environments; see the top of this file.

    Args:
        rollout: of a family that is opened.
        name: of the engine.
        prepared: what is done to the functions that learn and act first, such as compiling them.

    Raises:
        UnavailableError: if the family is another.
    """

    def __init__(
        self, rollout: Rollout, name: str = "external", prepared: Callable[[Any], Any] = lambda function: function
    ) -> None:
        if not isinstance(rollout.env, ExternalEnvironment):
            raise UnavailableError("only environments outside of PyTorch, such as Gymnasium's, run in it")
        self.name, self.rollout = name, rollout
        self.learn, self.action_values = prepared(rollout.learn), prepared(rollout.learner.action_values)
        self._live: dict[str, _Live] = {}

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int) -> RunState:
        """Consecutive steps with their updates, as in `Engine`; the last is learnt from before they end.

        Raises:
            ExternalError: if an environment or its process fails.
        """
        rollout = self.rollout
        steps = first_step + torch.arange(len(rates.epsilon), device=rollout.device)
        num_slots = state.replay.shape[2] if rollout.replay else 0
        with self._opened("training", batch.tasks, state.env) as live:
            waiting: tuple[Transition, Draws, Tensor] | None = None
            for drawn, epsilon, rate in zip(draws(rollout, steps, batch.task_index, num_slots), *rates, strict=True):
                state, transition = self._step(live, batch, state, drawn, epsilon, waiting)
                waiting = (transition, drawn, rate)
            assert waiting is not None
            return self._learnt(batch, state, waiting)._replace(env=live.state(state.env))

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes, as in `Engine`; environments whose episode is over rest.

        Raises:
            ExternalError: if an environment or its process fails.
        """
        rollout, like = self.rollout, env.elapsed
        with self._opened("tests", rollout.test_batch().tasks, env) as live:
            total, alive = np.zeros(like.numel()), np.ones(like.numel(), dtype=bool)
            while alive.any():
                index = rollout.grid.index(live.observed(like))
                action = rollout.learner.action_values(learner, index).argmax(-1)
                live.begin(action.flatten().cpu().numpy(), alive)
                reward, terminated, truncated = live.end(alive)
                total += np.where(alive, reward, 0.0)
                alive &= ~(terminated | truncated)
            return live.tensor(total, like)

    def _step(
        self, live: _Live, batch: Batch, state: RunState, drawn: Draws, epsilon: Tensor, waiting: Any
    ) -> tuple[RunState, Transition]:
        """One step of every environment, and meanwhile the update of the step before."""
        rollout, like = self.rollout, state.env.elapsed
        everyone = np.ones(like.numel(), dtype=bool)
        index = rollout.grid.index(live.observed(like))
        values = self.action_values(state.learner, index, batch.task)
        action = epsilon_greedy(values, epsilon, drawn.explore, drawn.random_action)
        live.begin(action.flatten().cpu().numpy(), everyone)
        if waiting is not None:
            state = self._learnt(batch, state, waiting)
        gained, terminated, truncated = live.end(everyone)
        reward, done = live.tensor(gained, like), terminated | truncated
        discount = rollout.gamma * live.tensor(1.0 - terminated, like)
        transition = Transition(index, action, reward, discount, rollout.grid.index(live.observed(like)))
        ended = live.tensor(done.astype(np.float64), like)
        statistics = state.statistics.plus(reward.mean(-1), ended.mean(-1), 0 * ended.mean(-1), 0 * ended.mean(-1))
        if done.any():
            fresh = rollout.env.reset(batch.tasks, drawn.autoreset)
            live.restart(fresh.seed.flatten().cpu().numpy(), done)
        return state._replace(statistics=statistics), transition

    def _learnt(self, batch: Batch, state: RunState, waiting: tuple[Transition, Draws, Tensor]) -> RunState:
        """The state after the updates that a step brings."""
        transition, drawn, rate = waiting
        learner, memory, error = self.learn(state.learner, state.replay, transition, drawn, rate, batch.task)
        nothing = torch.zeros_like(state.statistics.reward)
        seen = (nothing, nothing, error.abs().mean(-1), (error * error).mean(-1))
        return state._replace(learner=learner, replay=memory, statistics=state.statistics.plus(*seen))

    def close(self) -> None:
        """End all environments."""
        while self._live:
            self._live.popitem()[1].simulators.close()

    @contextmanager
    def _opened(self, purpose: str, tasks: Any, state: EnvState) -> Iterator[_Live]:
        """Live environments brought to where a state stands; closed if anything fails, for they stand in between."""
        shape = state.elapsed.shape
        try:
            if purpose in self._live and self._live[purpose].shape != shape:
                self._live.pop(purpose).simulators.close()
            if purpose not in self._live:
                self._live[purpose] = _Live(self.rollout.env, tasks, shape, self.rollout.dtype)
            self._live[purpose].bring(state)
            yield self._live[purpose]
        except BaseException:
            self.close()
            raise


def _listed(tasks: Any, digits: int) -> list[Any]:
    """One dataclass of numbers per task; what was a decimal before it was rounded is that decimal again."""
    names = list(vars(tasks))
    columns = [getattr(tasks, name).flatten().tolist() for name in names]
    rows = zip(*columns, strict=True)
    return [type(tasks)(**{n: float(f"{v:.{digits}g}") for n, v in zip(names, row, strict=True)}) for row in rows]
