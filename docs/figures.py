"""The figures of `docs/how-it-works.md`.

    python docs/figures.py

trains four runs, in some three minutes, and writes docs/figures/*.svg. Everything is drawn on white, so that it can be
read on light pages and on dark ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Polygon, Rectangle

import torchq
from torchq import Mode

FOLDER = Path(__file__).parent / "figures"
INK, STATES, ACTIONS, TASKS = "#333333", "#4c72b0", "#dd8452", "#55a868"
STYLE: dict[str, Any] = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlesize": 10, "figure.dpi": 100, "font.size": 10, "lines.linewidth": 1.6, "savefig.facecolor": "white",
    "svg.hashsalt": "torchq", "text.color": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def cube(axes: Any, x: float, y: float, width: float, height: float, depth: float) -> None:
    """A block of numbers, seen from the front and a little from the right."""
    lean = 0.5 * depth
    faces = (
        ([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], "#dfe5f0"),
        ([(x, y + height), (x + lean, y + height + lean), (x + width + lean, y + height + lean),
          (x + width, y + height)], "#eef1f7"),
        ([(x + width, y), (x + width + lean, y + lean), (x + width + lean, y + height + lean),
          (x + width, y + height)], "#cbd4e4"),
    )  # fmt: skip
    for corners, colour in faces:
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor=INK, linewidth=1))


def outer_product(axes: Any, x: float, number: str) -> None:
    """One component: a column of states, a row of actions, a slanted row of tasks."""
    axes.add_patch(Rectangle((x, 0.0), 0.22, 2.0, facecolor=STATES, edgecolor=INK))
    axes.add_patch(Rectangle((x + 0.32, 1.78), 1.1, 0.22, facecolor=ACTIONS, edgecolor=INK))
    slanted = [(x + 0.1, 2.12), (x + 0.32, 2.12), (x + 0.92, 2.72), (x + 0.7, 2.72)]
    axes.add_patch(Polygon(slanted, facecolor=TASKS, edgecolor=INK))
    axes.text(x + 0.34, 0.9, f"S[:, {number}]", color=STATES, fontsize=9)
    axes.text(x + 0.42, 1.5, f"A[:, {number}]", color=ACTIONS, fontsize=9)
    axes.text(x + 0.98, 2.5, f"T[:, {number}]", color=TASKS, fontsize=9)


def draw_tensor(path: Path) -> None:
    """The Q-tensor as a sum of outer products."""
    figure, axes = plt.subplots(figsize=(8, 2.6))
    cube(axes, 0.0, 0.0, 1.5, 2.0, 1.4)
    axes.text(0.75, 0.9, "Q[s, a, m]", ha="center")
    axes.text(-0.18, 1.0, "states", rotation=90, va="center", ha="center", fontsize=9)
    axes.text(0.75, -0.28, "actions", ha="center", fontsize=9)
    axes.text(2.05, 0.28, "tasks", rotation=45, ha="center", va="center", fontsize=9)
    for x, sign in ((2.6, "="), (4.75, "+"), (6.75, "+ … +")):
        axes.text(x, 0.95, sign, ha="center", fontsize=14)
    for x, number in ((3.0, "1"), (5.0, "2"), (7.3, "K")):
        outer_product(axes, x, number)
    axes.set(xlim=(-0.4, 9.1), ylim=(-0.45, 2.95), aspect="equal")
    axes.axis("off")
    save(figure, path)


def draw_interpolation(path: Path) -> None:
    """Weights of the rows along a dimension, for three kinds of modes, and a factor with each."""
    x = torch.linspace(-3.14159, 3.14159, 1001, dtype=torch.float64)
    rng = np.random.default_rng(3)
    column = rng.normal(size=6).cumsum()
    figure, grid = plt.subplots(2, 3, figsize=(9, 3.6), sharex=True, height_ratios=(1, 1), layout="constrained")
    for kind, (above, below) in zip(("cells", "linear", "periodic"), grid.T, strict=True):
        mode = Mode(-3.14159, 3.14159, 6, kind)
        weights = weights_along(mode, x)  # (points of x, rows)
        for row, colour in enumerate(mpl.colormaps["viridis"](np.linspace(0, 0.9, 6))):
            above.plot(x, weights[:, row], color=colour)
        below.plot(x, weights @ column, color=STATES)
        below.plot(mode.points(), column, "o", color=STATES, markersize=4)
        above.set(title=kind, ylim=(-0.05, 1.1), yticks=(0, 1))
        below.set(xlabel="angle", xticks=(-3, 0, 3), yticks=())
    grid[0, 0].set_ylabel("weight φ(s)[i]")
    grid[1, 0].set_ylabel("φ(s)ᵀ F[:, k]")
    save(figure, path)


def weights_along(mode: Mode, x: torch.Tensor) -> np.ndarray:
    """φ(x), a weight for each row of the mode, (*batch, size)."""
    place = mode.place(x)
    if not place.is_floating_point():
        return torch.nn.functional.one_hot(place, mode.size).double().numpy()
    below = place.floor().long()
    weights = torch.zeros(len(x), mode.size, dtype=x.dtype)
    weights.scatter_add_(1, (below % mode.size).unsqueeze(1), (1 - (place - below)).unsqueeze(1))
    weights.scatter_add_(1, ((below + 1) % mode.size).unsqueeze(1), (place - below).unsqueeze(1))
    return weights.numpy()


def draw_factors(path: Path, run: torchq.Run) -> None:
    """The columns of largest norm of what a run has learnt, a panel a mode."""
    q = run.q_tensor.rebalance_()
    factors = [factor.detach().numpy() for factor in q.parameters()]
    order = np.argsort(-np.prod([np.linalg.norm(factor, axis=0) for factor in factors], axis=0))[:4]
    angle, speed, torque, task = factors
    modes = run.policy.grid.modes
    figure, panels = plt.subplots(1, 4, figsize=(10, 2.5), layout="constrained")
    for number, component in enumerate(order):
        colour = f"C{number}"
        closed = np.append(angle[:, component], angle[0, component])
        panels[0].plot(np.linspace(modes[0].low, modes[0].high, len(closed)), closed, ".-", color=colour)
        panels[1].plot(modes[1].points(), speed[:, component], ".-", color=colour)
        panels[2].plot(np.linspace(-2, 2, len(torque)), torque[:, component], ".-", color=colour)
        panels[3].bar(np.arange(len(task)) + 0.2 * (number - 1.5), task[:, component], 0.18, color=colour)
    for panel, title, label in zip(panels, ("S₁, angle", "S₂, speed", "A, torque", "T, task"),
                                   ("rad", "rad/s", "N m", "number"), strict=True):  # fmt: skip
        panel.set(title=title, xlabel=label)
        panel.axhline(0, color=INK, linewidth=0.5)
    save(figure, path)


def draw_policies(path: Path, run: torchq.Run) -> None:
    """The greedy torque over angle and speed, a panel a task."""
    angle, speed = np.linspace(-np.pi, np.pi, 181), np.linspace(-5, 5, 121)
    states = np.stack(np.meshgrid(angle, speed), -1)
    tasks = run.summary["tasks"]
    figure, panels = plt.subplots(1, len(tasks), figsize=(10, 2.6), layout="constrained", sharey=True)
    for number, (panel, task) in enumerate(zip(panels, tasks, strict=True)):
        torque = np.linspace(-2, 2, 10)[run.policy.act(states, task=number)]
        picture = panel.imshow(torque, extent=(-np.pi, np.pi, -5, 5), origin="lower", aspect="auto", cmap="coolwarm")
        panel.set(title=f"{task['mass']:g} kg, {task['length']:g} m", xlabel="angle, rad")
    panels[0].set_ylabel("speed, rad/s")
    figure.colorbar(picture, ax=panels, label="greedy torque, N m")
    save(figure, path)


def draw_sharing(path: Path, runs: Sequence[torchq.Run]) -> None:
    """Gap to the optimum against samples, mean over tasks, with and without sharing."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for run in runs:
        m = run.metrics
        gap = (np.array(run.summary["optimal_return"]) - m.returns).mean(-1)  # (evaluations, seeds)
        low, median, high = np.percentile(gap, [25, 50, 75], axis=1)
        (line,) = axes.plot(m.samples, median, label=run.config.algo)
        axes.fill_between(m.samples, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="samples per task", ylabel="optimum − return", yscale="log")
    axes.legend(frameon=False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure, the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all."""
    parser = argparse.ArgumentParser(description="The figures of docs/how-it-works.md.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write them")
    parser.add_argument("--small", action="store_true", help="short runs, for a test")
    arguments = parser.parse_args(argv)
    short: dict[str, Any] = {"episodes": 1, "num_seeds": 2} if arguments.small else {}
    with mpl.rc_context(STYLE), tempfile.TemporaryDirectory() as folder:
        draw_tensor(arguments.out / "tensor.svg")
        draw_interpolation(arguments.out / "interpolation.svg")
        settings: dict[str, Any] = {"env": "pendulum", "num_seeds": 8, "seed": 100, "progress": False, "device": "cpu"}
        run = torchq.train(algo="stlrq", rank=8, out=f"{folder}/run", **{**settings, **short})
        draw_factors(arguments.out / "factors.svg", run)
        draw_policies(arguments.out / "policies.svg", run)
        settings |= {
            "num_tasks": 4 if arguments.small else 64,
            "episodes": 40,
            "eval_every": 1,
            "rank": 30,
            "num_seeds": 4,
            "optimal": True,
        }
        runs = [torchq.train(algo=algo, out=f"{folder}/{algo}", **{**settings, **short})
                for algo in ("stlrq", "lrq", "clrq")]  # fmt: skip
        draw_sharing(arguments.out / "sharing.svg", runs)


if __name__ == "__main__":
    main()
