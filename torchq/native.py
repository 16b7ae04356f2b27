"""C++ compiled for the processor at hand, once: the libraries lie in a cache, named by all that went into them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torchq.cache import cache_folder, is_sealed, seal, write_text

_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_WHERE_KNOWN = ("-march=native", "-mprefer-vector-width=512", "-fopenmp", "-Wno-psabi")
"""Not every compiler, or processor, takes these: they go where they are taken."""


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of g++ and clang++ that there is."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def num_threads() -> int:
    """All processors that this process may use, or OMP_NUM_THREADS of them where that is a number."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # A list is of nested levels.
    return int(asked) if asked.isdecimal() and int(asked) else available


def library(source: Path, included: Sequence[str] = (), flags: Sequence[str] = (), header: str = "") -> ctypes.CDLL:
    """A program, compiled if the cache does not hold it whole, and as one's own.

    Args:
        source: a file of C++.
        included: names of the files beside it that it includes.
        flags: of the compiler, constants of the preprocessor among them.
        header: generated C++ that the program includes as FAMILY; it lies in the cache beside the library, to be read.

    Raises:
        RuntimeError: if there is no compiler, or it fails: its first line.
    """
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler found; install g++ or set CXX")
    version = subprocess.run([found, "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True).stdout
    sources = [source.with_name(name).read_bytes() for name in (source.name, *included)]
    every = [*_FLAGS, *flags]
    parts = [*sources, header.encode(), " ".join((*every, *_WHERE_KNOWN)).encode(), version.encode(), _processor()]
    path = cache_folder() / f"{source.stem}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if not is_sealed(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if header:
            write_text(path.with_suffix(".h"), header)
            every.append(f'-DFAMILY="{path.with_suffix(".h")}"')
        _compile([found, *every, str(source)], path)
    return ctypes.CDLL(str(path))


def _compile(command: list[str], path: Path) -> None:
    """Compile to a file of its own, which then takes its place: two processes may do so at once."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(descriptor)
    command = [*command, "-o", name]
    try:
        done = subprocess.run([*command, *_WHERE_KNOWN], capture_output=True, text=True)
        if done.returncode:
            done = subprocess.run([*command, *_taken(command[0])], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise RuntimeError(f"{Path(command[0]).name}: {errors[0] if errors else 'failed'}")
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
