"""What a page shows of one run beside its curve: values, episodes, its tasks, and its factors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchq import families
from torchq.errors import TorchqError
from torchq.lowrank import structure
from torchq.report import episodes, figures, tensors
from torchq.report.figures import Figure
from torchq.runs.plotting import named
from torchq.runs.policy import GridPolicy
from torchq.runs.run import Run

MAX_EPISODES = 12
"""Tasks whose episodes are played."""
MAX_STEPS = 300
COMPONENTS = 6
"""Columns of a factor that are drawn."""


def typical(run: Run) -> Run:
    """The run, of those side by side, whose mean final return is the median."""
    scores = run.metrics.final_return().mean(1)
    return Run(run.folder, int(np.argsort(scores)[(len(scores) - 1) // 2]))


def optimal_episodes(run: Run) -> list[dict[str, Any]] | None:
    """An episode of an optimal policy in each task that is drawn; None where the family does not know it."""
    env = families.of(run.config)
    if not hasattr(env, "optimal_policy"):
        return None
    tasks = [run.tasks.tasks[task] for task in figures.spread(len(run.tasks.tasks), MAX_EPISODES)]
    policies = [env.optimal_policy(task) for task in tasks]

    def act(observation: Tensor, step: int) -> Tensor:
        return torch.cat([one(observation[i : i + 1], step) for i, one in enumerate(policies)])

    return [drawn(episode) for episode in episodes.play(env, tasks, act)]


def described(run: Run) -> dict[str, Any]:
    """Everything of a run that the page draws by itself; what cannot be had is left out, and said in `notes`."""
    notes: list[str] = []
    try:
        chosen = typical(run)
        policy, env = chosen.policy, families.of(run.config)
    except TorchqError as error:
        return {"notes": [f"nothing but its curve is shown: {error}"], "tasks": []}
    assert isinstance(policy, GridPolicy)
    played = figures.spread(policy.num_tasks, MAX_EPISODES)
    tasks = sorted({*played, *figures.spread(policy.num_tasks, tensors.MAX_TASKS)})
    units = getattr(env, "parameter_units", ())
    names = [f"{task}: {named(vars(run.tasks.tasks[task]), units)}" for task in tasks]
    dimensions = dimension_names(env, len(policy.grid.modes))
    if run.config.num_seeds > 1:
        notes.append("the median one of its runs side by side")
    values = tensors.described(policy, tasks)
    if values is None:
        notes.append("its action values are too many for a page")
    elif len(tasks) < policy.num_tasks:
        notes.append(f"values, episodes and similarity are those of {len(tasks)} of {policy.num_tasks:,} tasks")
    found = tensors.decomposition(policy, tasks)
    if found is None:
        notes.append("a table has no factors")
    elif run.config.algo != "stlrq":
        notes.append("factors of a tensor for each task are not shown" if run.config.algo == "lrq"
                     else "its tasks share all, so that none is more alike than another")  # fmt: skip
    return {
        "index": chosen.index + run.config.seed,
        "tasks": names,
        "dimensions": dimensions,
        "actions": action_names(env),
        "values": values,
        "episodes": _episodes(env, policy, [run.tasks.tasks[task] for task in played], played),
        "played": [tasks.index(task) for task in played],
        "similarity": [] if found is None or found.tasks is None else similarity(found, names),
        "factors": [] if found is None else _factors(found, policy, dimensions, action_names(env), run),
        "notes": notes,
    }


def dimension_names(env: Any, count: int) -> list[str]:
    """What the dimensions of an observation are called."""
    said = getattr(env, "observation_names", ())
    names = said if len(said) == count else tuple(map(str, range(count)))
    return [f"dimension {name}" if name.isdigit() else name for name in names]


def action_names(env: Any) -> list[str]:
    """What the actions are called: by number where the family does not say."""
    said = getattr(env, "action_names", ())
    names = said if len(said) == env.num_actions else map(str, range(env.num_actions))
    return [re.sub(r"^-(?=\d)", "−", name) for name in names]


def similarity(found: tensors.CP, names: Sequence[str]) -> list[Figure]:
    """Correlations of the tasks' values and of their advantages, over all places of the grid and actions."""
    last = len(found.factors) - 1
    kinds = {
        "Correlation of action values": found.factors,
        "Correlation of advantages, Q minus its mean over actions": structure.advantages(found.factors, last - 1),
    }
    tables = {title: structure.correlation(factors, last).numpy() for title, factors in kinds.items()}
    order = figures.alike(next(iter(tables.values())))
    return [figures.matrix(title, names, table, order) for title, table in tables.items()]


def _factors(
    found: tensors.CP, policy: GridPolicy, dimensions: list[str], actions: list[str], run: Run
) -> list[Figure]:
    """Columns of each factor, the largest components first, and the singular values of every mode."""
    if run.config.algo == "lrq":
        return []  # A tensor for each task: no component means the same in two of them.
    weights, columns = structure.components(found.factors)
    axes: list[tuple[str, list[Any], bool]] = [
        (name, mode.points().tolist(), mode.interpolates)
        for name, mode in zip(dimensions, policy.grid.modes, strict=True)
    ]
    if policy.grid.joint:
        axes = [("state", list(range(len(found.states[0]))), False)]
    axes.append(("action", actions, False))
    if found.tasks is not None:
        axes.append(("task", list(range(len(found.tasks))), False))
    spectra = [structure.singular_values(found.factors, mode).numpy() for mode in range(len(found.factors))]
    shown = [
        figures.factor(
            f"{name}, {len(axis)} rows; effective rank {structure.effective_rank(torch.from_numpy(spectrum)):.1f}",
            axis, column[:, :COMPONENTS].numpy(), weights.numpy(), smooth,
        )
        for (name, axis, smooth), column, spectrum in zip(axes, columns, spectra, strict=True)
    ]  # fmt: skip
    return [*shown, figures.spectra([name for name, _, _ in axes], spectra)]


def _episodes(env: Any, policy: GridPolicy, tasks: Sequence[Any], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A greedy episode of each task; an optimal one has the same start and the same noise."""

    def act(observation: Tensor, step: int) -> Tensor:
        return policy.act(observation, torch.tensor(numbers))

    return [drawn(episode) for episode in episodes.play(env, tasks, act)]


def drawn(episode: episodes.Episode) -> dict[str, Any]:
    """An episode as the page reads it, with fewer steps where they are many."""
    kept = figures.thinned(len(episode.observations), MAX_STEPS)
    return {
        "steps": kept.tolist(),
        "observations": [figures.rounded(column) for column in episode.observations[kept].T],
        "actions": figures.rounded(episode.actions[kept[kept < len(episode.actions)]]),
        "return": float(f"{episode.rewards.sum():.5g}"),
    }
