"""Errors that a user can act on, in the words of whoever asked: the keyword arguments of Python, or flags.

Texts are written once, with arguments in backquotes: "`num_envs`: expected 1 with `preset=paper`, got 2". Python reads
`num_envs: expected 1 with preset="paper", got 2`; the command line translates it to
`--num-envs: expected 1 with --preset paper, got 2`, and exits with code 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Spelling = Callable[[str, str | None], str]
"""How an argument is written: its name, and its value where the text gives one."""

_ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def spell(text: str, spelling: Spelling) -> str:
    """A text with its arguments written in some spelling."""
    return _ARGUMENT.sub(lambda found: spelling(found[1], found[2]), text)


def keyword(name: str, value: str | None) -> str:
    """An argument as Python writes it."""
    if value is None:
        return name
    word = re.fullmatch(r"[^\W\d][\w-]*", value) and value not in ("True", "False", "None")
    return f'{name}="{value}"' if word else f"{name}={value}"


class TorchqError(Exception):
    """Any error of torchq: one line that says what was expected, what came and what to do."""

    def __str__(self) -> str:
        return self.spelt(keyword)

    def spelt(self, spelling: Spelling) -> str:
        """The message with its arguments written in some spelling."""
        return spell(super().__str__(), spelling)


class UsageError(TorchqError, ValueError):
    """An argument is wrong: the message names it, says what was expected, what came and what to do."""


class CheckpointError(TorchqError):
    """A checkpoint cannot be loaded: truncated, corrupted, of another algorithm or of a newer format."""


class DivergedError(TorchqError):
    """Training met a value that is not finite: the message names the task and the interval."""


class ExternalError(TorchqError):
    """An environment that is not torchq's, or the process that it runs in, failed: the message says which and how."""


class RankError(TorchqError):
    """Another process of the run ended, or does not answer: the message says which."""


class MetricsError(TorchqError):
    """The metrics.csv of a run is damaged, or holds nothing to show yet."""


class SolverError(TorchqError):
    """A semidefinite program was not solved: the message says how it ended and what to look at."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run trained: what it has learnt is kept, and the message says how to go on."""

    def __str__(self) -> str:
        return self.spelt(keyword)

    def spelt(self, spelling: Spelling) -> str:
        """The message with its arguments written in some spelling."""
        return spell(super().__str__(), spelling)
