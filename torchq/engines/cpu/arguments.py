"""What the C++ program is called with: its structs, field by field, and the functions that it calls back."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from torchq.ranks import Exchange

_COUNTS = ("seeds", "groups", "tasks", "envs", "steps", "first_step", "updates", "num_updates", "threads")
_EXCHANGE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def block(num_fields: int, num_modes: int, real: Any) -> type[ctypes.Structure]:
    """The struct Block of the program, which begins with its struct Args, field by field."""
    pointer, fields, modes = ctypes.c_void_p, ctypes.c_void_p * num_fields, ctypes.c_void_p * num_modes

    class Args(ctypes.Structure):
        _fields_ = [
            *((count, ctypes.c_int64) for count in _COUNTS),
            *((name, pointer) for name in ("run_seeds", "task_index", "task_names", "parameters")), ("state", fields),
            ("field_bytes", ctypes.c_int64 * num_fields),
            ("factors", modes), ("factor_groups", ctypes.c_int64 * num_modes), ("first", modes), ("second", modes),
            ("rows", ctypes.c_int64 * num_modes),
            *((name, pointer) for name in ("task_places", "epsilon", "learning_rate", "task_weights", "statistics")),
            ("total", pointer),
            *((count, ctypes.c_int64) for count in ("replay_ratio", "replay_batch", "replay_capacity", "slots")),
            ("replay_recent", ctypes.c_double),
            ("memory", pointer), ("target", modes), ("target_rate", real), ("gamma", real), ("guide", modes),
            ("margin", ctypes.c_double), ("margin_end", ctypes.c_double),
            ("purpose", ctypes.c_int64), ("reset_at", pointer), ("shards", ctypes.c_int64), ("shard_begins", pointer),
            ("shard_tasks", ctypes.c_int64), ("ranks", ctypes.c_int64), ("exchange", _EXCHANGE),
        ]  # fmt: skip

    class Block(ctypes.Structure):
        _fields_ = [
            ("args", Args), *((count, ctypes.c_int64) for count in ("rounds", "turns", "fresh", "test_envs")),
            ("test", pointer), ("test_tasks", ctypes.c_int64), ("test_index", pointer), ("test_names", pointer),
            ("test_margin_end", ctypes.c_double), ("test_parameters", pointer),
            ("test_state", fields), ("finite", pointer),
        ]  # fmt: skip

    return Block


def callback(exchange: Exchange, failed: list[BaseException]) -> Any:
    """What the program calls between the gradients of a step and their use; an error is kept and ends it."""

    def call(sent: int, received: int, size: int) -> int:
        try:
            ours, all_of_them = ((ctypes.c_uint8 * count).from_address(at) for at, count in
                                 ((sent, size), (received, size * exchange.count)))  # fmt: skip
            exchange.exchange(
                torch.frombuffer(ours, dtype=torch.uint8), torch.frombuffer(all_of_them, dtype=torch.uint8)
            )
        except BaseException as error:  # Nothing can pass through the program but a number.
            failed.append(error)
            return 1
        return 0

    return _EXCHANGE(call)
