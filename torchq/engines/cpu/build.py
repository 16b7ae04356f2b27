"""Compile `program.cpp` for one problem, once: the libraries lie in a cache, named by all that went into them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("program.cpp")
_INCLUDED = tuple(SOURCE.with_name(name) for name in ("common.h", "vectors.h", "batched.h", "online.h"))
# Strict arithmetic: states that a rounding error apart can fall on two grid points, so environments must round as in
# eager mode. Fused multiply-adds stand where they are meant.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-mprefer-vector-width=512",
)  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of g++ and clang++ that there is."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled programs lie: TORCHQ_CACHE, or torchq in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchq"
    return Path(os.environ.get("TORCHQ_CACHE", default))


def library(constants: dict[str, str], header: Path) -> ctypes.CDLL:
    """The program with these constants and this environment, compiled if the cache does not hold it.

    Args:
        constants: of the preprocessor.
        header: the environment's C++.

    Raises:
        RuntimeError: if there is no compiler, or it fails: its first line.
    """
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler found; install g++ or set CXX")
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in constants.items()), f'-DENVIRONMENT="{header}"']
    version = subprocess.run([found, "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True).stdout
    sources = [path.read_bytes() for path in (SOURCE, *_INCLUDED)]
    parts = [*sources, header.read_bytes(), " ".join(flags).encode(), version.encode(), _processor()]
    path = cache_folder() / f"program-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if not path.exists():
        _compile(found, flags, path)
    return ctypes.CDLL(str(path))


def _compile(found: str, flags: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(descriptor)
    try:
        done = subprocess.run([found, *flags, str(SOURCE), "-o", name], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise RuntimeError(f"{Path(found).name}: {errors[0] if errors else 'failed'}")
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _processor() -> bytes:
    """What -march=native depends on: a cache may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return b""
    return "".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags")))).encode()
