"""Spaces of Gymnasium as numbers: an observation as one row of them, an action as one whole number per axis.

Box elements are continuous, Discrete, MultiDiscrete and MultiBinary ones are categories; those of Dict and Tuple follow
one after the other in the order of the space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

UNBOUNDED = 1e10
"""From which on a bound is none: some environments write the largest float for infinity."""
_LEVELS = (11, 5, 3)
"""Levels of each continuous action, of one, two or more of them."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One number of an observation."""

    name: str
    """Its place in the space, such as position.0, or its number."""
    low: float
    high: float
    category: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the space says its range."""
        return abs(self.low) < UNBOUNDED and abs(self.high) < UNBOUNDED


def axes(space: spaces.Space[Any]) -> tuple[Axis, ...]:
    """The numbers of an observation, in the order of `flat`.

    Raises:
        ValueError: if the space, or a part of it, is none of the kinds above.
    """
    parts = enumerate(_axes(space, ""))
    found = [Axis(name or str(number), low, high, category) for number, (name, low, high, category) in parts]
    if not found:
        raise ValueError(f"expected an observation of at least one number, got {space}")
    return tuple(found)


def _axes(space: spaces.Space[Any], name: str) -> Iterator[tuple[str, float, float, bool]]:
    if isinstance(space, spaces.Box):
        for number, (low, high) in enumerate(zip(space.low.flat, space.high.flat, strict=True)):
            one = name if space.shape in ((), (1,)) else f"{name}.{number}"
            yield one if name else "", float(low), float(high), False
    elif isinstance(space, spaces.Discrete):
        yield name, float(space.start), float(space.start + space.n - 1), True
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        sizes = space.nvec.flat if isinstance(space, spaces.MultiDiscrete) else [2] * int(np.prod(space.shape))
        first = space.start.flat if isinstance(space, spaces.MultiDiscrete) else [0] * len(list(sizes))
        for number, (start, size) in enumerate(zip(first, sizes, strict=True)):
            yield f"{name}.{number}" if name else "", float(start), float(start + size - 1), True
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _axes(part, f"{name}.{key}" if name else str(key))
    else:
        expected = "Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        raise ValueError(f"expected observations of {expected}, got {space}")


def flat(space: spaces.Space[Any], observation: Any) -> list[float]:
    """One observation as numbers.

    Raises:
        ValueError: if it has another shape than its space, or a key is missing.
    """
    if isinstance(space, spaces.Dict):
        if missing := [key for key in space.spaces if key not in observation]:
            raise ValueError(f"expected an observation with {', '.join(missing)}, got {observation}")
        return [number for key, part in space.spaces.items() for number in flat(part, observation[key])]
    if isinstance(space, spaces.Tuple):
        return [number for part, one in zip(space.spaces, observation, strict=True) for number in flat(part, one)]
    array = np.asarray(observation, dtype=np.float64)
    if array.shape not in (space.shape, (1,) if isinstance(space, spaces.Discrete) else space.shape):
        raise ValueError(f"expected an observation of {space}, got one of the shape {array.shape}")
    return array.ravel().tolist()


class Actions:
    """Actions as whole numbers from 0, one per axis: discrete ones as they are, continuous ones in levels.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, or a Box with bounds.
        levels: of each continuous action, equally spaced from its lowest to its highest value; None: 11 of one, 5 each
            of two, 3 each of more.

    Raises:
        ValueError: if the space is another, a bound is infinite, or there are fewer than two levels.
    """

    def __init__(self, space: spaces.Space[Any], levels: int | None = None) -> None:
        self.space = space
        if isinstance(space, spaces.Discrete):
            self.sizes: tuple[int, ...] = (int(space.n),)
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes = tuple(int(size) for size in space.nvec.flat)
        elif isinstance(space, spaces.MultiBinary):
            self.sizes = (2,) * space.sample().size
        elif isinstance(space, spaces.Box):
            count = int(np.prod(space.low.shape))
            each = _LEVELS[min(count, len(_LEVELS)) - 1] if levels is None else levels
            if not isinstance(each, int) or each < 2:
                raise ValueError(f"levels: expected an integer of at least 2, got {levels!r}")
            if not (np.abs(space.low) < UNBOUNDED).all() or not (np.abs(space.high) < UNBOUNDED).all():
                raise ValueError(f"expected actions between bounds, got {space}; wrap the environment in RescaleAction")
            self.sizes = (each,) * count
        else:
            raise ValueError(f"expected actions of Discrete, MultiDiscrete, MultiBinary or Box, got {space}")

    @property
    def levels(self) -> list[list[float]] | None:
        """What the environment is given for each action, the last axis fastest; None where it is their numbers."""
        count = int(np.prod(self.sizes))
        numbers = np.stack(np.unravel_index(np.arange(count), self.sizes), axis=1)
        given = [np.ravel(self(row)).astype(float).tolist() for row in numbers]
        return None if given == [[float(number)] for number in range(count)] else given

    def __call__(self, numbers: np.ndarray) -> Any:
        """The action as its environment takes it, from one whole number per axis."""
        space = self.space
        if isinstance(space, spaces.Discrete):
            return space.dtype.type(space.start + numbers[0])
        shaped = numbers.reshape(space.shape)
        if isinstance(space, spaces.Box):
            share = shaped / (np.array(self.sizes).reshape(space.shape) - 1)
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            return np.clip((low + (high - low) * share).astype(space.dtype), space.low, space.high)
        return (shaped + getattr(space, "start", 0)).astype(space.dtype)


def alike(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether two spaces have the same axes, whatever their bounds."""
    if isinstance(one, spaces.Box):
        return isinstance(other, spaces.Box) and one.shape == other.shape
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return [*one] == [*other] and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, spaces.Tuple) and isinstance(other, spaces.Tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)
