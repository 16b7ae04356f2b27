"""Many environments of Gymnasium that step together, in worker processes: Gymnasium's own vector environment, over
bundles of environments, of which each worker has one.
"""  # noqa: D205

from __future__ import annotations

import ctypes
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from .blame import where
from .spaces import Actions, flat

_DIED = (EOFError, ConnectionResetError, BrokenPipeError)
_WORKER = "Worker<AsyncVectorEnv>"
"""How Gymnasium's processes are called."""
_PATIENCE = 5.0
"""Seconds that processes have to end."""


class SimulatorError(RuntimeError):
    """An environment, or the process that it runs in, failed: one line that says which and how."""


class Stepped(NamedTuple):
    """What a step of all environments gives, in order."""

    observation: np.ndarray
    """(environments, dimensions), float64."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Making(NamedTuple):
    """How an environment is made, and what of it is read."""

    label: str
    """What errors call it."""
    make: Callable[[], gymnasium.Env]
    actions: Actions
    dimensions: int
    reward_weights: tuple[float, ...] = ()
    """Of an environment with several rewards."""


class _Bundle(gymnasium.Env[np.ndarray, np.ndarray]):
    """Environments of one worker as one: a row each of observation, reward, terminated, truncated; errors in the info.

    A row of its action is whether to step, and a number for each axis of the action.
    """

    def __init__(self, makings: Sequence[Making], offset: int, count: int) -> None:
        self.makings, self.offset = makings, offset
        self.envs: list[gymnasium.Env | None] = [None] * len(makings)  # Made when first reset: in the worker.
        width, axes = makings[0].dimensions + 3, len(makings[0].actions.sizes)
        self.observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (count, width), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1 << 31, (count, 1 + axes), np.int64)
        self.rows = np.zeros((count, width))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        """Start again those of a mask, each with a seed of its own."""
        assert options is not None
        seeds = options["seeds"][self.offset : self.offset + len(self.makings)]
        mask = options["mask"][self.offset : self.offset + len(self.makings)]
        error = ""
        _end_with_parent()
        for number in np.flatnonzero(mask).tolist():
            error = error or self._guarded(number, "reset()", partial(self._reset, number, int(seeds[number])))
        return self.rows, {"error": error} if error else {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of those that are to."""
        error = ""
        for number in np.flatnonzero(action[: len(self.makings), 0]).tolist():
            error = error or self._guarded(number, "step()", partial(self._step, number, action[number, 1:]))
        return self.rows, 0.0, False, False, {"error": error} if error else {}

    def close(self) -> None:
        """Close all."""
        for env in self.envs:
            if env is not None:
                env.close()

    def _reset(self, number: int, seed: int) -> None:
        making = self.makings[number]
        if self.envs[number] is None:
            self.envs[number] = making.make()
        env: Any = self.envs[number]
        self._keep(number, env, env.reset(seed=seed)[0], 0.0, False, False)

    def _step(self, number: int, action: np.ndarray) -> None:
        env, making = self.envs[number], self.makings[number]
        assert env is not None
        observation, reward, terminated, truncated, _ = env.step(making.actions(action))
        gained = _scalar(reward, making.reward_weights)
        self._keep(number, env, observation, gained, _truth(terminated, "terminated"), _truth(truncated, "truncated"))

    def _keep(self, number: int, env: gymnasium.Env, observation: Any, *rest: Any) -> None:
        numbers = flat(env.observation_space, observation)
        if len(numbers) + 3 != self.rows.shape[1]:
            raise ValueError(f"gave {len(numbers)} numbers, expected {self.rows.shape[1] - 3}")
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"gave an observation that is not finite, {observation}")
        if not math.isfinite(rest[0]):
            raise ValueError(f"gave the reward {rest[0]}")
        self.rows[number] = (*numbers, *map(float, rest))

    def _guarded(self, number: int, what: str, call: Callable[[], None]) -> str:
        """What went wrong in a call, in one line; "" if nothing did."""
        try:
            call()
        except Exception as error:  # Whatever an environment raises.
            reason = str(error).strip().partition("\n")[0]
            return f"{self.makings[number].label}: {what} failed: {type(error).__name__}: {reason}{where(error)}"
        return ""


def _truth(value: Any, what: str) -> bool:
    if not isinstance(value, bool | np.bool_) and value not in (0, 1):
        raise ValueError(f"gave {what} {value!r}, expected True or False")
    return bool(value)


def _end_with_parent() -> None:
    """Have Linux end this process with the one that made it, if that one made it for environments alone."""
    if multiprocessing.current_process().name.startswith(_WORKER):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes made meanwhile never hear of Ctrl-C, which a terminal sends to all; this one does, when it is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _scalar(reward: Any, weights: tuple[float, ...]) -> float:
    rewards = np.asarray(reward, dtype=np.float64).ravel()
    if len(rewards) == 1 and not weights:
        return float(rewards[0])
    if len(rewards) != len(weights):
        names = ",".join(f"reward_weights.{number}=…" for number in range(len(rewards)))
        raise ValueError(f"gave {len(rewards)} rewards for {len(weights)} weights; name a weight for each: {names}")
    return float(rewards @ np.array(weights))


class Simulators:
    """A batch of live environments, numbered from 0.

    Args:
        makings: how each is made.
        workers: processes; 0 steps all in this one.
    """

    def __init__(self, makings: Sequence[Making], workers: int) -> None:
        self.count, self._axes = len(makings), len(makings[0].actions.sizes)
        self._labels = [making.label for making in makings]
        shares = np.array_split(np.arange(self.count), max(1, min(workers, self.count)))
        self._each = max(map(len, shares))
        self._sizes = [len(share) for share in shares]
        bundles = [
            partial(_Bundle, [makings[number] for number in share], int(share[0]), self._each) for share in shares
        ]
        make: Any = AsyncVectorEnv if workers else SyncVectorEnv
        with _uninterrupted():
            self._vector = make(bundles, autoreset_mode=AutoresetMode.DISABLED)
        self._pending: np.ndarray | None = None
        """Actions of a step that was begun; None: they have answered all that they were asked."""

    def reset(self, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Start the episodes of a mask with these seeds; the observations of all, (environments, dimensions).

        Raises:
            SimulatorError: if an environment or a process fails.
        """
        self._pending = np.zeros(0)
        rows, info = self._answer(lambda: self._vector.reset(options={"seeds": seeds, "mask": mask}))
        self._pending = None
        return self._read(rows, info).observation

    def start(self, actions: np.ndarray, mask: np.ndarray) -> None:
        """Begin a step of those of a mask, (environments,), with a whole number per axis, (environments, axes).

        Other processes go on while this one does something else.
        """
        padded = np.zeros((len(self._sizes), self._each, 1 + self._axes), dtype=np.int64)
        numbered = np.concatenate([mask[:, None], actions], axis=1)
        for worker, part in enumerate(np.split(numbered, np.cumsum(self._sizes)[:-1])):
            padded[worker, : len(part)] = part
        self._pending = padded
        if isinstance(self._vector, AsyncVectorEnv):
            self._answer(lambda: self._vector.step_async(padded))

    def finish(self) -> Stepped:
        """The step that was begun.

        Raises:
            SimulatorError: if an environment or a process fails.
        """
        asynchronous = isinstance(self._vector, AsyncVectorEnv)
        call = self._vector.step_wait if asynchronous else partial(self._vector.step, self._pending)
        rows, *_, info = self._answer(call)
        self._pending = None
        return self._read(rows, info)

    def close(self) -> None:
        """Close all; processes that are in the middle of a step are killed."""
        if not isinstance(self._vector, AsyncVectorEnv):
            self._vector.close()
            return
        if self._pending is None:
            with suppress(*_DIED):  # A process may be gone already, as after Ctrl-C in a terminal.
                self._vector.close(timeout=_PATIENCE)
                return
        for process, pipe in zip(self._vector.processes, self._vector.parent_pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._vector.closed = True

    def _read(self, rows: np.ndarray, info: dict[str, Any]) -> Stepped:
        if errors := [error for error in info.get("error", ()) if error]:
            raise SimulatorError(errors[0])
        parts = [part[:size] for part, size in zip(rows, self._sizes, strict=True)]
        numbers = np.concatenate(parts)  # (environments, dimensions + 3)
        return Stepped(numbers[:, :-3], numbers[:, -3], numbers[:, -2] != 0, numbers[:, -1] != 0)

    def _answer(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except _DIED as error:
            for process in self._vector.processes:
                process.join(0.2)
            dead = [process for process in self._vector.processes if not process.is_alive()]
            which = f" (exit code {dead[0].exitcode})" if dead else ""
            of = self._tasks_of(self._vector.processes.index(dead[0])) if dead else ""
            raise SimulatorError(f"a worker process{of} died{which}: killed, out of memory, or crashed") from error

    def _tasks_of(self, worker: int) -> str:
        """The tasks of a worker, the first few of them."""
        first = sum(self._sizes[:worker])
        labels = list(dict.fromkeys(self._labels[first : first + self._sizes[worker]]))
        return f" of {', '.join(labels[:3])}{' and others' if len(labels) > 3 else ''}"
