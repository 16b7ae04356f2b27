"""QTensor: the Q-functions of many tasks as one low-rank tensor, as a module for your own PyTorch code."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from torchq import families
from torchq.checkpoint import load_checkpoint
from torchq.config import from_json
from torchq.errors import CheckpointError
from torchq.lowrank import cp
from torchq.lowrank.low_rank_state import kept_factors
from torchq.methods import LOW_RANK_ALGOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensorly.cp_tensor import CPTensor


def _sizes(name: str, sizes: int | Sequence[int], minimum_modes: int) -> tuple[int, ...]:
    sizes = tuple(map(operator.index, sizes if isinstance(sizes, Iterable) else (sizes,)))
    if len(sizes) < minimum_modes or any(size < 1 for size in sizes):
        raise ValueError(f"{name}: expected {minimum_modes} or more sizes of at least 1, got {sizes}")
    return sizes


class QTensor(nn.Module):
    """Q-functions of many tasks in one tensor of low rank.

        Q[s₁, …, a₁, …, m₁, …] = Σₖ ∏ S_d[s_d, k] · ∏ A_d[a_d, k] · ∏ T_d[m_d, k]      [TLR, eq. (7)]

    The factors are parameters of shape (size, rank), modes in the order states, actions, tasks, so any optimiser of
    `torch.optim` trains them through `forward`. Indices are integer tensors of one shape `batch` per mode; a kind of
    mode that has only one takes its tensor as it is, else a sequence of tensors. Floating-point ones are places between
    rows, whose weighted mean they take (see `torchq.lowrank.modes`; `Mode.place` computes them), with gradients into
    the factors and into the places.

    Args:
        state_sizes: rows per state mode; one number is a joint state mode.
        action_sizes: rows per action mode.
        task_sizes: rows per task mode; () shares everything between all tasks.
        rank: K ≥ 1.
        init_scale: standard deviation of the initial factors; default: such that entries have variance 1.
        generator: source of the initial factors.
        device: where the factors live.
        dtype: of the factors.

    Raises:
        ValueError: if a size or the rank is below 1, or a state or action mode is missing.
    """

    def __init__(
        self,
        state_sizes: int | Sequence[int],
        action_sizes: int | Sequence[int],
        task_sizes: int | Sequence[int] = (),
        *,
        rank: int,
        init_scale: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.state_sizes = _sizes("state_sizes", state_sizes, 1)
        self.action_sizes = _sizes("action_sizes", action_sizes, 1)
        self.task_sizes = _sizes("task_sizes", task_sizes, 0)
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        sizes = (*self.state_sizes, *self.action_sizes, *self.task_sizes)
        scale = rank ** (-0.5 / len(sizes)) if init_scale is None else init_scale
        self.factors = nn.ParameterList(
            scale * torch.randn(size, rank, generator=generator, device=device, dtype=dtype) for size in sizes
        )

    @property
    def rank(self) -> int:
        """Number of components K."""
        return self.factors[0].shape[1]

    @property
    def num_actions(self) -> int:
        """Number of actions over all action modes."""
        return math.prod(self.action_sizes)

    def forward(
        self,
        state: Tensor | Sequence[Tensor],
        action: Tensor | Sequence[Tensor],
        task: Tensor | Sequence[Tensor] = (),
    ) -> Float[Tensor, "*batch"]:
        """Entries Q[s, a, m] of a batch of indices."""
        rows = [*self._rows("state", state), *self._rows("action", action), *self._rows("task", task)]
        return cp.entry(rows)

    def action_values(
        self, state: Tensor | Sequence[Tensor], task: Tensor | Sequence[Tensor] = ()
    ) -> Float[Tensor, "*batch actions"]:
        """Action values Q[s, ·, m]; several action modes are flattened, the last one fastest."""
        weights = cp.product([*self._rows("state", state), *self._rows("task", task)])
        return weights @ cp.khatri_rao(self._factors("action")).mT

    def greedy_action(
        self, state: Tensor | Sequence[Tensor], task: Tensor | Sequence[Tensor] = ()
    ) -> Int[Tensor, "*batch"] | tuple[Int[Tensor, "*batch"], ...]:
        """First action of largest value: a tensor, or one tensor per mode where there are several action modes."""
        best = self.action_values(state, task).argmax(-1)
        if len(self.action_sizes) == 1:
            return best
        return torch.unravel_index(best, self.action_sizes)

    def dense(self) -> Tensor:
        """The whole tensor, shaped (*state_sizes, *action_sizes, *task_sizes)."""
        return cp.dense(list(self.factors))

    def norm(self) -> Float[Tensor, ""]:
        """Frobenius norm of the whole tensor, from the factors."""
        return cp.norm(list(self.factors))

    @torch.no_grad()
    def rebalance_(self) -> QTensor:
        """Scale the factors, in place, so that every component's norm is shared equally; the tensor stays."""
        for factor, balanced in zip(self.factors, cp.rebalance(list(self.factors)), strict=True):
            factor.copy_(balanced)
        return self

    def to_cp(self) -> CPTensor:
        """TensorLy's CPTensor of the same tensor, sharing memory with the parameters (detached).

        Raises:
            ValueError: if TensorLy's back end is neither PyTorch nor NumPy.
        """
        return cp.to_tensorly([factor.detach() for factor in self.factors])

    @classmethod
    def from_cp(
        cls,
        cp_tensor: CPTensor | tuple[Tensor | None, list[Tensor]],
        *,
        num_state_modes: int,
        num_action_modes: int = 1,
    ) -> QTensor:
        """QTensor from a TensorLy CPTensor; the modes after states and actions are task modes.

        Raises:
            ValueError: if the CPTensor has fewer modes than states and actions need.
        """
        factors = cp.from_tensorly(cp_tensor)
        sizes = [factor.shape[0] for factor in factors]
        num_modes = num_state_modes + num_action_modes
        if len(sizes) < num_modes:
            raise ValueError(
                f"cp_tensor: expected at least {num_modes} modes (states, actions, tasks), got {len(sizes)}"
            )
        module = cls(
            sizes[:num_state_modes],
            sizes[num_state_modes:num_modes],
            sizes[num_modes:],
            rank=factors[0].shape[1],
            generator=torch.Generator(factors[0].device),
            device=factors[0].device,
            dtype=factors[0].dtype,
        )
        with torch.no_grad():
            for parameter, factor in zip(module.factors, factors, strict=True):
                parameter.copy_(factor)
        return module

    @classmethod
    def from_groups(
        cls, factors: Sequence[Float[Tensor, "groups _ rank"]], num_state_modes: int, num_action_modes: int
    ) -> QTensor:
        """The factors of a learner in one tensor: [task,] states, actions.

        Groups, one tensor for each of M tasks, become one tensor of rank M·K: component (m, k) has T[m, (m, k)] = 1 in
        the task mode, and zeros else.
        """
        first, groups = len(factors) - num_state_modes - num_action_modes, len(factors[0])
        ordered = [*factors[first:], *factors[:first]]
        if groups > 1:
            rank = ordered[0].shape[-1]
            flat = [factor.movedim(0, 1).flatten(1) for factor in ordered]  # (size, groups · rank)
            flat.append(torch.eye(groups).to(flat[0]).repeat_interleave(rank, 1))
        else:
            flat = [factor[0] for factor in ordered]
        return cls.from_cp((None, flat), num_state_modes=num_state_modes, num_action_modes=num_action_modes)

    @classmethod
    def from_run(cls, folder: str | Path, *, run: int = 0, task: int | None = None) -> QTensor:
        """The Q-tensor that a run folder's checkpoint holds, for stlrq with its task modes.

        Args:
            folder: the run folder.
            run: which of the runs side by side, from 0.
            task: which task's tensor; for lrq, which has one for each.

        Raises:
            CheckpointError: if there is no checkpoint, or it cannot be read.
            ValueError: if the run has no Q-tensor, `run` or `task` do not fit it, or its family is not found.
        """
        folder = Path(folder)
        try:
            config = from_json(json.loads((folder / "config.json").read_bytes()))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"folder: expected a run folder, but {folder} has no config.json to read") from error
        algo = config.algo
        if algo not in LOW_RANK_ALGOS:
            raise ValueError(f"folder: expected a run of {', '.join(LOW_RANK_ALGOS)}, got one of {algo}")
        loaded = load_checkpoint(folder / "checkpoint", algo)
        if loaded is None:
            raise CheckpointError(f"folder: {folder} holds no checkpoint")
        factors = kept_factors(loaded[0])
        seeds, groups = factors[0].shape[:2]
        if not 0 <= run < seeds:
            raise ValueError(f"run: expected a number from 0 to {seeds - 1}, got {run}")
        if (task is None) != (algo != "lrq") or (task is not None and not 0 <= task < groups):
            raise ValueError(f"task: expected a number from 0 to {groups - 1} for lrq, else None, got {task}")
        parameters = sum(name.startswith("learner.task_places.") for name in loaded[0])
        num_tasks = parameters or int(algo == "stlrq")
        # Which of the others are of states, only the family knows.
        num_states = 1 if config.state_modes == "joint" else len(families.of(config).grid_low)
        ordered = [factor[run, task or 0] for factor in (*factors[num_tasks:], *factors[:num_tasks])]
        num_actions = len(factors) - num_tasks - num_states
        return cls.from_cp((None, ordered), num_state_modes=num_states, num_action_modes=num_actions)

    def extra_repr(self) -> str:
        """Sizes and rank, as `print` shows them."""
        return (
            f"state_sizes={self.state_sizes}, action_sizes={self.action_sizes}, "
            f"task_sizes={self.task_sizes}, rank={self.rank}"
        )

    def _factors(self, kind: str) -> list[Tensor]:
        states, actions = len(self.state_sizes), len(self.action_sizes)
        span = {
            "state": slice(0, states),
            "action": slice(states, states + actions),
            "task": slice(states + actions, None),
        }[kind]
        return list(self.factors)[span]

    def _rows(self, kind: str, index: Tensor | Sequence[Tensor]) -> list[Tensor]:
        indices = (index,) if isinstance(index, Tensor) else tuple(index)
        factors = self._factors(kind)
        if len(indices) != len(factors):
            raise ValueError(f"{kind}: expected {len(factors)} index tensors, one per mode, got {len(indices)}")
        return [_visited(kind, factor, place) for factor, place in zip(factors, indices, strict=True)]


def _visited(kind: str, factor: Tensor, place: Tensor) -> Tensor:
    """Rows of a factor at some places, by an embedding: indices of any integer type, and vmap, are right there.

    Raises:
        ValueError: if places are no numbers.
        IndexError: if there is no such row; on a GPU only an assertion says so.
    """
    if place.dtype == torch.bool or place.is_complex():
        raise ValueError(f"{kind}: expected whole numbers, or places between rows, got {place.dtype}")
    place = place if place.is_floating_point() else place.long()
    try:
        return cp.interpolate(lambda index: embedding(index, factor), place, len(factor))
    except IndexError as error:
        came = f"{place.min().item()} to {place.max().item()}"
        raise IndexError(f"{kind}: expected indices from 0 to {len(factor) - 1}, got {came}") from error
