"""What a page shows of a study of a quadratic learner: values and controls around the origin, and test episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchq import families
from torchq.errors import TorchqError
from torchq.quadratic import forms
from torchq.quadratic.forms import Quadratic
from torchq.report import episodes, figures
from torchq.report.learnt import dimension_names, drawn
from torchq.report.tensors import encoded
from torchq.runs.plotting import named
from torchq.runs.policy import ControlPolicy
from torchq.runs.run import Run

MAX_TASKS = 12
PLACES = 41
"""Along each of two dimensions."""
YARDSTICK = "feedback linearisation with LQR"


def described(run: Run) -> dict[str, Any]:
    """Everything of the first run of a study that the page draws by itself, as `learnt.described` says it."""
    try:
        policy, env = run.policy, families.of(run.config)
    except TorchqError as error:
        return {"notes": [f"nothing but its table is shown: {error}"], "tasks": []}
    assert isinstance(policy, ControlPolicy)
    chosen = figures.spread(len(policy.cases), MAX_TASKS)
    cases = [policy.cases[number] for number in chosen]
    units = getattr(env, "parameter_units", ())
    plant = cases[0].env
    high = plant.exploration_high
    return {
        "index": run.config.seed,
        "tasks": [f"{number}: {named(vars(case.task), units)}" for number, case in zip(chosen, cases, strict=True)],
        "dimensions": dimension_names(env, len(high)),
        "actions": [],
        "values": _values(policy, chosen, high) if len(high) == 2 else None,
        "episodes": [_played(policy, number, learnt=True) for number in chosen],
        "optimal": [_played(policy, number, learnt=False) for number in chosen],
        "best": YARDSTICK,
        "played": list(range(len(chosen))),
        "notes": [f"learnt from {run.config.sizes[-1]} samples of each task"],
    }


def value(policy: ControlPolicy, number: int, x: Tensor) -> Tensor:
    """max_u Q(x, u) = V_b(x) + φᵀ(P + W)φ of one task.                                   [LMI, eq. (12)]

    Args:
        policy: what was learnt.
        number: of the task.
        x: observations, (points, dimensions).
    """
    case, q = policy.cases[number], Quadratic(*(part[number] for part in policy.learnt))
    phi = case.env.features(x)
    return forms.form(phi, q.P + forms.coupling(q)) - forms.form(x, case.design.value)


def _values(policy: ControlPolicy, numbers: list[int], high: tuple[float, ...]) -> dict[str, Any]:
    """Values and controls of some tasks where data are collected."""
    axes = [torch.linspace(-end, end, PLACES, dtype=torch.float64) for end in high]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return {
        "axes": [figures.rounded(axis) for axis in axes], "rank": 0, "num_actions": 1,
        "table": encoded(torch.stack([value(policy, number, x) for number in numbers])),
        "controls": encoded(torch.stack([policy.act(x, number)[..., 0] for number in numbers])),
    }  # fmt: skip


def _played(policy: ControlPolicy, number: int, *, learnt: bool) -> dict[str, Any]:
    """A test episode of the learnt control, or of the yardstick from the same start with the same noise."""
    case = policy.cases[number]

    def act(x: Tensor, step: int) -> Tensor:
        if learnt:
            return policy.act(x, number)[..., 0]
        return (case.env.cancelling(case.task, x) - x @ case.design.yardstick_gain.mT)[..., 0]

    return drawn(episodes.play(case.env, [case.task], act)[0])
