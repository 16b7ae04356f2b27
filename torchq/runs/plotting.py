"""Learning curves: median and interquartile range over seeds, one panel a task."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from torchq.runs.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 16
_LOG_FROM = 20.0
"""Ratio of ends from which on an axis is logarithmic."""
_TITLE = 40
"""Letters of a line."""


class Curve(NamedTuple):
    """One run in a picture."""

    label: str
    metrics: Metrics


def plot_learning_curves(
    curves: Sequence[Curve],
    path: Path,
    optimal: Sequence[float] | None,
    title: str = "",
    held_out: Sequence[int] = (),
    tasks: Sequence[Mapping[str, float]] = (),
    units: Sequence[str] = (),
) -> None:
    """Draw return against samples per task, with the optimum as a line.

    Each seed's evaluations are averaged over a window of a fortieth of the run before the quartiles are taken. With
    more tasks than panels, one panel shows the mean over tasks and from where to where most of them are, another the
    same of the tasks held out, and a last one where in their parameters they return how much.

    Args:
        curves: the runs, all on the same tasks.
        path: of the PNG; replaced if it exists.
        optimal: optimal return of each task.
        title: above the panels.
        held_out: numbers of the tasks that are tested only.
        tasks: parameters of each, to name them by.
        units: of the parameters.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    groups = panels_of(curves[0].metrics.returns.shape[2], held_out, tasks, units)
    mapped = map_axes(tasks) if len(groups) < len(tasks) and len(curves) == 1 else []
    panels = len(groups) + bool(mapped)
    columns = min(4, panels)
    num_rows = -(-panels // columns)
    figure = Figure(figsize=(max(6.4, 3.6 * columns), 3.2 * num_rows + 0.6), layout="constrained")
    axes = figure.subplots(num_rows, columns, squeeze=False)
    for panel, axis in enumerate(axes.flat):
        if panel >= panels:
            axis.set_visible(False)
            continue
        if panel == len(groups):
            _draw_map(axis, tasks, mapped, curves[0].metrics.final_return().mean(0), units)
            continue
        name, shown = groups[panel]
        for curve in curves:
            if len(shown) > 1:
                _draw_spread(axis, curve, curve.metrics.returns[:, :, shown].mean(1))
            _draw(axis, curve, curve.metrics.returns[:, :, shown].mean(2))
        if optimal is not None:
            value = float(np.mean([optimal[task] for task in shown]))
            axis.axhline(value, color="0.35", linestyle="--", linewidth=1, label="optimum")
        axis.set_title(textwrap.fill(name, _TITLE), fontsize="medium" if len(name) <= _TITLE else "small")
        axis.set_xlabel("samples per task")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("return of the greedy policy")
    longest = max(_window(curve) for curve in curves)
    means = f"each run smoothed over {longest} evaluations, then " if longest > 1 else ""
    figure.supxlabel(f"{means}median and quartiles of runs", x=0.01, ha="left", fontsize="x-small", color="0.4")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def named(task: Mapping[str, float], units: Sequence[str] = ()) -> str:
    """A task by its parameters: mass=0.3 kg, length=0.7 m."""
    said = (f"{name.replace('__', '.')}={value:.3g}" for name, value in task.items())
    return ", ".join(f"{text} {unit}".rstrip() for text, unit in zip_longest(said, units[: len(task)], fillvalue=""))


def panels_of(
    num_tasks: int, held_out: Sequence[int], tasks: Sequence[Mapping[str, float]], units: Sequence[str] = ()
) -> list[tuple[str, list[int]]]:
    """Titles of the panels, and the tasks whose mean each shows."""
    if num_tasks <= MAX_PANELS:
        known = len(tasks) == num_tasks
        names = [f"{task}: {named(tasks[task], units)}" if known else f"task {task}" for task in range(num_tasks)]
        names = [f"{name}, held out" if task in held_out else name for task, name in enumerate(names)]
        return [(name, [task]) for task, name in enumerate(names)]
    learn = [task for task in range(num_tasks) if task not in set(held_out)]
    kinds = [(f"mean of {len(learn)} tasks", learn), (f"mean of {len(held_out)} held out", list(held_out))]
    return [kind for kind in kinds if kind[1]]


def map_axes(tasks: Sequence[Mapping[str, float]]) -> list[str]:
    """The two parameters along which a map of tasks is drawn: the first in which they differ; [] if there are fewer."""
    differ = [name for name in tasks[0] if len({task[name] for task in tasks}) > 2] if tasks else []
    return differ[:2] if len(differ) > 1 else []


def _draw_map(
    axis: Axes, tasks: Sequence[Mapping[str, float]], names: Sequence[str], returns: np.ndarray, units: Sequence[str]
) -> None:
    """A point a task in two of its parameters, coloured by its return."""
    across, up = columns = [np.array([task[name] for task in tasks]) for name in names]
    points = axis.scatter(across, up, c=returns, s=max(3.0, 120.0 / len(tasks) ** 0.5), cmap="viridis", linewidths=0)
    said = dict(zip_longest(tasks[0], units[: len(tasks[0])], fillvalue=""))
    for name, column, which in zip(names, columns, ("x", "y"), strict=True):
        text = f"{name.replace('__', '.')} {said[name] and '/ ' + said[name]}".rstrip()
        axis.set(**{f"{which}label": text})
        if column.min() > 0 and column.max() / column.min() > _LOG_FROM:
            axis.set(**{f"{which}scale": "log"})
    axis.figure.colorbar(points, ax=axis)
    axis.set_title("final return", fontsize="medium")


def _draw_spread(axis: Axes, curve: Curve, returns: np.ndarray) -> None:
    """Between which returns nine tenths of the tasks are, of the mean of the runs, (evaluations, tasks)."""
    window = _window(curve)
    smooth = np.lib.stride_tricks.sliding_window_view(returns, window, axis=0).mean(-1)
    low, high = np.quantile(smooth, [0.05, 0.95], axis=1)
    samples = curve.metrics.samples[window - 1 :]
    axis.fill_between(samples, low, high, color="0.5", alpha=0.15, linewidth=0, label="5% to 95% of tasks")


def _window(curve: Curve) -> int:
    """Evaluations that each run is averaged over before the quartiles are taken."""
    return max(1, len(curve.metrics.returns) // 40)


def smoothed(curve: Curve, returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and quartiles and median over runs of their moving averages, (3, evaluations)."""
    window = _window(curve)
    smooth = np.lib.stride_tricks.sliding_window_view(returns, window, axis=0).mean(-1)
    return curve.metrics.samples[window - 1 :], np.percentile(smooth, [25, 50, 75], axis=1)


def _draw(axis: Axes, curve: Curve, returns: np.ndarray) -> None:
    samples, (low, median, high) = smoothed(curve, returns)
    label, marker = curve.label.replace("$", r"\$"), "o" if len(samples) == 1 else None
    (line,) = axis.plot(samples, median, label=label, linewidth=1.5, marker=marker)
    axis.fill_between(samples, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
