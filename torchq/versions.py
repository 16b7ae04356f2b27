"""What produced a result: versions and the commit of the source."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python, torchq and the packages whose arithmetic enters a result."""
    packages = {name: metadata.version(name) for name in ("torchq", "torch", "numpy")}
    return {"python": platform.python_version(), **packages}


def git_commit() -> str | None:
    """Commit of the source tree that this package lies in, with a + if it was changed; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
