"""One page about runs of one family: a file of HTML that needs nothing else, to be opened, sent or kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from torchq import families
from torchq.checkpoint import write_atomically
from torchq.errors import UsageError
from torchq.report import controls, figures, learnt
from torchq.report.figures import Figure
from torchq.report.statistics import Estimate, interquartile_estimate, probability_of_improvement
from torchq.runs.folder import CONFIG
from torchq.runs.labels import ALGO_NAMES, differences
from torchq.runs.plotting import Curve, named, panels_of
from torchq.runs.run import Run
from torchq.runs.study_results import by_samples
from torchq.versions import versions

PAGE = "index.html"
MAX_ROWS = 16
"""Tasks in the table of returns; of more, the mean."""
MAX_COMPARED = 64
"""Tasks in a probability of improvement."""
_MAP_FROM, _MAP_MOST = 5, 5000
"""Tasks of which there is a map."""


def write(folder: Path, runs: Sequence[Run], labels: Sequence[str], command: str) -> Path:
    """Write the page; returns its path.

    Args:
        folder: where; made if need be.
        runs: of one family: learning curves on the same tasks, studies, or both.
        labels: what to call them.
        command: what makes the page again.

    Raises:
        UsageError: if the runs are of different families or tasks.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    pairs = list(zip(runs, labels, strict=True))
    curves = [(run, label) for run, label in pairs if not run.is_study]
    studies = [(run, label) for run, label in pairs if run.is_study]
    _check(runs, [run for run, _ in curves])
    about_curves = _curves(curves) if curves else {"contents": {"figures": {}, "runs": [], "labels": []}}
    about_studies = _studies(studies) if studies else {"figures": {}}
    contents = about_curves.pop("contents")
    contents["figures"] |= about_studies.pop("figures")
    contents["runs"] += [controls.described(run) for run, _ in studies]
    contents["labels"] += [label for _, label in studies]
    contents["colours"] = [figures.colour(number) for kind in (curves, studies) for number in range(len(kind))]
    sections = [("returns", "Returns"), ("curves", "Curves")] if curves else []
    sections += [("studies", "Quadratic learners")] if studies else []
    sections += [("learnt", "What was learnt")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["colour"] = figures.colour
    algos = ", ".join(dict.fromkeys(ALGO_NAMES[run.config.algo] for run in runs))
    text = environment.from_string(_read("page.html")).render(
        title=f"{runs[0].config.env}: {algos}",
        subtitle=f"{len(runs)} run{'s' if len(runs) > 1 else ''} of torchq",
        css=_read("page.css"), js=_read("page.js"), plotly=get_plotlyjs().replace("</script", "<\\/script"),
        contents=_json(contents), version=versions()["torchq"], command=command,
        sections=[*sections, ("settings", "Settings")],
        differ=differences([run.config for run in runs]), every=labels,
        configs=[(label, (run.folder / CONFIG).read_text()) for run, label in pairs],
        **{"rows": [], "studies": [], "notes": [], "labels": [label for _, label in curves], **about_curves,
           **about_studies},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PAGE, text.encode())
    return folder / PAGE


def _check(runs: Sequence[Run], curves: Sequence[Run]) -> None:
    names = list(dict.fromkeys(run.config.env for run in runs))
    if len(names) > 1:
        raise UsageError(f"`report`: expected runs of one family, got {', '.join(names)}; write a report of each")
    tasks = [(run.metrics.returns.shape[2], _tasks(run)) for run in curves]
    if other := [run for run, found in zip(curves, tasks, strict=True) if found != tasks[0]]:
        raise UsageError(
            f"`report`: expected runs on the same tasks, but {other[0].folder} has others than {curves[0].folder}; "
            "write a report of each"
        )


def _tasks(run: Run) -> list[dict[str, float]]:
    return [vars(task) for task in run.tasks.tested]


def _curves(pairs: Sequence[tuple[Run, str]]) -> dict[str, Any]:
    """What the page says of learning curves and of what was learnt."""
    runs, labels = [run for run, _ in pairs], [label for _, label in pairs]
    optimal = next((o for run in runs if run.finished and (o := run.summary["optimal_return"])), None)
    units = getattr(families.of(runs[0].config), "parameter_units", ())
    tasks = _tasks(runs[0])
    held_out = range(runs[0].tasks.num_learnt, len(tasks))
    panels = panels_of(len(tasks), held_out, tasks, units)
    curves = [Curve(label, run.metrics) for run, label in pairs]
    finals = [run.metrics.final_return() for run in runs]
    best = [None if optimal is None else float(np.mean([optimal[task] for task in shown])) for _, shown in panels]
    drawn = [
        figures.learning_curve(name, curves, shown, value)
        for (name, shown), value in zip(panels, best, strict=True)
    ]  # fmt: skip
    scores = [final - (0.0 if optimal is None else np.array(optimal)) for final in finals]
    estimates = [interquartile_estimate(score) for score in scores]
    axis = "return" if optimal is None else "return minus optimum"
    statistics = []
    if len(runs) > 1:
        statistics.append(figures.intervals(labels, estimates, axis))
        some = figures.spread(len(tasks), MAX_COMPARED)
        table = [
            [None if a is b else probability_of_improvement(a[:, some], b[:, some]) for b in finals] for a in finals
        ]
        statistics.append(figures.improvement(labels, table))
    return {
        "contents": {
            "figures": {"curves": drawn, "statistics": statistics},
            "labels": [*labels],
            "runs": [{**learnt.described(run), "map": _map(run, tasks, units, optimal)} for run in runs],
            "optimal": learnt.optimal_episodes(runs[0]),
        },
        "optimum": optimal is not None,
        "pooled": len(panels) < len(tasks),
        "score": axis,
        "rows": [_row(name, [final[:, shown] for final in finals], value)
                 for (name, shown), value in zip(panels, best, strict=True)],
        "overall": [_overall(run, label, score, one)
                    for (run, label), score, one in zip(pairs, scores, estimates, strict=True)],
        "notes": [f"{run.folder} has not ended: it is shown as it stands" for run in runs if not run.finished],
    }  # fmt: skip


def _row(name: str, finals: Sequence[np.ndarray], optimum: float | None) -> dict[str, Any]:
    """Quartiles of each run on one task, or a group of tasks."""
    quartiles = [np.percentile(final, [25, 50, 75]) for final in finals]
    top = max(middle for _, middle, _ in quartiles)
    cells = [
        {"median": _said(middle), "quartiles": _span(low, high), "best": middle == top and len(finals) > 1}
        for low, middle, high in quartiles
    ]
    return {"name": name, "cells": cells, "optimum": "–" if optimum is None else _said(optimum)}


def _overall(run: Run, label: str, scores: np.ndarray, one: Estimate) -> dict[str, Any]:
    """A run folder over all its tasks; scores are (runs, tasks)."""
    by_task = np.median(scores, axis=0)
    worst = int(by_task.argmin())
    interval = "one run" if one.low is None or one.high is None else _span(one.low, one.high)
    return {
        "label": label, "samples": f"{int(run.metrics.samples[-1]):,}",
        "seeds": run.config.num_seeds, "value": _said(one.value), "interval": interval,
        "mean": _said(scores.mean()), "worst": f"{_said(by_task[worst])} (task {worst})",
    }  # fmt: skip


def _map(
    run: Run, tasks: Sequence[dict[str, float]], units: Sequence[str], optimal: Sequence[float] | None
) -> dict[str, Any] | None:
    """Returns over the parameters of the tasks, for families that have some and fleets that are large enough."""
    if len(tasks) < _MAP_FROM or not tasks[0]:
        return None
    some = figures.spread(len(tasks), _MAP_MOST)
    median = np.median(run.metrics.final_return(), axis=0)
    colours = {"return": median} | ({} if optimal is None else {"return minus optimum": median - np.array(optimal)})
    said = getattr(families.of(run.config), "parameters", ())
    kinds = {name: one.kind for name, one in zip(tasks[0], said, strict=False)}
    called = {name: f"{name}, {unit}".rstrip(", ") for name, unit in zip_longest(tasks[0], units, fillvalue="")}
    differ = [name for name in tasks[0] if len({task[name] for task in tasks}) > 1]
    axes = [(called[name], kinds.get(name), [tasks[task][name] for task in some]) for name in differ]
    if len(axes) == 1:
        axes += [(name, None, values[some]) for name, values in colours.items()]
    return {
        "axes": [name for name, _, _ in axes],
        "types": ["log" if kind == "log" else "linear" for _, kind, _ in axes],
        "parameters": [figures.rounded(values) for _, _, values in axes],
        "names": list(colours),
        "colours": [figures.rounded(values[some]) for values in colours.values()],
        "tasks": [f"{task}: {named(tasks[task], units)}" for task in some],
    }


def _studies(pairs: Sequence[tuple[Run, str]]) -> dict[str, Any]:
    """What the page says of studies of quadratic learners."""
    labels, tables = [label for _, label in pairs], [by_samples(run.rows) for run, _ in pairs]
    drawn = [
        figures.study_curve(labels, tables, "gap", "return minus FL+LQR's"),
        figures.study_curve(labels, tables, "return", "return"),
    ]
    studies = [
        {"label": label, "rows": [
            (entry["samples"], _quartiles(entry["return"]), _quartiles(entry["gap"]),
             f"{entry['unstable_share']:.1%}", f"{entry['failed_share']:.1%}") for entry in table
        ]} for label, table in zip(labels, tables, strict=True)
    ]  # fmt: skip
    return {"figures": {"studies": drawn}, "studies": studies}


def _quartiles(found: dict[str, float | None]) -> str:
    if found["median"] is None:
        return "–"
    return f"{_said(found['median'])} ({_span(found['q25'], found['q75'])})"


def _said(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−")


def _span(low: Any, high: Any) -> str:
    return f"{_said(low)} to {_said(high)}"


def _json(contents: Any) -> str:
    """As a script of the page holds it: nothing in it ends the script."""

    def plain(value: Any) -> Any:
        if isinstance(value, Figure):
            return value._asdict()
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(contents), separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return resources.files("torchq.report").joinpath(name).read_text(encoding="utf-8")
