"""Task modes: what a task is to the tensor, a row of its own or a place along a mode for each of its parameters.

    Q(s, a, m) = Σₖ S[s, k] · A[a, k] · T[m, k],   T[m, :] = ∏ₚ φₚ(θ_mp)ᵀ Fₚ

A row per task is the table of the papers [TLR, eq. (7)]. With a mode per parameter θₚ, tasks that share a value share
its row (φₚ picks one), or all tasks learn one function of each parameter (φₚ interpolates, see `modes`): any task of
the family then has a Q-function, seen or not.

Differs from the paper: [TLR] knows rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq.lowrank import cp
from torchq.lowrank.modes import Mode


@dataclass(frozen=True)
class Levels:
    """A row for each of some values of a parameter.

    Args:
        values: increasing.
    """

    values: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.values)

    def place(self, x: Float[Tensor, " tasks"]) -> Int[Tensor, " tasks"]:
        """Row of the nearest value."""
        values = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        return (x.unsqueeze(-1) - values).abs().argmin(-1)

    def knows(self, x: float) -> bool:
        """Whether a value has a row."""
        return x in self.values


@dataclass(frozen=True)
class Between:
    """A parameter along which values interpolate.

    Args:
        mode: its points.
    """

    mode: Mode

    @property
    def size(self) -> int:
        """Number of points."""
        return self.mode.size

    def place(self, x: Float[Tensor, " tasks"]) -> Float[Tensor, " tasks"]:
        """Fraction between two points; beyond the ends it is that of the end."""
        return self.mode.place(x).to(x.dtype)

    def knows(self, x: float) -> bool:
        """Whether a value lies between the ends."""
        slack = 1e-9 * (self.mode.high - self.mode.low)
        return self.mode.low - slack <= x <= self.mode.high + slack


@dataclass(frozen=True)
class TaskModes:
    """One mode for each parameter of a family.

    Args:
        names: of the parameters.
        modes: of each.
    """

    names: tuple[str, ...]
    modes: tuple[Levels | Between, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each task mode."""
        return tuple(mode.size for mode in self.modes)

    def places(self, parameters: Float[Tensor, "tasks parameters"]) -> tuple[Tensor, ...]:
        """Where tasks lie along each task mode, (tasks,), by their parameters in double precision."""
        return tuple(mode.place(x) for mode, x in zip(self.modes, parameters.unbind(-1), strict=True))

    def unknown(self, parameters: Sequence[float]) -> list[str]:
        """Names of the parameters of a task that have no row or lie beyond the ends."""
        named = zip(self.names, self.modes, parameters, strict=True)
        return [name for name, mode, value in named if not mode.knows(value)]


def rows(
    factors: Sequence[Float[Tensor, "seeds 1 _ rank"]], places: Sequence[Tensor]
) -> list[Float[Tensor, "seeds tasks 1 rank"]]:
    """φₚ(θ_mp)ᵀ Fₚ of each task along each task mode.

    Args:
        factors: Fₚ.
        places: where tasks lie, (tasks,) each.
    """
    return [cp.rows(factor, place.view(1, -1, 1)) for factor, place in zip(factors, places, strict=True)]


def compose(
    factors: Sequence[Float[Tensor, "seeds 1 _ rank"]], places: Sequence[Tensor]
) -> Float[Tensor, "seeds 1 tasks rank"]:
    """The task factor that a table of the same tasks would have, T[m, :] = ∏ₚ φₚ(θ_mp)ᵀ Fₚ."""
    return cp.product(rows(factors, places)).squeeze(2).unsqueeze(1)


def spread(
    gradient: Float[Tensor, "seeds 1 tasks rank"],
    factors: Sequence[Float[Tensor, "seeds 1 _ rank"]],
    places: Sequence[Tensor],
) -> list[Float[Tensor, "seeds 1 _ rank"]]:
    """Gradients of the factors of all task modes from that of the task factor, by the chain rule.

        ∂L/∂Fₚ[i, :] = Σ_m φₚ(θ_mp)[i] · ∂L/∂T[m, :] ∘ ∏ (the task's rows along the other modes)

    Args:
        gradient: ∂L/∂T.
        factors: Fₚ.
        places: where tasks lie, (tasks,) each.
    """
    by_task, visited = gradient.squeeze(1).unsqueeze(2), rows(factors, places)  # (seeds, tasks, 1, rank)
    found = []
    for mode, (factor, place) in enumerate(zip(factors, places, strict=True)):
        others = [row for other, row in enumerate(visited) if other != mode]
        values = cp.product([by_task, *others]) if others else by_task
        found.append(cp.accumulate_rows(values, place.view(1, -1, 1), factor.shape[2], 1))
    return found
