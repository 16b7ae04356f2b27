"""The method of `interior_point.py`, and of all that follows it, for processors: C++ called with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from torchq import native
from torchq.semidefinite.polish import STEPS
from torchq.semidefinite.program import Point, Program, Quality

_FOLDER = Path(__file__).parent


class _Program(ctypes.Structure):
    """The struct Program of instances.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "num_variables", "num_residuals", "num_blocks", "threads")),
        *((name, ctypes.c_void_p) for name in ("rows", "parts", "strides")),
    )


class _Task(ctypes.Structure):
    """The struct Task of interior_point.cpp."""

    _fields_ = (
        ("program", _Program),
        ("iterations", ctypes.c_int64),
        ("alone", ctypes.c_int64),
        ("tolerance", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("z", "w", "X", "Y", "merit", "taken")),
    )


class _Found(ctypes.Structure):
    """The struct Found of solutions.cpp."""

    kept: dict[str, Tensor | None]
    _fields_ = (
        ("program", _Program),
        ("steps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("usable", "z", "w", "Y", "error", "cost", "gap", "primal", "dual")),
    )


class _Gradients(ctypes.Structure):
    """The struct Gradients of solutions.cpp."""

    _fields_ = (("found", _Found), ("of_z", ctypes.c_void_p), ("of_parts", ctypes.c_void_p))


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The compiled programs, interior_point.cpp and solutions.cpp.

    Raises:
        RuntimeError: if there is no compiler, or it fails.
    """
    solver = native.library(_FOLDER / "interior_point.cpp", ["dense.h", "instances.h", "lanes.h", "small_matrices.h"])
    solutions = native.library(_FOLDER / "solutions.cpp", ["instances.h", "dense.h"])
    solutions.look.restype = ctypes.c_int64
    return solver, solutions


class Processor:
    """A batch of programs on the CPU, whose tensors stay where they are.

    Args:
        program: float64, everything with a batch dimension or without.
        batch: instances.

    Raises:
        RuntimeError: if there is no compiler, or it fails.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self.batch = batch
        self.parts = [part.contiguous() for part in program.parts()]
        own = [1, 2, 1, *[2, 3] * len(program.blocks)]
        strides = [part.stride(0) if part.dim() > dims else 0 for part, dims in zip(self.parts, own, strict=True)]
        self.sizes = [block.C.shape[-1] for block in program.blocks]
        self.n, self.N = program.c.shape[-1], program.num_residuals
        self._kept = _array(self.sizes), _pointers(self.parts), _array(strides)  # C++ holds their addresses.
        addresses = (ctypes.addressof(array) for array in self._kept)
        sizes = batch, self.n, self.N, len(self.sizes), torch.get_num_threads()
        self._program = _Program(*sizes, *addresses)

    def look(self) -> tuple[Tensor, int | None]:
        """Which instances are finite, (batch,), and the number of the first part that is not symmetric."""
        finite = torch.empty(self.batch, dtype=torch.int64)
        first = library()[1].look(ctypes.byref(self._program), ctypes.c_void_p(finite.data_ptr()))
        return finite.bool(), None if first < 0 else first

    def solve(self, tolerance: float, iterations: int, *, alone: bool = True) -> Point:
        """Solve the batch.

        Args:
            tolerance: of the merit.
            iterations: at most.
            alone: whether a few instances may be solved one after the other, which is quicker for many residuals, but
                rounds otherwise than side by side.
        """
        area = sum(size * size for size in self.sizes)
        z, w, X, Y = (self._empty(size) for size in (self.n, self.N, area, area))
        merit, taken = self._empty(), torch.empty(self.batch, dtype=torch.int64)
        addresses = (part.data_ptr() for part in (z, w, X, Y, merit, taken))
        task = _Task(self._program, iterations, alone, tolerance, *addresses)
        library()[0].solve(ctypes.byref(task))
        return Point(z, w, self._parted(X), self._parted(Y), merit, taken)

    def polish(
        self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor, steps: int = STEPS
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Usable solutions made exact, and the error that is left, (batch,), NaN of others."""
        z, w, flat, error = z.clone(), w.clone(), self._joined(Y), self._empty()
        found = self._found(z, w, flat, usable, steps=steps, error=error)
        library()[1].polish(ctypes.byref(found))
        return z, w, self._parted(flat), error

    def describe(self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...]) -> Quality:
        """How good solutions are."""
        quality = Quality(*(self._empty() for _ in Quality._fields))
        found = self._found(z, w, self._joined(Y), **quality._asdict())
        library()[1].describe(ctypes.byref(found))
        return quality

    def differentiate(
        self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor, of_z: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients with respect to those parts of the program that are wanted, (batch, …) each."""
        dims = [1, 2, 1, *[2, 3] * len(self.sizes)]
        shapes = [part.shape[part.dim() - own :] for part, own in zip(self.parts, dims, strict=True)]
        asked = [self._empty(*shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        found, of_z, pointers = self._found(z, w, self._joined(Y), usable), of_z.contiguous(), _pointers(asked)
        gradients = _Gradients(found, of_z.data_ptr(), ctypes.addressof(pointers))
        library()[1].differentiate(ctypes.byref(gradients))
        return asked

    def _found(
        self, z: Tensor, w: Tensor, Y: Tensor, usable: Tensor | None = None, *, steps: int = 0, **out: Tensor
    ) -> _Found:
        whole = None if usable is None else usable.to(torch.int64)
        named = {"usable": whole, "z": z.contiguous(), "w": w.contiguous(), "Y": Y, **out}
        pointers = {name: part.data_ptr() for name, part in named.items() if part is not None}
        found = _Found(self._program, steps, **pointers)
        found.kept = named  # As long as their addresses.
        return found

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(self.batch, *shape, dtype=torch.float64)

    def _joined(self, matrices: tuple[Tensor, ...]) -> Tensor:
        flat = [matrix.flatten(1) for matrix in matrices]
        return torch.cat(flat, 1) if flat else self._empty(0)

    def _parted(self, flat: Tensor) -> tuple[Tensor, ...]:
        parts = flat.split([size * size for size in self.sizes], 1)
        return tuple(part.unflatten(1, (size, size)) for part, size in zip(parts, self.sizes, strict=True))


def _array(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if one is None else one.data_ptr() for one in tensors))
