"""Checkpoints: safetensors and JSON, written atomically, loaded without running code.

`checkpoint/checkpoint.json` names the tensor file that belongs to it and its SHA-256, or the files of several processes
that share a run. A new checkpoint writes new tensor files first and then replaces the JSON in one rename, so that a
process killed at any moment leaves the old checkpoint or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from torchq.errors import CheckpointError

FORMAT_VERSION = 2
_INDEX = "checkpoint.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder.

    Args:
        folder: the `checkpoint/` folder of a run; made if missing.
        tensors: by name.
        counters: JSON values, among them `algo` and `episode`.
    """
    switch(folder, [write_part(folder, tensors, counters["episode"])], {}, counters)


def write_part(folder: Path, tensors: dict[str, Tensor], episode: int, which: str = "") -> tuple[str, str]:
    """Write the tensors of a checkpoint, or a process's part of them; nothing refers to the file before `switch`.

    Args:
        folder: the `checkpoint/` folder of a run; made if missing.
        tensors: by name.
        episode: rounds played.
        which: part it is, such as "0of4".

    Returns:
        Name of the file, and its SHA-256.
    """
    folder.mkdir(exist_ok=True)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"state-{episode:09d}{which and '-' + which}.safetensors"
    write_atomically(folder / name, content)
    return name, hashlib.sha256(content).hexdigest()


def switch(folder: Path, parts: list[tuple[str, str]], axes: dict[str, int], counters: dict[str, Any]) -> None:
    """Let written parts be the checkpoint, and remove those of the one before.

    Args:
        folder: the `checkpoint/` folder of a run.
        parts: from `write_part`, in the order in which they follow each other.
        axes: along which, by the names of the tensors; the others are those of the first part.
        counters: JSON values, among them `algo` and `episode`.
    """
    if len(parts) == 1:
        index = {"format_version": 1, "tensors": parts[0][0], "sha256": parts[0][1], **counters}
    else:
        index = {"format_version": FORMAT_VERSION, "parts": parts, "axes": axes, **counters}
    write_atomically(folder / _INDEX, json.dumps(index, indent=2).encode())
    names = {name for name, _ in parts}
    for old in folder.glob("*state-*.safetensors*"):
        if old.name not in names:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path, algo: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and counters of the checkpoint in a folder; None if there is none.

    Raises:
        CheckpointError: if it is truncated, corrupted, of another algorithm or of a newer format.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"checkpoint: expected a folder, but {folder} is a file; start a new run")
    if not (folder / _INDEX).exists():
        return None
    try:
        index = json.loads((folder / _INDEX).read_bytes())
        version = index["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint: expected format version up to {FORMAT_VERSION}, got {version}; update torchq to read it"
            )
        listed = index["parts"] if "parts" in index else [(index["tensors"], index["sha256"])]
        parts = [(str(name), str(digest)) for name, digest in listed]
        axes = {str(name): int(axis) for name, axis in index.get("axes", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint: {folder / _INDEX} is corrupted ({error}); start a new run") from error
    if index.get("algo") != algo:
        raise CheckpointError(f"checkpoint: expected one of `algo={algo}`, got one of `algo={index.get('algo')}`")
    found = [_read_part(folder, name, digest) for name, digest in parts]
    try:
        return {
            name: torch.cat([part[name] for part in found], axes[name]) if name in axes else tensor
            for name, tensor in found[0].items()
        }, index
    except (KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint: its parts do not fit together ({error!r}); start a new run") from error


def _read_part(folder: Path, name: str, digest: str) -> dict[str, Tensor]:
    path = folder / name
    if path.parent != folder or not path.is_file():
        raise CheckpointError(f"checkpoint: {path} is missing; start a new run")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointError(f"checkpoint: {path} is truncated or corrupted (wrong SHA-256); start a new run")
        return load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint: {path} is corrupted ({error}); start a new run") from error
