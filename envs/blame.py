"""Where in a user's code an error comes from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = (str(Path(__file__).parent), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"])


def where(error: BaseException) -> str:
    """File and line, as " (boat.py, line 12)"; "" if no code but this package's and libraries' took part."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_OURS, "<")):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""
