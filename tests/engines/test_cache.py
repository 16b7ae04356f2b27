"""What lies in the cache is run: it must be one's own, and whole."""

import os
from pathlib import Path

import pytest
from problems import PLAIN, experiment, play

from torchq import cache
from torchq.engines.cpu import build
from torchq.engines.cpu.engine import CppEngine


@pytest.fixture
def program(monkeypatch, tmp_path):
    """A compiled program in a cache of its own."""
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path / "cache"))
    CppEngine(rollout())
    (path,) = (tmp_path / "cache").glob("*.so")
    return path


def rollout():
    return experiment("stlrq", "gridworld", **PLAIN).rollout


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "a page short": lambda content: content[:-4096],
    "without its seal": lambda content: content[:-32],
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "another file": lambda content: b"#!/bin/sh\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_program_is_compiled_again(damage, program):
    """Loading a truncated one kills the process, with no message."""
    content = program.read_bytes()
    assert cache.is_sealed(program)
    damaged = program.with_suffix(".new")
    damaged.write_bytes(damage(content))
    damaged.chmod(0o700)
    damaged.replace(program)
    assert not cache.is_sealed(program)
    CppEngine(rollout())
    assert cache.is_sealed(program)
    play(experiment("stlrq", "gridworld", engine="fused", **PLAIN), 1)


def test_what_others_may_write_to_is_compiled_again(program, monkeypatch):
    program.chmod(0o777)
    assert not cache.is_sealed(program)
    CppEngine(rollout())
    assert cache.is_sealed(program)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not cache.is_sealed(program)
    program.unlink()
    program.symlink_to(build.SOURCE)
    assert not cache.is_own(program)


def test_programs_and_their_folder_are_private(program):
    assert program.stat().st_mode & 0o077 == 0
    assert program.parent.stat().st_mode & 0o077 == 0


def test_an_empty_or_relative_home_of_caches_is_none(monkeypatch):
    monkeypatch.delenv("TORCHQ_CACHE", raising=False)
    for home in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert cache.cache_folder() == Path.home() / ".cache" / "torchq"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_folder() == Path("/somewhere/torchq")
    monkeypatch.setenv("TORCHQ_CACHE", "")
    assert cache.cache_folder() == Path("/somewhere/torchq")
