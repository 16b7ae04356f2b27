"""The table and the picture of a case study, from its metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchq.errors import MetricsError
from torchq.runs.study import Row

COLUMNS = tuple("return" if name == "episode_return" else name for name in Row._fields)


def read_rows(path: Path) -> list[Row]:
    """Rows of a study's metrics.csv.

    Raises:
        MetricsError: if the file is damaged.
    """
    kinds = (str, int, int, int, float, float, float, int, int, float, float, float)
    try:
        whole_lines = path.read_text().rpartition("\n")[0]
        table = list(csv.DictReader(whole_lines.splitlines()))
        return [Row(*(kind(row[name]) for kind, name in zip(kinds, COLUMNS, strict=True))) for row in table]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise MetricsError(f"{path} is damaged ({error!r})") from error


def quartiles(values: list[float]) -> dict[str, float | None]:
    """Median and quartiles of those that are finite; None of nothing."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return {"median": None, "q25": None, "q75": None}
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "q25": low, "q75": high}


def by_samples(rows: list[Row]) -> list[dict[str, Any]]:
    """Per size: returns and gaps to the yardstick without the unstable runs, shares, and bounds of the cost."""
    table = []
    for size in sorted({row.samples for row in rows}):
        of_size = [row for row in rows if row.samples == size]
        stable = [row for row in of_size if not row.unstable]
        bounded = [row for row in of_size if math.isfinite(row.lower_bound)]
        table.append({
            "samples": size,
            "return": quartiles([row.episode_return for row in stable]),
            "gap": quartiles([row.episode_return - row.optimal_return for row in stable]),
            "unstable_share": sum(row.unstable for row in of_size) / len(of_size),
            "failed_share": sum(row.failed for row in of_size) / len(of_size),
            "bounds": {
                "lower": quartiles([row.lower_bound for row in bounded])["median"],
                "upper": quartiles([row.cost for row in of_size])["median"],
                "gap": quartiles([row.cost - row.lower_bound for row in bounded])["median"],
            },
        })  # fmt: skip
    return table


def events(rows: list[Row], max_tasks: int) -> Iterator[tuple[int, dict[str, float]]]:
    """What TensorBoard shows of each size, by tag: medians and quartiles over runs and tasks, and shares.

    Args:
        rows: of all runs.
        max_tasks: how many tasks have a line of their own.
    """
    for entry in by_samples(rows):
        of_size = [row for row in rows if row.samples == entry["samples"] and not row.unstable]
        values = {f"eval/{share}": entry[share] for share in ("unstable_share", "failed_share")}
        for tag, kind in (("eval/mean_reward", "return"), ("eval/gap", "gap")):
            values |= {tag: entry[kind]["median"], f"{tag}_q25": entry[kind]["q25"], f"{tag}_q75": entry[kind]["q75"]}
        for task in range(min(max_tasks, 1 + max(row.task for row in rows))):
            of_task = [row.episode_return for row in of_size if row.task == task]
            values[f"eval/mean_reward/{task}"] = quartiles(of_task)["median"]
        yield entry["samples"], {tag: value for tag, value in values.items() if value is not None}


def plot_study(studies: dict[str, list[Row]], path: Path) -> None:
    """Return against samples per method, yardstick and baseline as lines, unstable shares in the legend.  [LMI, fig. 1]

    Medians and quartiles are those of the paired differences to the yardstick, drawn from its median return: the spread
    of the returns themselves is that of the start states, the same for every method.

    Args:
        studies: rows by label, all on the same runs.
        path: of the PNG; replaced if it exists.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axis = figure.subplots()
    first = next(iter(studies.values()))
    yardstick = _median([row.optimal_return for row in first])
    base = yardstick + _median([row.baseline_return - row.optimal_return for row in first])
    sizes = sorted({row.samples for rows in studies.values() for row in rows})
    positive = [size for size in sizes if size > 0] or [1]
    if sizes[0] == 0:  # What methods begin with, beside the logarithmic rest.
        axis.set_xscale("symlog", linthresh=positive[0], linscale=0.3)
        axis.set_xlim(-0.1 * positive[0], positive[-1] * 1.2)
    else:
        axis.set_xscale("log")
        axis.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)  # Without points such an axis would look for ticks for ever.
    lowest = yardstick
    for label, rows in studies.items():
        table = [entry for entry in by_samples(rows) if entry["gap"]["median"] is not None]
        samples = [entry["samples"] for entry in table]
        low, median, high = ([yardstick + entry["gap"][q] for entry in table] for q in ("q25", "median", "q75"))
        lowest = min([lowest, *(value for value, size in zip(median, samples, strict=True) if size > 0)])
        share = sum(row.unstable for row in rows) / len(rows)
        name = label.replace("$", r"\$")
        (line,) = axis.plot(samples, median, marker="o", markersize=3, label=f"{name} ({share:.1%} unstable)")
        axis.fill_between(samples, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.axhline(yardstick, color="0.2", linestyle="--", linewidth=1, label="FL+LQR")
    axis.axhline(base, color="0.5", linestyle=":", linewidth=1, label=f"baseline ({base:,.2f})")
    height, span = yardstick - base, yardstick - lowest
    if math.isfinite(span) and height > 10 * span > 0:  # The baseline would press all curves into one line.
        axis.set_ylim(yardstick - 1.2 * span, yardstick + span / 2)
    elif math.isfinite(height) and height > 0:
        axis.set_ylim(base - 2 * height, yardstick + height / 2)
    axis.set_xticks(sizes, labels=map(str, sizes))
    axis.minorticks_off()
    axis.set_xlabel("samples")
    axis.set_ylabel("return of a test episode, paired to FL+LQR")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)


def _median(values: list[float]) -> float:
    """Of those that are finite; NaN of nothing."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan
