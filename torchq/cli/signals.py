"""Signals that end a command: Ctrl-C, SIGTERM (Slurm, Kubernetes) and SIGHUP (a terminal that is closed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal that ends a command in order: what is learnt is kept, as on Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending_in_order() -> Iterator[None]:
    """The first signal raises `Stopped`; a second one, of whatever kind, ends the process at once.

    What is ignored stays so, as SIGHUP under nohup. Outside of the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped(number)

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number] or signal.SIG_DFL)


def exit_code(error: BaseException | None) -> int:
    """128 and the number of the signal behind an error, as shells count; that of Ctrl-C where none is known."""
    while error is not None:
        if isinstance(error, Stopped):
            return 128 + error.number
        error = error.__cause__ or error.__context__
    return 128 + signal.SIGINT
