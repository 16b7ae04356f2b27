"""Modes: what a dimension of the observation is to the tensor, a feature map with one or two active rows.

    Q(s, a, m) = Σₖ ∏_d (φ_d(s_d)ᵀ F_d)[k] · A[a, k] · T[m, k]

With one active row of weight 1, the nearest of the grid's points, this is the tensor of the papers.   [TLR, eq. (7)]
With two, of weights 1 − w and w, φ_d are hat functions and each factor is a piecewise linear function of its dimension:
a functional tensor in the sense of Gorodetsky, Karaman and Marzouk ("High-dimensional stochastic optimal control using
continuous tensor decompositions", IJRR 2018) and of Shetty, Xue and Calinon ("Generalized policy iteration using tensor
approximation for hybrid control", ICLR 2024), in CP form.

Differs from the paper: [TLR] knows cells alone; interpolated modes need a fraction of its samples
(benchmarks/results/sample_efficiency.md).

Both kinds are said by one tensor of places along a factor: whole numbers (int64) are rows, fractional ones lie between
the row below and the one above, which is the first again after the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Kind = Literal["cells", "linear", "periodic", "quadratic", "log"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Mode:
    """Points along one dimension of the observation, one for each row of a factor.

        cells      row   = round((clip(x, low, high) − low) / (high − low) · (size − 1)),  half to even
        linear     place = (clip(x, low, high) − low) / (high − low) · (size − 1)
        periodic   place = (x − low) / (high − low) · size  modulo size
        quadratic  place = √((clip(x, low, high) − low) / (high − low)) · (size − 1)
        log        place = log(clip(x, low, high) / low) / log(high / low) · (size − 1)

    Cells lie around the points, so that the two at the ends are half as wide as the others; categories, numbered from
    `low` to `high`, are cells. Periodic dimensions have their first point at `low`, and again at `high`. Quadratic ones
    have points equidistant in the root, and are linear in it between them: for powers, whose roots are amplitudes. Log
    ones do the same in the logarithm: for what differs by orders of magnitude.

    Args:
        low: lowest point, in the units of the observation.
        high: highest point; one period after `low` for a periodic dimension.
        size: number of points, at least 1.
        kind: "cells", "linear", "periodic", "quadratic" or "log".

    Raises:
        ValueError: if the kind is none of these, the size is below 1, a bound is not finite, or low ≥ high where
            size > 1, or low ≤ 0 where the kind is log.
    """

    low: float
    high: float
    size: int
    kind: Kind = "cells"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.size, int):
            raise ValueError(f"size: expected an integer, got {self.size!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"low, high: expected finite numbers, got {self.low} and {self.high}")
        if self.size < 1:
            raise ValueError(f"size: expected at least 1 point per dimension, got {self.size}")
        if self.size > 1 and not self.low < self.high:
            raise ValueError(f"low, high: expected low < high, got {self.low} and {self.high}")
        if self.kind == "log" and not self.low > 0.0:
            raise ValueError(f"low: expected a number above 0 for a log dimension, got {self.low}")

    @property
    def interpolates(self) -> bool:
        """Whether two rows are active; a single row stays one."""
        return self.kind != "cells" and self.size > 1

    def place(self, x: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"] | Int[Tensor, "*batch"]:
        """Where observations lie along the factor: rows, or fractions between them.

        A NaN falls on some valid row, so that it cannot index outside the factor.
        """
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        if self.size == 1:
            return torch.zeros_like(x, dtype=torch.int64)
        # By a tensor: CUDA multiplies with the rounded reciprocal of a number, and a tie falls on the other point.
        width = x.new_full((), self.high - self.low)
        if self.kind == "periodic":
            return torch.remainder((x - self.low) / width * self.size, self.size)
        clipped = x.clamp(self.low, self.high)
        if self.kind == "log":
            return torch.log(clipped / self.low) / math.log(self.high / self.low) * (self.size - 1)
        share = (clipped - self.low) / width
        scaled = (share.sqrt() if self.kind == "quadratic" else share) * (self.size - 1)
        return scaled.round().long().clamp(0, self.size - 1) if self.kind == "cells" else scaled

    def points(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, " size"]:
        """Coordinates of the points."""
        if self.kind == "periodic":
            return torch.linspace(self.low, self.high, self.size + 1, dtype=dtype)[:-1]
        share = torch.linspace(0.0, 1.0, self.size, dtype=dtype)
        if self.kind == "log":
            return self.low * (self.high / self.low) ** share
        if self.kind == "quadratic":
            return self.low + (self.high - self.low) * share.square()
        return torch.linspace(self.low, self.high, self.size, dtype=dtype)


@dataclass(frozen=True)
class Grid:
    """The modes of an observation: from its dimensions to places along the state factors.

    Args:
        modes: one per dimension.
        joint: one factor of ∏ sizes rows (the text of [TLR]) instead of one per dimension; of cells alone.

    Raises:
        ValueError: if a joint grid interpolates: 2ᴰ rows would be active.
    """

    modes: tuple[Mode, ...]
    joint: bool = False

    def __post_init__(self) -> None:
        if self.joint and self.interpolates:
            raise ValueError("joint: expected modes of cells for one joint factor, got modes that interpolate")

    @classmethod
    def cells(
        cls, low: tuple[float, ...], high: tuple[float, ...], sizes: tuple[int, ...], joint: bool = False
    ) -> Grid:
        """A grid of cells from one value per dimension each.

        Raises:
            ValueError: if the three tuples differ in length, a size is below 1, or low ≥ high where size > 1.
        """
        if not len(low) == len(high) == len(sizes):
            came = f"got {len(low)}, {len(high)} and {len(sizes)}"
            raise ValueError(f"low, high, sizes: expected one value per dimension each, {came}")
        return cls(tuple(map(Mode, low, high, sizes)), joint)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Points per dimension."""
        return tuple(mode.size for mode in self.modes)

    @property
    def interpolates(self) -> bool:
        """Whether a dimension has two active rows."""
        return any(mode.interpolates for mode in self.modes)

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """Rows of each state factor."""
        return (math.prod(self.sizes),) if self.joint else self.sizes

    def index(self, observation: Float[Tensor, "*batch dims"]) -> tuple[Tensor, ...]:
        """Place of each observation along each state factor, (*batch)."""
        places = [mode.place(x) for mode, x in zip(self.modes, observation.unbind(-1), strict=True)]
        if not self.joint:
            return tuple(places)
        flat = torch.zeros_like(places[0])
        for row, size in zip(places, self.sizes, strict=True):
            flat = flat * size + row
        return (flat,)

    def points(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "points dims"]:
        """All points of the grid, the last dimension fastest."""
        axes = [mode.points(dtype) for mode in self.modes]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
