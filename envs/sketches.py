"""Pictures of one environment from its observation, for Gymnasium's `render_mode="rgb_array"`.

A family draws itself with a method `sketch(canvas, observation, task)`; those below are drawn here, and any other as a
gauge for each dimension of its observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Point, Colour = tuple[float, float], tuple[int, int, int]
INK, ACCENT, MUTED, PAPER = (33, 37, 41), (31, 119, 180), (173, 181, 189), (255, 255, 255)


class Canvas:
    """A square picture with coordinates from (−1, −1), bottom left, to (1, 1)."""

    def __init__(self, size: int = 320) -> None:
        from PIL import Image, ImageDraw

        self.size, self.image = size, Image.new("RGB", (size, size), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour = INK, width: float = 0.02) -> None:
        """A line through points."""
        pixels = [self._at(point) for point in points]
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self.size / 2)), joint="curve")

    def disc(self, centre: tuple[float, float], radius: float, colour: Colour = INK) -> None:
        """A filled circle."""
        (x, y), r = self._at(centre), radius * self.size / 2
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def box(self, low: Point, high: Point, colour: Colour = INK) -> None:
        """A filled rectangle from its lower left to its upper right corner."""
        (left, bottom), (right, top) = self._at(low), self._at(high)
        self._draw.rectangle((left, top, right, bottom), fill=colour)

    def text(self, at: tuple[float, float], words: str) -> None:
        """Words, from their left middle."""
        self._draw.text(self._at(at), words, fill=INK, anchor="lm")

    def pixels(self) -> np.ndarray:
        """The picture, (size, size, 3), uint8."""
        return np.asarray(self.image)

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] + 1.0) * self.size / 2, (1.0 - point[1]) * self.size / 2


def picture(family: Any, observation: Sequence[float], task: Any, size: int = 320) -> np.ndarray:
    """One environment, (size, size, 3), uint8."""
    canvas = Canvas(size)
    own = getattr(family, "sketch", None) or _SKETCHES.get(family.name)
    if own is None:
        _gauges(canvas, family, observation)
    else:
        own(canvas, [float(x) for x in observation], task)
    return canvas.pixels()


def _gauges(canvas: Canvas, family: Any, observation: Sequence[float]) -> None:
    count = len(observation)
    lows, highs = (getattr(family, f"observation_{end}", None) for end in ("low", "high"))
    for number, value in enumerate(observation):
        low, high = (lows[number], highs[number]) if lows and highs else (-2.0, 2.0)
        middle, half = 0.8 - 1.6 * (number + 0.5) / count, 0.5 / count
        share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.0
        canvas.box((-0.8, middle - half), (0.8, middle + half), MUTED)
        canvas.box((-0.8, middle - half), (-0.8 + 1.6 * share, middle + half), ACCENT)
        canvas.text((-0.78, middle), f"{value:.3g}")


def _pendulum(canvas: Canvas, observation: Sequence[float], task: Any) -> None:
    length = 0.4 + 0.4 * min(float(task.length), 1.0)
    tip = (length * math.sin(observation[0]), length * math.cos(observation[0]))
    canvas.line([(0.0, 0.0), tip], ACCENT, 0.08)
    canvas.disc((0.0, 0.0), 0.05)
    canvas.disc(tip, 0.06, ACCENT)


def _cartpole(canvas: Canvas, observation: Sequence[float], task: Any) -> None:
    x, angle, length = observation[0] / 2.6, observation[2], 1.2 * float(task.length)
    canvas.line([(-1.0, -0.5), (1.0, -0.5)], MUTED)
    canvas.box((x - 0.16, -0.5), (x + 0.16, -0.34), INK)
    canvas.line([(x, -0.34), (x + length * math.sin(angle), -0.34 + length * math.cos(angle))], ACCENT, 0.06)


def _mountain_car(canvas: Canvas, observation: Sequence[float], task: Any) -> None:
    hill = float(getattr(task, "hill", 3.0))

    def at(x: float) -> tuple[float, float]:
        return (x + 0.3) / 0.95, 0.7 * math.sin(hill * x)

    canvas.line([at(-1.2 + 1.8 * number / 60) for number in range(61)], MUTED)
    flag = at(0.5)
    canvas.line([flag, (flag[0], flag[1] + 0.2)], ACCENT)
    x, y = at(observation[0])
    canvas.disc((x, y + 0.06), 0.06, INK)


def _acrobot(canvas: Canvas, observation: Sequence[float], task: Any) -> None:
    first, second = observation[0], observation[0] + observation[1]
    scale = 0.85 / (float(task.length_1) + float(task.length_2))
    elbow = (scale * float(task.length_1) * math.sin(first), -scale * float(task.length_1) * math.cos(first))
    tip = (
        elbow[0] + scale * float(task.length_2) * math.sin(second),
        elbow[1] - scale * float(task.length_2) * math.cos(second),
    )
    canvas.line([(-1.0, scale), (1.0, scale)], MUTED, 0.01)
    canvas.line([(0.0, 0.0), elbow, tip], ACCENT, 0.06)
    canvas.disc((0.0, 0.0), 0.05)
    canvas.disc(elbow, 0.05)


def _gridworld(canvas: Canvas, observation: Sequence[float], task: Any) -> None:
    size = max(5.0, float(task.goal_row) + 1, float(task.goal_column) + 1)
    cell = 1.8 / size
    for number in range(int(size) + 1):
        canvas.line([(-0.9, -0.9 + number * cell), (0.9, -0.9 + number * cell)], MUTED, 0.005)
        canvas.line([(-0.9 + number * cell, -0.9), (-0.9 + number * cell, 0.9)], MUTED, 0.005)
    for (row, column), colour in (((task.goal_row, task.goal_column), MUTED), (observation[:2], ACCENT)):
        centre = (-0.9 + (float(column) + 0.5) * cell, 0.9 - (float(row) + 0.5) * cell)
        canvas.disc(centre, 0.35 * cell, colour)


_SKETCHES: dict[str, Callable[[Canvas, Sequence[float], Any], None]] = {
    "pendulum": _pendulum, "damped-pendulum": _pendulum, "cartpole": _cartpole, "mountain-car": _mountain_car,
    "acrobot": _acrobot, "gridworld": _gridworld,
}  # fmt: skip
