"""What an hourly series of prices says of its market: level, daily profile, deviation and persistence."""

from __future__ import annotations

import csv
import itertools
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

MIN_DAYS = 14


class PriceModel(NamedTuple):
    """Prices as a usual day and a deviation z from it: level · (1 + profile[hour] + volatility · z)."""

    level: float
    """Mean price, in EUR/MWh."""
    profile: tuple[float, ...]
    """Mean price of each of the 24 hours over the level, minus 1; of mean 0."""
    volatility: float
    """Standard deviation of what is left, over the level."""
    persistence: float
    """Correlation of what is left with that of the hour before."""


def read(path: str | Path) -> PriceModel:
    """The model of a CSV file with a line for each hour.

    Prices are the last column whose first number is one. A column before it that holds times (ISO 8601, such as
    2024-01-01 00:00, or seconds since 1970) says the hours, or one of hours from 0 or 1 on; where there is no text in
    other columns they are counted from midnight. A first line that is no data is a header. Semicolons and tabs part
    columns too, and then decimals may follow a comma.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        mark = next((mark for mark in ";\t" if lines and mark in lines[0]), ",")
        rows = [
            [_plain(cell, mark) for cell in row]
            for row in csv.reader(lines, delimiter=mark)
            if any(map(str.strip, row))
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"prices: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    columns = [index for row in rows[:2] for index, cell in enumerate(row) if _number(cell) is not None]
    if not columns:
        raise ValueError(f"prices: expected a column of numbers, but {path} has none in its first two lines")
    column = columns[-1]
    if len(rows[0]) <= column or _number(rows[0][column]) is None:
        rows = rows[1:]
    prices = np.array([_price(row, column, number, path) for number, row in enumerate(rows, 1)])
    if len(prices) < 24 * MIN_DAYS:
        raise ValueError(
            f"prices: expected at least {MIN_DAYS} days of hourly prices, but {path} has {len(prices)} hours"
        )
    return estimate(prices, _hours(rows, column, path))


def estimate(prices: np.ndarray, hours: np.ndarray) -> PriceModel:
    """The model of hourly prices.

    Args:
        prices: one after the other.
        hours: of the day of each.

    Raises:
        ValueError: if they have no model of this form.
    """
    usual = np.array([prices[hours == hour].mean() if (hours == hour).any() else math.nan for hour in range(24)])
    level = float(usual.mean())
    if not level > 0.0:
        raise ValueError(
            f"prices: expected prices at every hour of the day and a mean above 0, got a mean of {level:g}"
        )
    rest = prices / level - usual[hours] / level
    deviation = float(rest.std())
    if deviation < 1e-6:
        raise ValueError("prices: expected days that differ, but each is like the others")
    persistence = float((rest[1:] * rest[:-1]).mean() / deviation**2)
    profile = tuple(float(value) for value in usual / level - 1.0)
    return PriceModel(level, profile, deviation, min(max(persistence, 0.0), 0.995))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _price(row: list[str], column: int, number: int, path: str | Path) -> float:
    value = _number(row[column]) if column < len(row) else None
    if value is None or not math.isfinite(value):
        came = row[column].strip() if column < len(row) else ""
        raise ValueError(f"prices: expected a number in each line, but hour {number} of {path} has {came or 'none'}")
    return value


def _hours(rows: list[list[str]], column: int, path: str | Path) -> np.ndarray:
    """Hours of the day, from columns before the prices where there are some."""
    columns = [[row[before].strip() for row in rows] for before in range(column)]
    times = next((found for cells in columns if (found := _times(cells)) is not None), [])
    if any(time.hour for time in times):
        steps = np.array([(after - time).total_seconds() for time, after in itertools.pairwise(times)])
        if (apart := float(np.median(steps))) != 3600.0:
            raise ValueError(
                f"prices: expected a line for each hour, but those of {path} are {apart / 60:g} minutes apart"
            )
        if len(wrong := np.flatnonzero((steps < 0.0) | (steps > 7200.0))):  # A clock is changed twice a year.
            where = f"{times[wrong[0]]} and {times[wrong[0] + 1]} follow each other in {path}"
            raise ValueError(f"prices: expected a line for each hour, but {where}; fill what is missing")
        return np.array([time.hour for time in times])
    for cells in columns:
        if all(map(str.isdigit, cells)) and (hours := np.array(cells, dtype=int)).max() in (23, 24):
            return hours - int(hours.min() == 1)
    if text := [cells[0] for cells in columns if _number(cells[0]) is None]:
        came = f"{path} has {text[0]!r}"
        raise ValueError(f"prices: expected times such as 2024-01-01 00:00, or hours, before each price, but {came}")
    return np.arange(len(rows)) % 24


def _times(cells: list[str]) -> list[datetime] | None:
    """Times in a column, as a clock on the wall shows them; None if it holds others."""
    try:
        if all(cell.isdigit() and len(cell) in (10, 13) for cell in cells):
            seconds = (int(cell) / (1000 if len(cell) == 13 else 1) for cell in cells)
            return [datetime.fromtimestamp(second, UTC).replace(tzinfo=None) for second in seconds]
        return [datetime.fromisoformat(cell).replace(tzinfo=None) for cell in cells]
    except ValueError:
        return None


def _plain(cell: str, mark: str) -> str:
    """A cell, with a point in the place of a decimal comma where commas do not part columns."""
    return re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", cell.strip()) if mark != "," else cell
