"""Films of a greedy episode of each task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchq import families
from torchq.checkpoint import write_atomically
from torchq.errors import UsageError
from torchq.report import episodes, figures, learnt
from torchq.runs.run import Run

FPS = 20
MAX_FILMS = 8
SIZE = 320


def films(runs: Sequence[Run], folder: Path, form: str) -> list[Path]:
    """Film each run's greedy policy in its tasks, in a few if there are many; returns the files.

    Args:
        runs: of learners on a grid.
        folder: where.
        form: gif or mp4.

    Raises:
        UsageError: if there is nothing to film, or no program for it.
    """
    if not runs:
        raise UsageError("`video`: expected a low-rank or tabular run, got studies of quadratic learners alone")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, run in enumerate(runs):
        apart = "" if len(runs) == 1 else f"{run.folder.name}-" if _unique(runs) else f"{number}-"
        for task, pictures in _filmed(run):
            paths.append(folder / f"{apart}task-{task}.{form}")
            _write(paths[-1], pictures)
    return paths


def _unique(runs: Sequence[Run]) -> bool:
    return len({run.folder.name for run in runs}) == len(runs)


def _filmed(run: Run) -> Any:
    """Numbers of tasks with the pictures of an episode."""
    chosen = learnt.typical(run)
    policy: Any = chosen.policy
    env = families.of(run.config)
    some = figures.spread(policy.num_tasks, MAX_FILMS)
    tasks = [run.tasks.tasks[task] for task in some]
    if hasattr(env, "film"):
        for number, task in zip(some, tasks, strict=True):
            try:
                yield number, list(env.film(task, lambda seen, step, which=number: policy.act(seen, which)))
            except Exception as error:  # Whatever a user's environment raises.
                reason = str(error).strip().partition("\n")[0]
                raise UsageError(f"`video`: {run.config.env} gives no pictures: {reason}") from error
        return

    def act(observation: Tensor, step: int) -> Tensor:
        return policy.act(observation, torch.tensor(some))

    played = zip(some, tasks, episodes.play(env, tasks, act), strict=True)
    for number, task, episode in played:
        yield number, [families.picture(env, seen, task, SIZE) for seen in episode.observations.tolist()]


def _write(path: Path, pictures: Sequence[np.ndarray]) -> None:
    if path.suffix == ".gif":
        from PIL import Image

        first, *others = [Image.fromarray(picture).quantize(64) for picture in pictures]
        content = io.BytesIO()
        first.save(content, "GIF", save_all=True, append_images=others, duration=1000 // FPS, loop=0)
        write_atomically(path, content.getvalue())
        return
    from matplotlib.animation import FFMpegWriter
    from matplotlib.figure import Figure

    if not FFMpegWriter.isAvailable():
        raise UsageError("`video`: mp4 needs the program ffmpeg, which is not found; take gif")
    figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    image = axis.imshow(pictures[0])
    writer = FFMpegWriter(fps=FPS)
    with writer.saving(figure, str(path), 100):
        for picture in pictures:
            image.set_data(picture)
            writer.grab_frame()
