"""Policies on raw observations: one or a batch, NumPy or torch, as they come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchq import tree
from torchq.errors import UsageError
from torchq.lowrank.learner import Learner
from torchq.lowrank.modes import Grid
from torchq.quadratic import forms
from torchq.quadratic.forms import Quadratic
from torchq.runs.control_tasks import Case


@dataclass(frozen=True)
class GridPolicy:
    """Greedy or ε-greedy in action values on a grid: a random action with probability ε, else the first that is best.

    Args:
        learner: the method.
        state: what one run has learnt, (1, …).
        grid: from observations to places along the factors.
        num_tasks: M.
    """

    learner: Learner
    state: Any
    grid: Grid
    num_tasks: int

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the values, in which observations fall on the grid as in training."""
        return next(iter(tree.flatten(self.state).values())).dtype

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return next(iter(tree.flatten(self.state).values())).device

    @cached_property
    def _exact(self) -> Any:
        """The state in double precision, so that rounding decides between no actions that differ."""
        return _doubled(self.state)

    def act(
        self, observation: Any, task: Any = 0, epsilon: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """Number of the action in one observation or many.

        Args:
            observation: raw, as the environment gives it: (dimensions,) or (*batch, dimensions); what lies outside the
                grid is taken to its edge.
            task: number of the task, from 0; one for all, or one for each, (*batch).
            epsilon: ε in [0, 1].
            generator: of the random actions; None takes torch's own.

        Returns:
            An int for one observation; for many, (*batch), a tensor if the observations came as one, else an array.

        Raises:
            UsageError: a ValueError, if an argument is not as expected.
        """
        x = _observations(observation, len(self.grid.sizes))
        if not isinstance(epsilon, float | int) or not 0.0 <= epsilon <= 1.0:
            raise UsageError(f"`epsilon`: expected a number from 0 to 1, got {epsilon!r}")
        tasks = _tasks(task, x.shape[:-1], self.num_tasks)
        with torch.no_grad():
            index = self.grid.index(x.to(self.dtype).view(-1, x.shape[-1]))  # (batch,) for each mode
            q = self.learner.lookup(self._exact, index, tasks.flatten())[0]  # (batch, actions)
            action = q.argmax(-1)
            if epsilon > 0.0:
                explores = torch.rand(action.shape, generator=generator) < epsilon
                action = torch.where(explores, torch.randint(q.shape[-1], action.shape, generator=generator), action)
        return _as_given(action.view(x.shape[:-1]), observation)


@dataclass(frozen=True)
class ControlPolicy:
    """Greedy in a quadratic Q-function: u = π_b(x) + R⁻¹Sᵀφ(x).                                     [LMI, eq. (11)]

    Args:
        cases: the tasks with their baselines π_b.
        learnt: P, S and R of each task, (tasks, …).
    """

    cases: tuple[Case, ...]
    learnt: Quadratic

    def act(self, observation: Any, task: int = 0, epsilon: float = 0.0) -> Any:
        """Control in one observation or many.

        Args:
            observation: raw, (dimensions,) or (*batch, dimensions).
            task: number of the task, from 0.
            epsilon: 0: there are no finite actions to choose at random.

        Returns:
            Controls, (controls,) or (*batch, controls), a tensor if the observations came as one, else an array.

        Raises:
            UsageError: a ValueError, if an argument is not as expected.
        """
        if epsilon != 0.0:
            raise UsageError(f"`epsilon`: expected 0 for a policy with continuous controls, got {epsilon}")
        number = int(_tasks(task, (), len(self.cases)))
        case = self.cases[number]
        x = _observations(observation, case.design.gain.shape[-1])
        gain = forms.greedy_gain(Quadratic(*(part[number] for part in self.learnt)))
        control = case.env.features(x) @ gain.mT - x @ case.design.gain.mT
        return control if isinstance(observation, Tensor) else control.numpy()


def _doubled(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.double() if part.is_floating_point() else part
    children = [_doubled(child) for child in part]
    return type(part)(*children) if hasattr(part, "_fields") else tuple(children)


def _observations(observation: Any, dimensions: int) -> Tensor:
    """Finite observations in double precision on the CPU."""
    try:
        x = torch.as_tensor(observation if isinstance(observation, Tensor) else np.asarray(observation, np.float64))
    except (TypeError, ValueError) as error:
        raise UsageError(f"`observation`: expected numbers, got {observation!r}") from error
    x = x.detach().to("cpu", torch.float64)
    if x.ndim == 0 or x.shape[-1] != dimensions:
        came = f"the shape {tuple(x.shape)}"
        raise UsageError(f"`observation`: expected {dimensions} numbers, or a batch (..., {dimensions}), got {came}")
    if not torch.isfinite(x).all():
        raise UsageError("`observation`: expected finite numbers, got NaN or infinity")
    return x


def _tasks(task: Any, shape: torch.Size | tuple[int, ...], num_tasks: int) -> Tensor:
    """Numbers of tasks, in the shape of the batch."""
    try:
        numbers = torch.as_tensor(task).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"`task`: expected numbers from 0 to {num_tasks - 1}, got {task!r}") from error
    if numbers.is_floating_point() or numbers.dtype == torch.bool or ((numbers < 0) | (numbers >= num_tasks)).any():
        raise UsageError(f"`task`: expected numbers from 0 to {num_tasks - 1}, got {task}")
    try:
        return numbers.long().expand(shape)
    except RuntimeError:
        came = f"the shape {tuple(numbers.shape)}"
        raise UsageError(f"`task`: expected one number, or a batch {tuple(shape)}, got {came}") from None


def _as_given(action: Tensor, observation: Any) -> Any:
    if action.ndim == 0:
        return int(action)
    return action.to(observation.device) if isinstance(observation, Tensor) else action.numpy()
