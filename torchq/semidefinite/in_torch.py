"""All that a batch of programs needs in torch operations, wherever its tensors are; `processor.py` in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchq.semidefinite import derivatives, interior_point, quality
from torchq.semidefinite.polish import STEPS, polish
from torchq.semidefinite.program import Block, Point, Program, Quality


class InTorch:
    """A batch of programs.

    Args:
        program: float64 on one device, everything with a batch dimension or without.
        batch: instances.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self.program, self.batch = program, batch

    def look(self) -> tuple[Tensor, int | None]:
        """Which instances are finite, (batch,), and the number of the first part that is not symmetric."""
        return quality.look(self.program, self.batch)

    def solve(self, tolerance: float, iterations: int, *, alone: bool = True) -> Point:
        """Solve the batch."""
        return interior_point.solve(self.program, self.batch, tolerance, iterations)

    def polish(
        self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor, steps: int = STEPS
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Usable solutions made exact, and the error that is left, (batch,), NaN of others."""
        exact = polish(*self._tidy(z, w, Y, usable), steps)
        z, w = (torch.where(usable.unsqueeze(-1), x, y) for x, y in ((exact.z, z), (exact.w, w)))
        Y = tuple(torch.where(usable[:, None, None], x, y) for x, y in zip(exact.Y, Y, strict=True))
        return z, w, Y, torch.where(usable, exact.error, torch.nan)

    def describe(self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...]) -> Quality:
        """How good solutions are."""
        return quality.describe(self.program, z, w, Y)

    def differentiate(
        self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor, of_z: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients with respect to those parts of the program that are wanted, (batch, …) each."""
        program, z, w, Y = self._tidy(z, w, Y, usable)
        of_z = torch.where(usable.unsqueeze(-1), of_z, 0.0)
        found = derivatives.gradients(program, z, w, Y, derivatives.active(program, z, w, Y), of_z)
        return [part if want else None for part, want in zip(found.parts(), wanted, strict=True)]

    def _tidy(
        self, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor
    ) -> tuple[Program, Tensor, Tensor, tuple[Tensor, ...]]:
        """The program and its solution, with zeros in place of instances that have none."""

        def tidy(part: Tensor, own: int) -> Tensor:
            part = part.expand(len(usable), *part.shape[part.dim() - own :])
            return torch.where(usable.view(-1, *[1] * own), part, 0.0)

        def shared(L: Tensor) -> Tensor:
            return L if L.dim() == 3 and bool(torch.isfinite(L).all()) else tidy(L, 3)

        c, A, b, blocks = self.program
        tidied = tuple(Block(tidy(block.C, 2), shared(block.L)) for block in blocks)
        multipliers = tuple(tidy(matrix, 2) for matrix in Y)
        return Program(tidy(c, 1), tidy(A, 2), tidy(b, 1), tidied), tidy(z, 1), tidy(w, 1), multipliers
