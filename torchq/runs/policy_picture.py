"""A picture of what was learnt: the value and the action of the greedy policy over two dimensions, for a few tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from torchq.lowrank.modes import Mode

if TYPE_CHECKING:
    from torchq.runs.policy import GridPolicy

MAX_TASKS = 4
MAX_POINTS = 200
"""Of a dimension, so many are drawn."""
PLACES = 48
"""Along a dimension that is interpolated."""


def picture(policy: GridPolicy) -> np.ndarray | None:
    """The picture, (height, width, 3), uint8; the other dimensions are in their middle.

    Args:
        policy: of one run.

    Returns:
        None where there is but one dimension.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = policy.grid.modes
    if len(modes) < 2:
        return None
    across, up = sorted(sorted(range(len(modes)), key=lambda d: (-len(_places(modes[d])), d))[:2])
    tasks = range(min(MAX_TASKS, policy.num_tasks))
    figure = Figure(figsize=(2.2 * len(tasks) + 0.4, 4.8))
    figure.subplots_adjust(0.05, 0.08, 0.99, 0.93, 0.15, 0.2)  # A layout that looks for itself takes a second.
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex=True, sharey=True)
    extent = (modes[across].low, modes[across].high, modes[up].low, modes[up].high)
    for task in tasks:
        for row, (what, values) in enumerate(_best(policy, task, across, up)):
            colours = ("viridis", "cividis")[row]
            axes[row, task].imshow(values, cmap=colours, extent=extent, origin="lower", aspect="auto")
            axes[row, task].set_title(f"task {task}: {what}", fontsize="small")
            axes[row, task].tick_params(labelsize="x-small")
    figure.supxlabel(f"dimensions {across} and {up}", fontsize="small")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _best(policy: GridPolicy, task: int, across: int, up: int) -> list[tuple[str, np.ndarray]]:
    """The largest action value and its action, (up, across) each, with its range."""
    modes = policy.grid.modes
    axes = [_places(mode) if d in (across, up) else _places(mode)[len(_places(mode)) // 2 :][:1]
            for d, mode in enumerate(modes)]  # fmt: skip
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (across · up, dims)
    index = policy.grid.index(points.to(policy.dtype))
    numbers = torch.full((len(points),), task, device=policy.device)
    index = tuple(place.to(policy.device) for place in index)
    best = policy.learner.lookup(policy.state, index, numbers)[0].max(-1)
    shape = (len(axes[across]), len(axes[up]))
    value, action = best.values.view(shape), best.indices.view(shape)
    ends = f"{value.min().item():.3g} to {value.max().item():.3g}"
    return [(f"max Q, {ends}", value.T.float().cpu().numpy()), ("greedy action", action.T.cpu().numpy())]


def _places(mode: Mode) -> torch.Tensor:
    if mode.interpolates:
        return torch.linspace(mode.low, mode.high, PLACES, dtype=torch.float64)
    points = mode.points()
    return points[:: -(-len(points) // MAX_POINTS)]
