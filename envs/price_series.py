"""What an hourly series of prices says of its market: level, daily profile, deviation and persistence."""

from __future__ import annotations

import csv
import itertools
import math
from datetime import datetime
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

    Prices are the last column whose first number is one; a column before it that holds timestamps (ISO 8601, such as
    2024-01-01 00:00) says the hours, which else are counted from midnight. A first line that is no data is a header.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        rows = [
            row for row in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if any(map(str.strip, row))
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
    """Hours of the day, from timestamps where there are some."""
    for before in range(column):
        try:
            times = [datetime.fromisoformat(row[before].strip()) for row in rows]
        except ValueError:
            continue
        naive = [time.replace(tzinfo=None) for time in times]
        apart = float(np.median([(after - time).total_seconds() for time, after in itertools.pairwise(naive)]))
        if apart != 3600.0:
            raise ValueError(
                f"prices: expected a line for each hour, but those of {path} are {apart / 60:g} minutes apart"
            )
        return np.array([time.hour for time in times])
    return np.arange(len(rows)) % 24
