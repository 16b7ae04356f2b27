"""`interior_point.cpp` called with tensors: the method of `interior_point.py`, eight instances to a vector."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchq import native
from torchq.semidefinite.program import Block, Point, Program

_SOURCE = Path(__file__).with_name("interior_point.cpp")
_SIZES = ("batch", "num_variables", "num_residuals", "num_blocks", "iterations", "threads", "alone")
_SHAPES = ("rows", "begins", "entry_rows", "entry_columns")
_NUMBERS = ("entries", "c", "A", "b", "C")
_FOUND = ("z", "w", "X", "Y", "merit", "taken")


class _Data(ctypes.Structure):
    """The struct Data of the program, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("tolerance", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_SHAPES, *_NUMBERS)),
        *((f"{name}_stride", ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _FOUND),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled program.

    Raises:
        RuntimeError: if there is no compiler, or it fails.
    """
    return native.library(_SOURCE, ["lanes.h"])


class _Terms(NamedTuple):
    """Entries (row ≤ column) of the matrices L that are not zero, by block and variable."""

    rows: Tensor
    """Of each block, (J,)."""
    begins: Tensor
    """(J, n + 1)."""
    entry_rows: Tensor
    entry_columns: Tensor
    entries: Tensor
    """(entries,) or (batch, entries)."""


def _terms(blocks: Sequence[Block], n: int) -> _Terms:
    begins, rows, columns, entries, at = [], [], [], [], 0
    for block in blocks:
        upper = block.L.triu()
        where = upper != 0
        variable, row, column = (where.any(0) if where.dim() == 4 else where).nonzero(as_tuple=True)
        ends = torch.bincount(variable, minlength=n).cumsum(0)
        begins.append(torch.cat((ends.new_zeros(1), ends)) + at)
        at += len(variable)
        rows.append(row)
        columns.append(column)
        entries.append(upper[..., variable, row, column])
    nothing = torch.zeros(0, dtype=torch.int64)
    return _Terms(
        torch.tensor([block.C.shape[-1] for block in blocks], dtype=torch.int64),
        torch.stack(begins) if blocks else nothing,
        torch.cat([nothing, *rows]),
        torch.cat([nothing, *columns]),
        _joined(entries),
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Numbers of all blocks, one after the other; those that all instances share repeated where others are not."""
    if not parts:
        return torch.zeros(0, dtype=torch.float64)
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, -1) for part in parts], -1).contiguous()


def solve(program: Program, batch: int, tolerance: float, iterations: int, *, alone: bool = True) -> Point:
    """Solve a batch on the CPU.

    Args:
        program: float64, everything with a batch dimension or without.
        batch: instances.
        tolerance: of the merit.
        iterations: at most.
        alone: whether a few instances may be solved one after the other, which is quicker for many residuals, but
            rounds otherwise than side by side.

    Raises:
        RuntimeError: if there is no compiler, or it fails.
    """
    n, N = program.c.shape[-1], program.num_residuals
    terms = _terms(program.blocks, n)
    C = _joined([block.C.flatten(-2) for block in program.blocks])
    numbers = [terms.entries, *(part.contiguous() for part in (program.c, program.A, program.b)), C]
    shared = [1, 1, 2, 1, 1]  # Dimensions of an instance.
    strides = [part[0].numel() if part.dim() > own else 0 for part, own in zip(numbers, shared, strict=True)]
    sizes = [block.C.shape[-1] for block in program.blocks]
    area = sum(size * size for size in sizes)
    z, w, X, Y = (torch.empty(batch, size, dtype=torch.float64) for size in (n, N, area, area))
    merit, taken = torch.empty(batch, dtype=torch.float64), torch.empty(batch, dtype=torch.int64)
    found = (z, w, X, Y, merit, taken)
    given = (*terms[:4], *numbers)
    data = _Data(batch, n, N, len(sizes), iterations, torch.get_num_threads(), alone, tolerance)
    for name, part in zip((*_SHAPES, *_NUMBERS, *_FOUND), (*given, *found), strict=True):
        setattr(data, name, part.data_ptr())
    for name, stride in zip(_NUMBERS, strides, strict=True):
        setattr(data, f"{name}_stride", stride)
    library().solve(ctypes.byref(data))
    return Point(z, w, _parted(X, sizes), _parted(Y, sizes), merit, taken)


def _parted(flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    parts = flat.split([size * size for size in sizes], -1)
    return tuple(part.unflatten(-1, (size, size)) for part, size in zip(parts, sizes, strict=True))
