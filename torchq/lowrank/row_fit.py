"""Least squares for the rows of new tasks, with all other factors as they are: Q is linear in a task's row.

    Q(s, a, m) = φ(s, a)ᵀ T[m, :],   φ(s, a) = ∏_d φ_d(s_d)ᵀ F_d ∘ A[a, :]

Policy iteration with the fixed point of the projected Bellman equation, as LSPI has it (Lagoudakis and Parr, "Least-
squares policy iteration", JMLR 2003), on features that other tasks have taught, and with a pull to the row before.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq.lowrank import cp, replay
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.transitions import Transition

PULL = 1e-3
"""λ: how much the row before counts, in mean squared features a sample."""
ITERATIONS = 20


def features(
    learner: LowRankQ, state: LowRankState, index: tuple[Tensor, ...]
) -> Float[Tensor, "seeds tasks batch rank"]:
    """∏_d φ_d(s_d)ᵀ F_d, of the state modes alone."""
    first, last = learner.num_task_modes, len(state.factors) - len(learner.action_sizes)
    rows = [cp.rows(factor, place) for factor, place in zip(state.factors[first:last], index, strict=True)]
    return cp.product(rows)


def refit(
    learner: LowRankQ,
    state: LowRankState,
    memory: Float[Tensor, "seeds tasks slots width"],
    count: int,
    like: Transition,
) -> LowRankState:
    """The state with the rows of all tasks fitted to their stored transitions.

    Args:
        learner: with a row per task.
        state: before.
        memory: of stored transitions, see `replay`.
        count: how many of each task have been stored so far.
        like: a transition, whose places are whole or fractional as those stored.
    """
    slots = torch.arange(min(count, memory.shape[2]), device=memory.device)
    all_of_them = replay.recall(memory, slots.expand(*memory.shape[:2], -1), like)
    here, landed = (
        features(learner, state, index).double() for index in (all_of_them.state_index, all_of_them.next_state_index)
    )
    numbers = (all_of_them.reward.double(), all_of_them.discount.double())
    table = state.factors[0]  # (seeds, 1, tasks, rank)
    actions = cp.khatri_rao(state.factors[-len(learner.action_sizes) :]).double()  # (seeds, 1, actions, rank)
    rows = fit(here, landed, actions, all_of_them.action, *numbers, table[:, 0].double())
    return learner.start(state, (rows.unsqueeze(1).to(table), *state.factors[1:]))


def fit(
    here: Float[Tensor, "*batch samples rank"],
    landed: Float[Tensor, "*batch samples rank"],
    actions: Float[Tensor, "*#batch actions rank"],
    action: Int[Tensor, "*batch samples"],
    reward: Float[Tensor, "*batch samples"],
    discount: Float[Tensor, "*batch samples"],
    start: Float[Tensor, "*batch rank"],
    pull: float = PULL,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "*batch rank"]:
    """The row whose greedy policy solves its own projected Bellman equation on the samples.

        (Φᵀ(Φ − γΦ′) + λD) w = Φᵀr + λD w₀,   Φ′ the features of s′ with the best action of the w before

    D is the diagonal of ΦᵀΦ.                                                 [Lagoudakis and Parr 2003, fig. 5]

    Args:
        here: state features of s.
        landed: state features of s′.
        actions: rows of the action mode.
        action: a.
        reward: r.
        discount: γ, or 0 where the step terminated.
        start: w₀.
        pull: λ ≥ 0.
        iterations: of the policy.
    """
    phi = here * _taken(actions, action)
    gram = phi.mT @ phi
    squares = gram.diagonal(dim1=-2, dim2=-1)
    scale = pull * squares + 1e-9 * squares.mean(-1, keepdim=True) + torch.finfo(phi.dtype).tiny
    right = (phi.mT @ reward.unsqueeze(-1)).squeeze(-1) + scale * start
    row = start
    for _ in range(iterations):
        best = ((landed * row.unsqueeze(-2)) @ actions.mT).argmax(-1)
        following = discount.unsqueeze(-1) * landed * _taken(actions, best)
        left = gram - phi.mT @ following + torch.diag_embed(scale)
        row = torch.linalg.solve(left, right)
    return row


def _taken(
    actions: Float[Tensor, "*#batch actions rank"], action: Int[Tensor, "*batch samples"]
) -> Float[Tensor, "*batch samples rank"]:
    """Rows of the actions taken."""
    table = actions.expand(*action.shape[:-1], *actions.shape[-2:])
    return table.gather(-2, action.unsqueeze(-1).expand(*action.shape, actions.shape[-1]))
