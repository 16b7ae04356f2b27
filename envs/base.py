"""The contract of the environments, and what they share.

An environment is a frozen dataclass of constants with two pure functions on batches shaped (seeds, tasks, envs):

    reset(tasks, uniforms)               -> state
    step(tasks, state, action, uniforms) -> (state, reward, terminated, truncated)

and `observe(state)`, `sample_tasks(num_tasks)` (a list of parameters dataclasses, one per task; None: the default
ones), and these attributes: `name`, `num_actions`, `episode_length`, `terminates` (whether an episode can end before
its length; the caller then resets it), `num_reset_uniforms`, `num_step_uniforms`, `grid_low`, `grid_high` and
`grid_sizes` (the learner's grid of cells, one value per dimension of the observation). `dimensions` says what each
dimension is, a `Dimension`, for learners that interpolate; without it they take all for continuous, between the points
of that grid. `parameters` says the same of each parameter of a task: the range of the family, and how to interpolate
between its tasks. The Gymnasium view needs `observation_low` and `observation_high` too. `action_levels` says what each
action is, a list of numbers each, for policies that are taken away. For pictures and tables there may be
`observation_names`, `action_names` and `parameter_units`; for the line that no curve crosses
`optimal_returns(tasks, device)`, and for what is drawn beside what was learnt `optimal_policy(task)`.

That is all that an environment needs: torchq's fused engines translate `step`, `reset` and `observe` to C++ and Triton.
They can if the three work number by number, with the batch as they find it: arithmetic, comparisons, `torch.where`,
`clamp`, `sin` and the like, and stacking, selecting or unbinding what lies behind the batch's axes. Matrix products and
control flow that reads a value run in the other engines.

`tasks` is a parameters dataclass whose fields are tensors shaped (tasks, 1); `uniforms` are the random numbers of the
call, uniform in [0, 1), shaped (seeds, tasks, envs, n) with n = `num_reset_uniforms` or `num_step_uniforms`: where they
come from is the caller's business, so an environment holds no generator. A state is a NamedTuple of tensors with a
field `elapsed`, the steps since the reset; an episode is truncated after `episode_length` of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Tasks = TypeVar("Tasks")

Policy = Callable[[Tensor, int], Tensor]
"""From observations (envs, dimensions) and the steps gone to the numbers of actions (envs,)."""


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of an observation, or of a task: the points between which a learner interpolates along it."""

    low: float
    """The lowest point, in the units of the dimension; what lies below is taken there."""
    high: float
    """The highest point; of a periodic dimension where the next period begins."""
    points: int
    """How many: few are learnt from few samples, for interpolation is smooth between them."""
    kind: Literal["continuous", "periodic", "quadratic", "log", "category"] = "continuous"
    """Quadratic ones have their points equidistant in the root of the distance from `low`, and learners are linear in
    it between them: powers, whose roots are amplitudes. Log ones do the same in the logarithm: what differs by orders
    of magnitude. Between categories, whole numbers, there is nothing."""


def stack_tasks(
    tasks: Sequence[Tasks], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Tasks:
    """One parameters dataclass with fields shaped (tasks, 1) from one dataclass of numbers per task."""
    fields = {
        field.name: torch.tensor([[getattr(task, field.name)] for task in tasks], device=device, dtype=dtype)
        for field in dataclasses.fields(tasks[0])  # type: ignore[arg-type]
    }
    return type(tasks[0])(**fields)


def select_tasks(tasks: Tasks, index: Tensor) -> Tasks:
    """The parameters of some of the tasks, by their numbers."""
    fields = {
        field.name: getattr(tasks, field.name).index_select(0, index)
        for field in dataclasses.fields(tasks)  # type: ignore[arg-type]
    }
    return type(tasks)(**fields)


def spread(count: int, low: Sequence[float], high: Sequence[float]) -> list[tuple[float, ...]]:
    """Evenly spread points in a box; point i does not depend on how many are asked for.

    The additive recurrence with the generalised golden ratio (Roberts, "The unreasonable effectiveness of
    quasirandom sequences", 2018).
    """
    dimensions = len(low)
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    return [
        tuple(low[d] + (high[d] - low[d]) * ((0.5 + (i + 1) * ratio ** -(d + 1)) % 1.0) for d in range(dimensions))
        for i in range(count)
    ]


def normals(first: Tensor, second: Tensor, std: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two independent normals of mean 0 from two uniforms in [0, 1) (Box and Muller 1958)."""
    radius = std * torch.sqrt(-2.0 * torch.log1p(-first))
    angle = 2.0 * torch.pi * second
    return radius * torch.cos(angle), radius * torch.sin(angle)


def never(like: Tensor) -> Tensor:
    """False, in the shape of a batch: for environments that do not terminate."""
    return torch.zeros_like(like, dtype=torch.bool)


def dtype_of(tasks: Any) -> torch.dtype:
    """Floating-point type of a parameters dataclass."""
    return getattr(tasks, dataclasses.fields(tasks)[0].name).dtype
