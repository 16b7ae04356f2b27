"""Least squares for the rows of new tasks, with all other factors as they are: Q is linear in a task's row.

    Q(s, a, m) = φ(s, a)ᵀ T[m, :],   φ(s, a) = ∏_d φ_d(s_d)ᵀ F_d ∘ A[a, :]

Policy iteration by the fixed point of the projected Bellman equation, LSPI (Lagoudakis and Parr, "Least-squares policy
iteration", JMLR 2003), on features that other tasks have taught and with the rows of these tasks as a prior. After each
episode the rows are fitted to all samples. Where steps are not random, what to start from is played first, one row an
episode, and the row whose episode went best is kept; where they are, an episode says little, and the last fit is taken.

Differs from the papers: [TLR] does not speak of new tasks, and LSPI knows no prior; there is one here, C the covariance
of known rows and w₀ the row to start from,

    λ (w − w₀)ᵀ C⁻¹ (w − w₀),   λ = 10, 100, 1000 in turns, or 300 where steps are random.

What both rules give, and what was tried in their place, is in benchmarks/results/adaptation.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchq.lowrank import cp, replay
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.transitions import Transition

_PULLS, PULL_OF_NOISE = (10.0, 100.0, 1000.0), 300.0
"""λ in turns, and where steps are random."""
_ITERATIONS, _OWN_SHARE = 10, 0.01


class RowFit(NamedTuple):
    """What a learner's state remembers of fits to the rows of new tasks."""

    starts: Float[Tensor, "seeds starts tasks rank"]
    """Rows to begin with: the first, and others to play."""
    precision: Float[Tensor, "seeds rank rank"]
    """C⁻¹ of the rows of known tasks."""
    best: Float[Tensor, "seeds tasks rank"]
    """The rows that are tested and kept."""
    best_return: Float[Tensor, "seeds tasks"]
    """Of the episode that these have played; the lowest number before."""


def num_starts(noisy: bool) -> int:
    """Rows to begin with: where steps are random, one, else as many to play first."""
    return 1 if noisy else 5


def begin(starts: Float[Tensor, "seeds starts tasks rank"], known: Float[Tensor, "seeds known rank"]) -> RowFit:
    """Before the first episode.

    Args:
        starts: rows to begin with.
        known: rows of known tasks, whose covariance C is the prior's, with a hundredth of its mean variance added.
    """
    centred = known.double() - known.double().mean(1, keepdim=True)
    covariance = centred.mT @ centred / known.shape[1]
    own = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * _OWN_SHARE + torch.finfo(torch.float32).tiny
    precision = torch.linalg.inv(covariance + own * torch.eye(known.shape[-1], device=known.device))
    lowest = torch.finfo(torch.float64).min  # Not −∞, which a run would stop at.
    nothing = torch.full(starts[:, 0].shape[:-1], lowest, dtype=torch.float64, device=starts.device)
    return RowFit(starts.clone(), precision, starts[:, 0].clone(), nothing)


def refit(
    learner: LowRankQ,
    state: LowRankState,
    memory: Float[Tensor, "seeds tasks slots width"],
    episodes: int,
    per_episode: int,
    capacity: int,
    like: Transition,
    noisy: bool,
) -> LowRankState:
    """The state after an episode: rows to play next, and rows to keep.

    Args:
        learner: with a row per task.
        state: that has played.
        memory: of stored transitions, see `replay`.
        episodes: played so far.
        per_episode: transitions of each task in one.
        capacity: the latest transitions of each task that are fitted to.
        like: a transition, whose places are whole or fractional as those stored.
        noisy: whether steps are random.
    """
    fit, played = state.fit, state.factors[0][:, 0]
    total = episodes * per_episode
    slots = torch.arange(total - min(total, capacity), total, device=memory.device) % memory.shape[2]
    seen = replay.recall(memory, slots.expand(*memory.shape[:2], -1), like)
    if noisy:
        rows = _fitted(learner, state, seen, fit.starts[:, 0], PULL_OF_NOISE)
        fit = fit._replace(best=rows)
    else:
        returns = mean_return(seen.reward[:, :, -per_episode:], seen.discount[:, :, -per_episode:])
        better = returns > fit.best_return
        best = torch.where(better.unsqueeze(-1), played, fit.best)
        fit = fit._replace(best=best, best_return=torch.where(better, returns, fit.best_return))
        number = episodes - fit.starts.shape[1]
        if number < 0:
            rows = fit.starts[:, episodes]
        else:
            rows = _fitted(learner, state, seen, best, _PULLS[number % len(_PULLS)])
    return state._replace(factors=(rows.unsqueeze(1).clone(), *state.factors[1:]), fit=fit)


def mean_return(
    reward: Float[Tensor, "*batch samples"], discount: Float[Tensor, "*batch samples"]
) -> Float[Tensor, "*batch"]:
    """Σ r / (1 + terminations): of an episode's length of steps, what an episode brought where some ended early."""
    return reward.double().sum(-1) / (1 + (discount == 0).sum(-1))


def _fitted(learner: LowRankQ, state: LowRankState, seen: Transition, centre: Tensor, pull: float) -> Tensor:
    """Rows of all tasks by their transitions, (seeds, tasks, rank)."""
    shared = state.factors[learner.num_task_modes :]
    here, landed = (features(shared, index).double() for index in (seen.state_index, seen.next_state_index))
    actions = cp.khatri_rao(shared[len(seen.state_index) :]).double()  # (seeds, 1, actions, rank)
    numbers = (seen.action, seen.reward.double(), seen.discount.double())
    return lstd(here, landed, actions, *numbers, centre.double(), pull * state.fit.precision[:, None]).to(centre)


def features(factors: tuple[Tensor, ...], index: tuple[Tensor, ...]) -> Float[Tensor, "seeds tasks batch rank"]:
    """∏_d φ_d(s_d)ᵀ F_d, of the state modes, which come first among the factors."""
    return cp.product([cp.rows(factor, place) for factor, place in zip(factors, index, strict=False)])


def lstd(
    here: Float[Tensor, "*batch samples rank"],
    landed: Float[Tensor, "*batch samples rank"],
    actions: Float[Tensor, "*#batch actions rank"],
    action: Int[Tensor, "*batch samples"],
    reward: Float[Tensor, "*batch samples"],
    discount: Float[Tensor, "*batch samples"],
    centre: Float[Tensor, "*batch rank"],
    precision: Float[Tensor, "*#batch rank rank"],
) -> Float[Tensor, "*batch rank"]:
    """The row whose greedy policy solves its own projected Bellman equation on the samples.

        (Φᵀ(Φ − γΦ′) + Λ) w = Φᵀr + Λw₀,   Φ′ the features of s′ with the best action of the w before

    LSTDQ in the policy iteration of [Lagoudakis and Parr 2003], with a pull to w₀.

    Args:
        here: state features of s.
        landed: state features of s′.
        actions: rows of the action mode.
        action: a.
        reward: r.
        discount: γ, or 0 where the step terminated.
        centre: w₀.
        precision: Λ, positive definite.
    """
    phi, pull = here * _taken(actions, action), precision.expand(*centre.shape, centre.shape[-1])
    right = phi.mT @ reward.unsqueeze(-1) + pull @ centre.unsqueeze(-1)
    row = centre
    for _ in range(_ITERATIONS):
        best = ((landed * row.unsqueeze(-2)) @ actions.mT).argmax(-1)
        following = discount.unsqueeze(-1) * landed * _taken(actions, best)
        row = torch.linalg.solve(phi.mT @ (phi - following) + pull, right).squeeze(-1)
    return row


def _taken(
    actions: Float[Tensor, "*#batch actions rank"], action: Int[Tensor, "*batch samples"]
) -> Float[Tensor, "*batch samples rank"]:
    """Rows of the actions taken."""
    table = actions.expand(*action.shape[:-1], *actions.shape[-2:])
    return table.gather(-2, action.unsqueeze(-1).expand(*action.shape, actions.shape[-1]))
