"""Compile `program.cpp` for one run, once: the libraries lie in a cache, named by all that went into them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from torchq.engines.codegen.cache import cache_folder, is_sealed, seal, write_text

SOURCE = Path(__file__).with_name("program.cpp")
_INCLUDED = ("vectors.h", "lanes.h", "philox.h", "common.h", "batched.h", "online.h")
# Strict arithmetic: states that a rounding error apart can fall on two grid points, so environments must round as in
# eager mode. Fused multiply-adds stand where they are meant.
_FLAGS = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_WHERE_KNOWN = ("-march=native", "-mprefer-vector-width=512", "-fopenmp", "-Wno-psabi")
"""Not every compiler, or processor, takes these: they go where they are taken."""


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of g++ and clang++ that there is."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def library(constants: dict[str, str], family: str) -> ctypes.CDLL:
    """The program with these constants and this family, compiled if the cache does not hold it whole, and as one's own.

    Args:
        constants: of the preprocessor.
        family: C++ of the struct Family; it lies in the cache beside the library, to be read.

    Raises:
        RuntimeError: if there is no compiler, or it fails: its first line.
    """
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler found; install g++ or set CXX")
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    version = subprocess.run([found, "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True).stdout
    sources = [SOURCE.with_name(name).read_bytes() for name in (SOURCE.name, *_INCLUDED)]
    flags = " ".join((*_FLAGS, *_WHERE_KNOWN, *defined))
    parts = [*sources, family.encode(), flags.encode(), version.encode(), _processor()]
    path = cache_folder() / f"program-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if not is_sealed(path):
        header = path.with_suffix(".h")
        write_text(header, family)
        _compile(found, [*defined, f'-DFAMILY="{header}"'], path)
    return ctypes.CDLL(str(path))


def _compile(found: str, defined: list[str], path: Path) -> None:
    """Compile to a file of its own, which then takes its place: two processes may do so at once."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(descriptor)
    command = [found, *_FLAGS, *defined, str(SOURCE), "-o", name]
    try:
        done = subprocess.run([*command, *_WHERE_KNOWN], capture_output=True, text=True)
        if done.returncode:
            done = subprocess.run([*command, *_taken(found)], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise RuntimeError(f"{Path(found).name}: {errors[0] if errors else 'failed'}")
        seal(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _taken(found: str) -> list[str]:
    """Those flags that this compiler takes, each asked for an empty program."""
    command = [found, "-Werror", "-x", "c++", "-shared", "-fPIC", "-o", os.devnull, "-"]
    return [
        flag for flag in _WHERE_KNOWN
        if subprocess.run([*command, flag], input="", capture_output=True, text=True).returncode == 0
    ]  # fmt: skip


def _processor() -> bytes:
    """What -march=native depends on: a cache may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return b""
    return "".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags")))).encode()
