"""Where generated code and compiled programs lie, and whether what lies there may be run."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """TORCHQ_CACHE, or torchq in the user's cache; a path that is empty, or in XDG_CACHE_HOME relative, is none."""
    if chosen := os.environ.get("TORCHQ_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "torchq"


def write_text(path: Path, text: str) -> None:
    """Write a file that other processes may write at the same time, so that none reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(name, path)


def is_own(path: Path) -> bool:
    """Whether a file is this user's, and nobody else may write to it: what is run must be."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def seal(path: Path) -> None:
    """End a program with the digest of what is before it, which loaders skip, and keep others from writing to it."""
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())
    path.chmod(0o700)


def is_sealed(path: Path) -> bool:
    """Whether a program is this user's, and whole: a truncated one would kill the process that loads it."""
    if not is_own(path):
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]
