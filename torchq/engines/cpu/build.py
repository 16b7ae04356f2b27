"""Compile `program.cpp` for one run."""

from __future__ import annotations

import ctypes
from pathlib import Path

from torchq import native

SOURCE = Path(__file__).with_name("program.cpp")
_INCLUDED = ("vectors.h", "lanes.h", "philox.h", "common.h", "batched.h", "online.h")
# Strict arithmetic: states that a rounding error apart can fall on two grid points, so environments must round as in
# eager mode. Fused multiply-adds stand where they are meant.
_STRICT = "-ffp-contract=off"


def library(constants: dict[str, str], family: str) -> ctypes.CDLL:
    """The program with these constants and this family.

    Args:
        constants: of the preprocessor.
        family: C++ of the struct Family.

    Raises:
        RuntimeError: if there is no compiler, or it fails: its first line.
    """
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    return native.library(SOURCE, _INCLUDED, [_STRICT, *defined], family)
