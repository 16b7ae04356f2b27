"""The processes of `torchrun`: what one says all know, errors of one end all, and no one waits for ever.

A process by itself is the only rank, and every method is then free. Numbers travel by `torch.distributed`: gloo between
CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from torchq.errors import RankError, UsageError
from torchq.handlers import handled_by

_T = TypeVar("_T")
_SECONDS_TO_ANSWER = 3.0
"""After an error, for other ranks to say that they are alive."""
_SECONDS_OF_ECHO = 5.0
"""In which a signal may come twice: from the terminal, and from torchrun."""


class Exchange(Protocol):
    """Gathers what every rank sends, in their order."""

    @property
    def count(self) -> int:
        """Number of ranks."""
        ...

    def exchange(self, sent: Tensor, received: Tensor) -> None:
        """Fill `received`, (count · size,), with what all send, (size,)."""
        ...


class Ranks:
    """The ranks of a run, seen from one of them.

    Args:
        index: which it is, from 0.
        count: how many there are.
        local_index: which it is on its machine.
        local_count: how many are there.
        store: where they leave each other notes; None for one alone.
        seconds: to wait for another.
    """

    def __init__(
        self, index: int = 0, count: int = 1, local_index: int = 0, local_count: int = 1, store: Any = None,
        seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self.index, self.count, self.local_index, self.local_count = index, count, local_index, local_count
        self._store, self._seconds, self._signal, self._signalled = store, seconds, 0, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def exchange(self, sent: Tensor, received: Tensor) -> None:
        """Fill `received`, (count · size,), with what all send, (size,); see `Exchange`."""
        with self._reaching():
            dist.all_gather(list(received.chunk(self.count)), sent)

    def first(self, make: Callable[[], _T]) -> _T:
        """What rank 0 makes, for all; its error ends all."""
        if self.count == 1:
            return make()
        made = [make() if self.index == 0 else None]
        with self._reaching():
            dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]

    def gathered(self, value: _T) -> list[_T]:
        """What all have, at rank 0; [] elsewhere."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.index == 0 else None
        with self._reaching():
            dist.gather_object(value, found)
        return found or []

    def numbers(self, *values: int) -> Tensor:
        """Whole numbers of all, (count, values)."""
        mine = torch.tensor([values], dtype=torch.int64)
        if self.count == 1:
            return mine
        found = torch.empty(self.count, len(values), dtype=torch.int64)
        with self._reaching():
            dist.all_gather(list(found.unbind()), mine[0])
        return found

    @contextmanager
    def one_before_the_others(self) -> Iterator[None]:
        """Let one rank of each machine go first: what it compiles the others find."""
        if self.local_index:
            self.numbers(0)
        yield
        if not self.local_index:
            self.numbers(0)

    @contextmanager
    def signals_kept(self) -> Iterator[None]:
        """Keep signals for `agree`: what happens in the middle of an exchange would strand the others."""

        def keep(number: int, _: Any) -> None:
            if not self._signal:
                self._signal, self._signalled = number, time.monotonic()
            elif time.monotonic() - self._signalled > _SECONDS_OF_ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        if self.count == 1:
            yield
            return
        with handled_by(keep) as self._before:
            yield

    def agree(self, count: int) -> int:
        """Rank 0's number; where any rank has had a signal, its handler is called in all.

        Raises:
            KeyboardInterrupt: as that handler does.
        """
        if self.count == 1:
            return count
        said = self.numbers(count, self._signal)
        if number := int(said[:, 1].max()):
            handler = self._before.get(signal.Signals(number))
            if callable(handler):
                handler(number, None)
            raise KeyboardInterrupt
        return int(said[0, 0])

    def speaks(self) -> bool:
        """Whether this rank is the one that tells of an error: the first to ask."""
        if self._store is None:
            return True
        with suppress(RuntimeError):
            return bool(self._store.add("torchq/said", 1) == 1)
        return True

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Name the ranks that cannot be reached."""
        try:
            yield
        except RuntimeError as error:
            missing = self._missing()
            names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "a rank"
            raise RankError(
                f"{names} of {self.count} cannot be reached: it ended, or has not answered for {self._seconds:.0f} s "
                "(TORCHQ_TIMEOUT)"
            ) from error

    def _missing(self) -> list[int]:
        """The ranks that do not say that they are alive."""
        if self._store is None:
            return []
        others = [rank for rank in range(self.count) if rank != self.index]
        with suppress(RuntimeError):
            self._store.set(f"torchq/alive/{self.index}", "1")
            until = time.monotonic() + _SECONDS_TO_ANSWER
            while len(others) > 1 and time.monotonic() < until:
                time.sleep(0.05)
                others = [rank for rank in others if not self._store.check([f"torchq/alive/{rank}"])]
        return others


ALONE = Ranks()
_joined = ALONE


def launched() -> bool:
    """Whether torchrun, or another launcher like it, has started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun has started the processes again after one of them failed."""
    return launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def current() -> Ranks:
    """The ranks that this process has joined."""
    return _joined


def speaks() -> bool:
    """Whether this process is to tell of an error: of all the same errors of all ranks, one is told."""
    if launched() and _joined is ALONE:
        return os.environ["RANK"] == "0"
    return _joined.speaks()


def join() -> Ranks:
    """Join the other processes that torchrun has started, if it has.

    Raises:
        UsageError: if the environment variables of the launcher are not as expected.
        RankError: if the others do not come.
    """
    global _joined
    if not launched():
        return ALONE
    if _joined is not ALONE:
        return _joined
    seconds = _seconds()
    try:
        index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", index)), int(os.environ.get("LOCAL_WORLD_SIZE", count))
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE: expected numbers, as torchrun sets them ({error})") from error
    if torch.cuda.is_available():
        torch.cuda.set_device(local[0] % torch.cuda.device_count())
    store = None
    try:
        if not dist.is_initialized():
            with handled_by(signal.SIG_DFL):  # There is nothing to keep yet.
                store = _meet(index, count, seconds)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RankError(f"rank {index} of {count}: the others did not come together ({reason})") from error
    _joined = Ranks(index, count, *local, store, seconds)
    atexit.register(_leave)
    return _joined


def _meet(index: int, count: int, seconds: float) -> Any:
    """Connect with the others; the store where they leave notes."""
    wait, attempt = timedelta(seconds=seconds), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, _, _ = next(dist.rendezvous("env://", index, count, timeout=wait))
    store = dist.PrefixStore(f"torchq/{attempt}", store)  # What ranks that have ended left there is another's.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=wait)
    return store


def _leave() -> None:
    with suppress(RuntimeError, ValueError):
        dist.destroy_process_group()


def _seconds() -> float:
    """TORCHQ_TIMEOUT: how long to wait for another rank."""
    said = os.environ.get("TORCHQ_TIMEOUT", "300")
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 1e6:
        raise UsageError(f"TORCHQ_TIMEOUT: expected seconds from 1 to 1,000,000, got {said!r}")
    return seconds
