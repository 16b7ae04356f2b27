"""Checkpoints: safetensors and JSON, written atomically, loaded without running code.

`checkpoint/checkpoint.json` names the tensor file that belongs to it and its SHA-256. A new checkpoint writes a new
tensor file first and then replaces the JSON in one rename, so that a process killed at any moment leaves the old
checkpoint or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from torchq.errors import CheckpointError

FORMAT_VERSION = 1
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
    folder.mkdir(exist_ok=True)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"state-{counters['episode']:09d}.safetensors"
    write_atomically(folder / name, content)
    index = {
        "format_version": FORMAT_VERSION,
        "tensors": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        **counters,
    }
    write_atomically(folder / _INDEX, json.dumps(index, indent=2).encode())
    for old in folder.glob("*state-*.safetensors*"):
        if old.name != name:
            old.unlink()


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
        version, name, digest = index["format_version"], index["tensors"], index["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint: {folder / _INDEX} is corrupted ({error}); start a new run") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint: expected format version up to {FORMAT_VERSION}, got {version}; update torchq to read it"
        )
    if index.get("algo") != algo:
        raise CheckpointError(f"checkpoint: expected one of `algo={algo}`, got one of `algo={index.get('algo')}`")
    path = folder / str(name)
    if path.parent != folder or not path.is_file():
        raise CheckpointError(f"checkpoint: {path} is missing; start a new run")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"checkpoint: {path} is truncated or corrupted (wrong SHA-256); start a new run")
    try:
        return load(content), index
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint: {path} is corrupted ({error}); start a new run") from error
