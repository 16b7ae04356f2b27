"""Errors that a user can act on; the command line prints them as one line and exits with code 2."""


class UsageError(Exception):
    """An argument is wrong: the message names it, says what was expected, what came and what to do."""


class CheckpointError(UsageError):
    """A checkpoint cannot be loaded: truncated, corrupted, of another algorithm or of a newer format."""


class DivergedError(UsageError):
    """Training met a value that is not finite: the message names the task and the interval."""


class MetricsError(UsageError):
    """The metrics.csv of a run is damaged, or holds nothing to show yet."""


class SolverError(Exception):
    """A semidefinite program was not solved: the message says how it ended and what to look at."""
