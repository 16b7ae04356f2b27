"""Figures of a page as Plotly reads them: data and layout; colours of text and paper are the page's."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from torchq.report.statistics import Estimate
from torchq.runs.plotting import Curve, smoothed

COLOURS = ("#4477aa", "#ee6677", "#33a14f", "#aa3377", "#ccbb44", "#66ccee", "#bb7744", "#888888")
"""Of runs: after the bright scheme of Tol (*Colour schemes*, 2021), green lighter for dark pages, two added."""
PARTS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02")
"""Of what a run is made of, which no run is called by (Brewer's Dark2)."""
MAX_POINTS = 250
"""Of a curve."""
_NAMED, _JOINED = 8, 32
"""Tasks that are named beside a matrix, and rows of a factor that a line joins though nothing lies between them."""


class Figure(NamedTuple):
    """One figure."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 280


def colour(number: int) -> str:
    """Of a run by its number."""
    return COLOURS[number % len(COLOURS)]


def rounded(values: Any) -> list[Any]:
    """Numbers with five digits, NaN as none: a page need not carry sixteen."""
    return [None if not np.isfinite(x) else float(f"{x:.5g}") for x in np.asarray(values, dtype=float).ravel()]


def thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    """Numbers of evenly spread points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def learning_curve(title: str, curves: Sequence[Curve], shown: Sequence[int], optimal: float | None) -> Figure:
    """Median and quartiles over runs of the mean over some tasks, with the optimum."""
    data: list[dict[str, Any]] = []
    for number, curve in enumerate(curves):
        samples, (low, median, high) = smoothed(curve, curve.metrics.returns[:, :, list(shown)].mean(2))
        kept = thinned(len(samples))
        x, line = samples[kept].tolist(), {"color": colour(number), "width": 2}
        edge = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": str(number)}
        data += [
            {**edge, "y": rounded(low[kept]), "showlegend": False},
            {**edge, "y": rounded(high[kept]), "showlegend": False, "fill": "tonexty",
             "fillcolor": colour(number) + "33"},
            {"x": x, "y": rounded(median[kept]), "mode": "lines" if len(x) > 1 else "markers", "line": line,
             "name": curve.label},
        ]  # fmt: skip
    if optimal is not None:
        ends = [min(min(trace["x"]) for trace in data), max(max(trace["x"]) for trace in data)]
        data.append({"x": ends, "y": rounded([optimal] * 2), "mode": "lines", "name": "optimum",
                     "line": {"color": "#888888", "dash": "dash", "width": 1.5}})  # fmt: skip
    layout = {"xaxis": {"title": "samples per task"}, "yaxis": {"title": "return"}, "hovermode": "x unified"}
    return Figure(title, data, layout)


def intervals(labels: Sequence[str], estimates: Sequence[Estimate], axis: str) -> Figure:
    """A point with its interval for each run."""
    data = [
        {"x": rounded([one.value]), "y": [label], "mode": "markers", "marker": {"color": colour(number), "size": 9},
         "error_x": {"type": "data", "symmetric": False, "array": rounded([(one.high or one.value) - one.value]),
                     "arrayminus": rounded([one.value - (one.low or one.value)])}, "showlegend": False}
        for number, (label, one) in enumerate(zip(labels, estimates, strict=True))
    ]  # fmt: skip
    layout = {"xaxis": {"title": axis}, "yaxis": {"autorange": "reversed", "type": "category"}}
    return Figure("Interquartile mean over runs and tasks, 95% interval", data, layout, 90 + 34 * len(labels))


def improvement(labels: Sequence[str], table: Sequence[Sequence[Estimate | None]]) -> Figure:
    """The probability that a run of one row does better on a task than one of a column."""
    words = [
        ["" if one is None else f"{one.value:.2f}" + ("" if one.low is None else f"<br>{one.low:.2f}–{one.high:.2f}")
         for one in row] for row in table
    ]  # fmt: skip
    shares = [[None if one is None else round(one.value, 4) for one in row] for row in table]
    data = [{"type": "heatmap", "z": shares, "x": list(labels), "y": list(labels), "text": words, "zmin": 0, "zmax": 1,
             "texttemplate": "%{text}", "colorscale": "RdBu", "reversescale": False, "showscale": False,
             "hoverinfo": "skip"}]  # fmt: skip
    layout = {"yaxis": {"autorange": "reversed", "title": "is better"}, "xaxis": {"title": "than"}}
    return Figure("Probability of improvement, and its 95% interval", data, layout, 150 + 54 * len(labels))


def matrix(title: str, names: Sequence[str], values: np.ndarray, order: Sequence[int]) -> Figure:
    """Correlations of tasks, alike ones beside each other; names begin with the tasks' numbers."""
    few = len(names) <= _NAMED
    numbers = [names[number].partition(":")[0] for number in order]
    rows = [textwrap.shorten(names[number], 40, placeholder=" …") for number in order] if few else numbers
    words = [[f"{names[i]}<br>{names[j]}<br>{values[i, j]:.3f}" for j in order] for i in order]
    data = [{"type": "heatmap", "z": [rounded(row) for row in values[np.ix_(order, order)]], "x": numbers, "y": rows,
             "zmin": -1, "zmax": 1, "colorscale": "RdBu", "reversescale": True, "colorbar": {"thickness": 10},
             "hovertext": words, "hovertemplate": "%{hovertext}<extra></extra>"}]  # fmt: skip
    if few:
        data[0].update(text=[[f"{values[i, j]:.2f}" for j in order] for i in order], texttemplate="%{text}")
    layout = {"yaxis": {"autorange": "reversed", "type": "category"}, "xaxis": {"type": "category", "title": "task"}}
    return Figure(title, data, layout, 380)


def factor(title: str, axis: Sequence[Any], columns: np.ndarray, weights: np.ndarray, smooth: bool) -> Figure:
    """Columns of a factor over its mode, the components of largest norm first; (size, components)."""
    share, mode = weights / weights[0], "lines" if smooth else "lines+markers" if len(axis) <= _JOINED else "markers"
    data = [
        {"x": list(axis), "y": rounded(columns[:, k]), "mode": mode,
         "line": {"color": PARTS[k % len(PARTS)], "width": 2}, "name": f"{share[k]:.2g}"}
        for k in range(columns.shape[1])
    ]  # fmt: skip
    return Figure(title, data, {"yaxis": {"title": "entry"}, "showlegend": True})


def spectra(names: Sequence[str], values: Sequence[np.ndarray]) -> Figure:
    """Singular values of the unfolding along each mode, as shares of the largest."""
    data = [
        {"x": list(range(1, len(one) + 1)), "y": rounded(one / one[0]), "mode": "lines+markers", "name": name,
         "line": {"color": PARTS[number % len(PARTS)]}}
        for number, (name, one) in enumerate(zip(names, values, strict=True))
    ]  # fmt: skip
    lowest = min(float(one[one > 0].min() / one[0]) for one in values)
    axis = {"title": "singular value / largest", "type": "log", "range": [max(-6.0, np.log10(lowest)), 0.1]}
    return Figure(
        "Singular values of the unfoldings", data, {"xaxis": {"title": "number"}, "yaxis": axis, "showlegend": True}
    )


def alike(correlation: np.ndarray) -> list[int]:
    """An order of tasks in which alike ones are neighbours: leaves of average-linkage clustering of 1 − correlation."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(correlation) < 3:
        return list(range(len(correlation)))
    distances = [1.0 - correlation[i, j] for i in range(len(correlation)) for j in range(i + 1, len(correlation))]
    return leaves_list(linkage(np.clip(distances, 0.0, None), "average", optimal_ordering=True)).tolist()


def spread(count: int, most: int) -> list[int]:
    """Numbers of at most so many of count tasks, all or evenly spread."""
    return thinned(count, most).tolist()


def study_curve(labels: Sequence[str], tables: Sequence[Sequence[dict[str, Any]]], key: str, axis: str) -> Figure:
    """Median and quartiles over runs against the size of the data set, for studies of quadratic learners."""
    data: list[dict[str, Any]] = []
    for number, (label, table) in enumerate(zip(labels, tables, strict=True)):
        known = [entry for entry in table if entry[key]["median"] is not None]
        low, middle, high = ([entry[key][name] for entry in known] for name in ("q25", "median", "q75"))
        error = {"type": "data", "symmetric": False, "array": rounded(np.subtract(high, middle)),
                 "arrayminus": rounded(np.subtract(middle, low))}  # fmt: skip
        data.append({"x": [entry["samples"] for entry in known], "y": rounded(middle), "error_y": error,
                     "mode": "lines+markers", "line": {"color": colour(number)}, "name": label})  # fmt: skip
    return Figure(axis, data, {"xaxis": {"title": "samples", "type": "log"}, "yaxis": {"title": axis}})
