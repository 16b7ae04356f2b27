"""Where generated code and compiled programs lie."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """TORCHQ_CACHE, or torchq in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchq"
    return Path(os.environ.get("TORCHQ_CACHE", default))


def write_text(path: Path, text: str) -> None:
    """Write a file that other processes may write at the same time, so that none reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(name, path)
