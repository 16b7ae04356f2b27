"""How signals end a command."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torchq.handlers import ENDING, handled_by


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
    """The first signal raises `Stopped`; a second one, of whatever kind, ends the process at once."""

    def stop(number: int, _: FrameType | None) -> None:
        for other in (one for one in ENDING if signal.getsignal(one) is stop):
            signal.signal(other, signal.SIG_DFL)
        raise Stopped(number)

    with handled_by(stop):
        yield


def exit_code(error: BaseException | None) -> int:
    """128 and the number of the signal behind an error, as shells count; that of Ctrl-C where none is known."""
    while error is not None:
        if isinstance(error, Stopped):
            return 128 + error.number
        error = error.__cause__ or error.__context__
    return 128 + signal.SIGINT
