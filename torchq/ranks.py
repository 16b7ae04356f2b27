"""Processes that share a run, as `torchrun` starts them; a process by itself is the only one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Exchange(Protocol):
    """Gathers what every rank sends, in their order."""

    ranks: int

    def __call__(self, sent: Tensor, received: Tensor) -> None:
        """Fill `received`, (ranks · size,), with what all send, (size,)."""
        ...
