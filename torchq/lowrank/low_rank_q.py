"""S-TLR-Q and its two baselines: Q-learning on the factors of a low-rank tensor.

`stlrq` keeps one tensor with a task mode, `lrq` a tensor per task, `clrq` one tensor for all tasks.   [TLR, §III–IV]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from torchq.lowrank import cp, optim, snapshots, task_modes, td
from torchq.lowrank.guide import aged, guided
from torchq.lowrank.low_rank_state import LowRankState, constant, normal_factor
from torchq.lowrank.qtensor import QTensor
from torchq.lowrank.shard_sums import ShardSums
from torchq.lowrank.transitions import Transition

Sharing = Literal["stlrq", "lrq", "clrq"]


@dataclass(frozen=True)
class LowRankQ:
    """Semi-gradient Q-learning on the factors of a CP tensor.                        [TLR, eqs. (6), (9), alg. 1]

        δ = r + γ maxₐ Q̂(m, s′, a) − Q̂(m, s, a),   F[i, :] ← F[i, :] + η λ_m δ · ∏ (other visited rows)

    minimising Σ_m λ_m Σₙ ½δ² over the batch; transitions of one batch that visit the same row add up.
    Differs from the paper: the published curves come from a program that minimises Σ δ² (`loss_scale=2`), takes
    Adamax steps, and updates one factor after the other with the error recomputed in between (`update_order="block"`).

    Args:
        sharing: what the tasks have in common, by the name of the method.
        state_sizes: rows per state mode.
        action_sizes: rows per action mode.
        num_tasks: M.
        rank: K.
        optimizer: "sgd", "adam" or "adamax".
        update_order: "joint" moves all factors by one error, "block" one after the other (Gauss–Seidel): task, states,
            actions.
        normalised: divide each step by the squared length of its direction (`td.normalised_semi_gradient`).
        num_sweeps: times that each batch is applied.
        loss_scale: factor of the loss ½δ².
        task_weights: λ_m, one per task; () weighs all by 1.
        init_scale: standard deviation of the initial factors.
        task_sizes: rows of each task mode, where a task's row is a product of rows of its parameters (`task_modes`);
            (): a row per task.
        margin: M by which leaving a guide must pay at first, in units of reward (`guide`); 0: there is no guide.
        margin_updates: updates after which it need not, in what behaves and in what is tested.
        only_tasks: whether the task modes alone learn, all else staying as it is.
        target_rate: τ in (0, 1]: targets are those of a target tensor Q̄ = [[F̄]] whose factors follow,
            F̄ ← F̄ + τ (F − F̄) after each sweep (Polyak steps; Lillicrap et al. 2016, alg. 1, for networks). The greedy
            policy that is tested is that of Q̄. None: there is none. Differs from the paper, which has none.
        sums: how gradients add up where other processes hold other tasks of the run; None: this one has all.

    Raises:
        ValueError: if an argument is none of these.
    """

    sharing: Sharing
    state_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    num_tasks: int
    rank: int
    optimizer: str = "adamax"
    update_order: Literal["joint", "block"] = "joint"
    normalised: bool = False
    num_sweeps: int = 1
    loss_scale: float = 1.0
    task_weights: tuple[float, ...] = ()
    init_scale: float = 0.1
    target_rate: float | None = None
    task_sizes: tuple[int, ...] = ()
    only_tasks: bool = False
    margin: float = 0.0
    margin_updates: tuple[float, float] = (1.0, 1.0)
    sums: ShardSums | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.num_tasks < 1:
            raise ValueError(f"rank, num_tasks: expected at least 1, got {self.rank} and {self.num_tasks}")
        known = {"sharing": get_args(Sharing), "optimizer": optim.OPTIMIZERS, "update_order": ("joint", "block")}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name}: expected one of {', '.join(names)}, got {getattr(self, name)!r}")
        if not self.state_sizes or not self.action_sizes or min(*self.state_sizes, *self.action_sizes) < 1:
            raise ValueError(
                f"state_sizes, action_sizes: expected sizes of at least 1, got {self.state_sizes}, {self.action_sizes}"
            )
        if self.num_sweeps < 1:
            raise ValueError(f"num_sweeps: expected at least 1, got {self.num_sweeps}")
        if self.target_rate is not None and not 0.0 < self.target_rate <= 1.0:
            raise ValueError(f"target_rate: expected a number above 0 and at most 1, got {self.target_rate}")
        if self.task_weights and len(self.task_weights) != self.num_tasks:
            raise ValueError(f"task_weights: expected {self.num_tasks} weights, got {len(self.task_weights)}")
        if (self.task_sizes or self.only_tasks) and not self.has_task_mode:
            raise ValueError(f"task_sizes, only_tasks: expected only with stlrq, got {self.sharing}")

    @property
    def couples_tasks(self) -> bool:
        """Whether a sample of one task changes the values of another."""
        return self.sharing != "lrq"

    @property
    def has_task_mode(self) -> bool:
        """Whether the first factors are those of tasks."""
        return self.sharing == "stlrq"

    @property
    def num_task_modes(self) -> int:
        """Factors of tasks: one per parameter, or one with a row per task."""
        return len(self.task_sizes) or int(self.has_task_mode)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each factor, in the order of the state."""
        tasks = self.task_sizes or ((self.num_tasks,) if self.has_task_mode else ())
        return (*tasks, *self.state_sizes, *self.action_sizes)

    @property
    def groups(self) -> int:
        """Copies of each factor: one per task for `lrq`, else one."""
        return self.num_tasks if self.sharing == "lrq" else 1

    def init(self, seeds: Tensor, *, device: torch.device | str, dtype: torch.dtype) -> LowRankState:
        """Normal factors of standard deviation `init_scale`, around 1 and of 0.3 for those of parameters."""
        seeds = seeds.to(device)
        factors = []
        for mode, size in enumerate(self.sizes):
            mean, deviation = (1.0, 0.3) if mode < len(self.task_sizes) else (0.0, self.init_scale)
            factors.append((mean + deviation * normal_factor(seeds, mode, self.groups, size, self.rank)).to(dtype))
        moments = tuple(optim.init_moments(factor, self.optimizer) for factor in factors)
        cold = LowRankState((), moments, torch.zeros((), dtype=torch.int64, device=device))
        return self.start(cold, tuple(factors))

    def start(self, state: LowRankState, factors: tuple[Tensor, ...]) -> LowRankState:
        """The state with other factors to start from, which the target tensor begins with too."""
        target = () if self.target_rate is None else tuple(factor.clone() for factor in factors)
        return state._replace(factors=factors, target=target)

    def policy(self, state: LowRankState) -> LowRankState:
        """What is tested and kept of a state: the target tensor, where there is one, with a row per task."""
        factors = state.target or state.factors
        if state.task_places:
            tasks, rest = factors[: self.num_task_modes], factors[self.num_task_modes :]
            factors = (task_modes.compose(tasks, state.task_places), *rest)
        if state.fit:
            factors = (state.fit.best.unsqueeze(1), *factors[1:])
        guide = aged(state.guide, state.num_updates, self.margin, self.margin_updates[1])
        return LowRankState(factors, (), state.num_updates, guide=guide)

    def action_values(self, state: LowRankState, index: tuple[Tensor, ...], task: Tensor | None = None) -> Tensor:
        """Q(s, ·) of all tasks in order, or of the one task named; (seeds, tasks, envs, actions).

        With a guide, the largest value is that of its policy.
        """
        values = self._action_values(state, state.factors, index, task)
        if not state.guide:
            return values
        plain = state._replace(task_places=())
        return guided(values, self._action_values(plain, state.guide.factors, index, task), state.guide.margin)

    def lookup(self, state: LowRankState, index: tuple[Tensor, ...], task: Tensor) -> Tensor:
        """Q(s, ·) of a flat batch by a `policy`; index and task are (batch,), the values (seeds, batch, actions)."""
        values = snapshots.lookup(state.factors, index, task, self.has_task_mode)
        if not state.guide:
            return values
        return guided(
            values, snapshots.lookup(state.guide.factors, index, task, self.has_task_mode), state.guide.margin
        )

    def to_qtensor(self, state: LowRankState, run: int = 0) -> QTensor:
        """The Q-tensor of one run, or its target tensor where there is one; modes in the order states, actions, task.

        Here the task factor is the first, there the last; for those of `lrq` see `QTensor.from_groups`.

        Args:
            state: factors of all runs.
            run: which of them, from 0.
        """
        factors = [factor[run] for factor in self.policy(state).factors]  # (groups, size, rank)
        return QTensor.from_groups(factors, len(self.state_sizes), len(self.action_sizes))

    def update(
        self, state: LowRankState, transition: Transition, learning_rate: Tensor, task: Tensor | None = None
    ) -> tuple[LowRankState, Tensor]:
        """State after one batch of transitions of all tasks, or of the one named; and δ before it.

        Raises:
            ValueError: if the batch is not shaped (seeds, tasks, envs), with the seeds of the state and these tasks.
        """
        transition.check(len(state.factors[0]), self.num_tasks if task is None else len(task), len(self.state_sizes))
        modes = tuple(range(self.num_task_modes if self.only_tasks else len(self.sizes)))
        blocks = [(mode,) for mode in modes] if self.update_order == "block" else [modes]
        first_error = None
        for _ in range(self.num_sweeps):
            state = state._replace(num_updates=state.num_updates + 1)
            for block in blocks:
                state, error = self._descend(state, transition, learning_rate, task, block)
                first_error = error if first_error is None else first_error
            state = self._follow(state)
        guide = aged(state.guide, state.num_updates, self.margin, self.margin_updates[0])
        assert first_error is not None
        return state._replace(guide=guide), first_error

    def at_tasks(self, policy: LowRankState, tasks: Tensor) -> LowRankState:
        """What the action values of some tasks, (tasks,), depend on, of a `policy`."""
        return snapshots.at_tasks(policy, tasks, self.has_task_mode)

    def join(self, states: list[LowRankState]) -> LowRankState:
        """A state whose action values of task m are those of states[m]."""
        return snapshots.joined(states, self.has_task_mode)

    def _follow(self, state: LowRankState) -> LowRankState:
        """One Polyak step of the target tensor."""
        rate, pairs = self.target_rate or 0.0, zip(state.target, state.factors, strict=False)
        return state._replace(target=tuple(mean + rate * (factor - mean) for mean, factor in pairs))

    def _descend(
        self,
        state: LowRankState,
        transition: Transition,
        learning_rate: Tensor,
        task: Tensor | None,
        modes: tuple[int, ...],
    ) -> tuple[LowRankState, Tensor]:
        """One optimiser step on some of the factors, all with the same error."""
        indices = (*transition.state_index, *cp.unravel(transition.action, self.action_sizes))
        rows = self._rows(state, state.factors, indices, task)
        next_values = self._action_values(state, state.target or state.factors, transition.next_state_index, task)
        error = td.td_error(cp.entry(rows), transition.reward, transition.discount, next_values)
        direction = td.normalised_semi_gradient if self.normalised else td.semi_gradient
        weighted = self._weigh(error, task)
        step = optim.OPTIMIZERS[self.optimizer]
        factors, moments = list(state.factors), list(state.moments)
        for mode in modes:
            gradient = self._accumulate(state, direction(weighted, cp.cofactor(rows, mode)), indices, task, mode)
            factors[mode], moments[mode] = step(
                factors[mode], gradient, moments[mode], state.num_updates, learning_rate
            )
        return state._replace(factors=tuple(factors), moments=tuple(moments)), error

    def _action_values(
        self, state: LowRankState, factors: tuple[Tensor, ...], index: tuple[Tensor, ...], task: Tensor | None
    ) -> Tensor:
        first_action = len(factors) - len(self.action_sizes)
        rows = self._rows(state, factors[:first_action], index, task)
        return cp.fibre(cp.product(rows), cp.khatri_rao(factors[first_action:]))

    def _rows(
        self, state: LowRankState, factors: tuple[Tensor, ...], indices: tuple[Tensor, ...], task: Tensor | None
    ) -> list[Tensor]:
        if task is not None and not self.couples_tasks:
            raise ValueError("task: expected None, because the tasks of lrq learn side by side, got a task number")
        count = len(state.task_places) or int(self.has_task_mode)
        rows = self._task_rows(state, factors[:count], task)
        return rows + [cp.rows(factor, index) for factor, index in zip(factors[count:], indices, strict=True)]

    def _task_rows(self, state: LowRankState, factors: tuple[Tensor, ...], task: Tensor | None) -> list[Tensor]:
        """Rows of all tasks in order, or of the one named, along each task mode, (seeds, tasks, 1, rank)."""
        if state.task_places:
            return task_modes.rows(factors, self._places(state, task))
        tables = [factor[:, 0] for factor in factors]
        return [(table if task is None else table.index_select(1, task)).unsqueeze(2) for table in tables]

    def _places(self, state: LowRankState, task: Tensor | None) -> list[Tensor]:
        """Where the tasks that learn lie along each task mode, or the one named."""
        if task is None:
            return [place[: self.num_tasks] for place in state.task_places]
        return [place.index_select(0, task) for place in state.task_places]

    def _accumulate(
        self, state: LowRankState, values: Tensor, indices: tuple[Tensor, ...], task: Tensor | None, mode: int
    ) -> Tensor:
        """Gradient of one whole factor from the gradients of the visited rows."""
        if mode >= self.num_task_modes:
            index = indices[mode - self.num_task_modes]
            return self._row_sums(values, index, mode)
        by_task = values.sum(2).unsqueeze(1)  # (seeds, 1, tasks, rank)
        if state.task_places:
            place = self._places(state, task)[mode].view(1, -1, 1)
            return self._row_sums(by_task.squeeze(1).unsqueeze(2), place, mode)
        if task is None:
            return by_task
        visited = torch.arange(self.num_tasks, device=values.device) == task
        return torch.where(visited.unsqueeze(-1), by_task, 0.0)

    def _row_sums(self, values: Tensor, index: Tensor, mode: int) -> Tensor:
        size = self.sizes[mode]
        return (
            self.sums.rows(values, index, size) if self.sums else cp.accumulate_rows(values, index, size, self.groups)
        )

    def _weigh(self, error: Tensor, task: Tensor | None) -> Tensor:
        if self.task_weights:
            weights = constant(self.task_weights, error.device, error.dtype)
            error = error * (weights if task is None else weights[task]).unsqueeze(-1)
        return error if self.loss_scale == 1.0 else self.loss_scale * error
