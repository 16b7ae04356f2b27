"""What the training loop asks of a learner. Learners are frozen dataclasses; their state is a NamedTuple of tensors."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from torchq.lowrank.transitions import Transition


class Learner(Protocol):
    """A method that learns action values of many tasks from transitions on a grid."""

    @property
    def couples_tasks(self) -> bool:
        """Whether a sample of one task changes the values of another."""
        ...

    def init(self, seeds: Tensor, *, device: Any, dtype: Any) -> Any:
        """State before the first transition; row i of every tensor is a function of seeds[i]."""
        ...

    def action_values(self, state: Any, index: tuple[Tensor, ...], task: Tensor | None = None) -> Tensor:
        """Q(s, ·), shaped (seeds, tasks, envs, actions), of all tasks in order.

        A learner that couples its tasks takes the number of one task, (1,), and gives that task's values alone.
        """
        ...

    def lookup(self, state: Any, index: tuple[Tensor, ...], task: Tensor) -> Tensor:
        """Q(s, ·) of a flat batch, a task for each; index and task are (batch,), the values (seeds, batch, actions)."""
        ...

    def update(
        self, state: Any, transition: Transition, learning_rate: Tensor, task: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """State after one batch of transitions, and the TD errors before it."""
        ...

    def policy(self, state: Any) -> Any:
        """What is tested and kept of a state: what its greedy policy depends on."""
        ...

    def at_tasks(self, policy: Any, tasks: Tensor) -> Any:
        """What the action values of some tasks, (tasks,), depend on, of a `policy`, in their order."""
        ...

    def join(self, snapshots: list[Any]) -> Any:
        """A state whose action values of task m are those of snapshots[m]."""
        ...
