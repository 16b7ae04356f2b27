"""Grid: from continuous observations to rows of the factors and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Equidistant points per observation dimension; an observation belongs to the nearest one.

        index = round((clip(x, low, high) − low) / (high − low) · (size − 1)),  half to even

    Points, not cells: the two end cells are half as wide as the others.

    Args:
        low: lowest point per dimension, in the units of the observation.
        high: highest point per dimension.
        sizes: number of points per dimension, at least 1.
        joint: one mode of ∏ sizes rows (the text of [TLR]) instead of one mode per dimension.

    Raises:
        ValueError: if the three tuples differ in length, a size is below 1, or low ≥ high where size > 1.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    sizes: tuple[int, ...]
    joint: bool = False

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.sizes):
            raise ValueError(
                f"low, high, sizes: expected one value per dimension each, "
                f"got {len(self.low)}, {len(self.high)} and {len(self.sizes)}"
            )
        for low, high, size in zip(self.low, self.high, self.sizes, strict=True):
            if size < 1:
                raise ValueError(f"sizes: expected at least 1 point per dimension, got {size}")
            if size > 1 and not low < high:
                raise ValueError(f"low, high: expected low < high, got {low} and {high}")

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Rows of each state factor."""
        return (math.prod(self.sizes),) if self.joint else self.sizes

    def index(self, observation: Float[Tensor, "*batch dims"]) -> tuple[Int[Tensor, "*batch"], ...]:
        """Row of each state mode; a NaN falls on some valid row, so that it cannot index outside the factors."""
        indices = [
            self._dimension_index(x, low, high, size)
            for x, low, high, size in zip(observation.unbind(-1), self.low, self.high, self.sizes, strict=True)
        ]
        if not self.joint:
            return tuple(indices)
        flat = torch.zeros_like(indices[0])
        for index, size in zip(indices, self.sizes, strict=True):
            flat = flat * size + index
        return (flat,)

    @staticmethod
    def _dimension_index(x: Tensor, low: float, high: float, size: int) -> Tensor:
        if size == 1:
            return torch.zeros_like(x, dtype=torch.int64)
        # By a tensor: CUDA multiplies with the rounded reciprocal of a number, and a tie falls on the other point.
        scaled = (x.clamp(low, high) - low) / x.new_full((), high - low) * (size - 1)
        return scaled.round().long().clamp(0, size - 1)

    def points(self, dimension: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, " size"]:
        """Coordinates of the grid points along one dimension."""
        return torch.linspace(self.low[dimension], self.high[dimension], self.sizes[dimension], dtype=dtype)
