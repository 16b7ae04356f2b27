"""Run folders: which one a run gets, who may write to it, and the configuration that lies in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torchq.checkpoint import write_atomically
from torchq.config import Config, from_json, to_json
from torchq.errors import UsageError
from torchq.methods import ALGOS, QUADRATIC_ALGOS
from torchq.presets import resolve
from torchq.versions import git_commit, versions

CONFIG = "config.json"
SUMMARY = "summary.json"
_MAY_DIFFER = ("device", "shard", "learning_rate")
"""Settings with which a run may go on otherwise."""


def new_config(out: Path | None, given: Mapping[str, Any]) -> Config:
    """Configuration of a run that does not exist yet, from what is given.

    Raises:
        UsageError: if an argument is missing or wrong, or the folder holds something already.
    """
    if "algo" not in given:
        raise UsageError(f"`algo`: expected one of {', '.join(ALGOS)}, got nothing; begin with `algo=stlrq`")
    if out is not None:
        _check_free(out)
    rest = dict(given)
    return resolve(rest.pop("algo"), rest.pop("env", default_env(given["algo"])), rest.pop("preset", "default"), rest)


def default_env(algo: str) -> str:
    """The family that a method is trained on unless told otherwise."""
    return "damped-pendulum" if algo in QUADRATIC_ALGOS else "pendulum"


def resumed_config(out: Path | None, given: Mapping[str, Any]) -> Config:
    """Configuration of the run in a folder, with which all that is given must agree.

    Some may differ: the device, what ranks share out, the learning rate, and the number of episodes if there are more.

    Raises:
        UsageError: if there is no run in the folder, it cannot be read, or an argument contradicts it.
    """
    if out is None:
        raise UsageError("`resume`: expected `out` with the folder of the run to continue")
    if not out.is_dir():
        state = "is not a folder" if out.exists() else "does not exist"
        raise UsageError(f"`resume`: expected the folder of a run, but {out} {state}")
    if not (out / CONFIG).exists():
        if "algo" not in given:
            raise UsageError(f"`resume`: {out} holds no run, or one that ended before it began; start it again")
        return new_config(out, given)
    config = read_config(out)
    wanted = config.replace(**given)
    for name in given:
        stored, value = getattr(config, name), getattr(wanted, name)
        if name == "episodes" and value > stored:
            config = _extended(config, value)
        elif name in _MAY_DIFFER:
            config = config.replace(**{name: value})
        elif value != stored and value != "auto":
            came = f"expected {_shown(stored)}, as in the run to continue, got {_shown(value)}; leave it out"
            raise UsageError(f"`{name}`: {came}")
    return config


def read_config(folder: Path) -> Config:
    """Configuration of the run in a folder.

    Raises:
        UsageError: if its config.json cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UsageError(f"expected a run folder, but {folder} has no {CONFIG}")
    try:
        return from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is corrupted or of another version ({error}); start a new run") from error


def write_config(folder: Path, config: Config) -> None:
    """Write config.json, or bring the number of episodes and the learning rate in it up to date."""
    path = folder / CONFIG
    content = {**to_json(config), "versions": versions(), "git_commit": git_commit()}
    if path.exists():
        before = json.loads(path.read_bytes())
        changed = {name: getattr(config, name) for name in ("episodes", "learning_rate")}
        if all(before.get(name) == value for name, value in changed.items()):
            return
        (folder / SUMMARY).unlink(missing_ok=True)
        content = {**before, **changed}
    write_atomically(path, json.dumps(content, indent=2).encode())


@contextmanager
def claim(out: Path | None, config: Config, *, resume: bool) -> Iterator[Path]:
    """Make the run folder if need be, and hold it for this process alone.

    Args:
        out: the folder; None takes the first free `runs/ALGO-ENV-N`.
        config: of the run.
        resume: whether the folder may hold a run already.

    Raises:
        UsageError: if another process holds it, or made a run there in the meantime.
    """
    if out is None:
        out = make_numbered(Path("runs"), f"{config.algo}-{config.env.replace(':', '-')}")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        if not resume:
            _check_free(out)
        yield out
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    """Lock a folder until its descriptor is closed or the process ends, however it ends; POSIX only."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"`out`: another process is training in {out}; name another folder") from error


def make_numbered(parent: Path, prefix: str) -> Path:
    """The first folder `parent/prefix-N` that there is not yet, made.

    Raises:
        UsageError: if the parent is no folder.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        kind = "a link to nothing" if parent.is_symlink() else "a file"
        raise UsageError(
            f"`out`: expected {parent} to be a folder, but it is {kind}; remove it, or give `out`"
        ) from error
    number = 1
    while True:
        path = parent / f"{prefix}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"`out`: expected a folder, got the file {out}")
    if (out / CONFIG).exists():
        raise UsageError(f"`out`: {out} already holds a run; continue it with `resume=True`, or name another folder")
    if out.exists() and any(path.suffix != ".tmp" for path in out.iterdir()):
        raise UsageError(f"`out`: expected a new or empty folder, but {out} holds other files; name another folder")


def _extended(config: Config, episodes: int) -> Config:
    if config.episodes % config.eval_every:
        raise UsageError(
            f"`episodes`: the run to continue has {config.episodes}, which `eval_every={config.eval_every}` does not "
            "divide, so that a longer run would differ; leave it out"
        )
    return config.replace(episodes=episodes)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, ()) else str(value)
