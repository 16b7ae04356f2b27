"""Signals that end a process: Ctrl-C, SIGTERM (Slurm, Kubernetes) and SIGHUP (a terminal that is closed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


@contextmanager
def handled_by(handler: Handler) -> Iterator[dict[signal.Signals, Any]]:
    """Let a function, or what the system does, answer them; afterwards all is as it was.

    What is ignored stays so, as SIGHUP under nohup. Outside of the main thread nothing changes.

    Yields:
        The handlers before, of those that are answered.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    answered = {number: one for number, one in before.items() if one is not signal.SIG_IGN}
    for number in answered:
        signal.signal(number, handler)
    try:
        yield answered
    finally:
        for number, one in answered.items():
            signal.signal(number, one or signal.SIG_DFL)
