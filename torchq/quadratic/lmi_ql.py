"""LMI-QL: quadratic Q-learning by one semidefinite program and a line search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.quadratic import forms, solvers
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Quadratic, Sample, listed

PENALTIES = ("trace", "data")
DECADES = range(-5, 3)
_GOLDEN_STEPS = 6
_TIE = 1e-6


@dataclass(frozen=True)
class LMIQL:
    """Minimise mean |δ| + λ tr(MW) over the relaxation, and λ by the true cost.         [LMI, alg. 1, eqs. (15)–(18)]

    λ runs through the decades 1e−5 … 1e2, then through six golden-section points around the best; ties of the cost
    within 1e−6 go to the largest λ. The solve at λ = 0 gives the lower bound.
    Differs from the paper: it leaves the line search open.

    Args:
        gamma: discount γ.
        penalty: M: "trace" is the identity, the paper's nuclear norm; "data" the mean of φ⁺φ⁺ᵀ.
        solver: one of `solvers.SOLVERS`.
    """

    gamma: float
    penalty: str = "trace"
    solver: str = "torchq"

    def weight(self, sample: Sample) -> Tensor:
        """M, (*batch, p, p)."""
        p = sample.phi.shape[-1]
        if self.penalty == "data":
            return (sample.next_phi.unsqueeze(-1) * sample.next_phi.unsqueeze(-2)).mean(-3)
        return torch.eye(p, dtype=sample.phi.dtype, device=sample.phi.device).expand(*sample.phi.shape[:-2], p, p)

    def fit(self, sample: Sample, bound: Tensor) -> Fit:
        """Fit to samples, with B of `programs.relaxation`; falls back to the baseline if every solve fails."""
        sample.sizes()
        return self.fit_batch(Sample(*(field.unsqueeze(0) for field in sample)), bound)[0]

    def fit_batch(self, sample: Sample, bound: Tensor) -> list[Fit]:
        """Fit to each of several data sets of one size, fields (batch, samples, …), all programs of a step together."""
        return self.searched(sample, bound).fits(*sample.sizes())

    def searched(self, sample: Sample, bound: Tensor) -> Search:
        """The line search of `fit_batch`, done."""
        search = Search(self, sample, bound)
        search.at(torch.tensor([-math.inf, *DECADES], dtype=torch.float64).expand(len(sample.phi), -1))
        best = search.best(search.exponents[:, 1:], search.costs[:, 1:])
        search.golden_section(best - 1.0, best + 1.0)
        return search


class Search:
    """A line search over λ for several data sets at once: what was tried and found.

    Args:
        learner: its settings.
        sample: fields (batch, samples, …).
        bound: B, (p, p) or (batch, p, p).
    """

    def __init__(self, learner: LMIQL, sample: Sample, bound: Tensor) -> None:
        self.learner, self.sample = learner, sample
        p = sample.phi.shape[-1]
        self.bound = bound.expand(len(sample.phi), p, p).unsqueeze(1)
        self.G, self.y = (part.unsqueeze(1) for part in forms.residual_system(sample, learner.gamma))
        self.weight = learner.weight(sample)
        self.exponents = self.costs = self.objectives = sample.phi.new_zeros(len(sample.phi), 0)
        self.tried: list[Quadratic] = []
        self.reasons: list[list[str]] = []

    def at(self, exponents: Tensor) -> Tensor:
        """Try λ = 10^exponents, (batch, tries); the true costs, infinite where there is no solution."""
        penalty = (10.0**exponents)[..., None, None] * self.weight.unsqueeze(1)
        p, m = self.sample.sizes()
        found = solvers.relaxations(self.G, self.y, self.bound, penalty, p, m, self.learner.solver)
        wide = Sample(*(field.unsqueeze(1) for field in self.sample))
        # Where there is no solution the baseline stands in: R⁻¹ would not exist.
        solved = found.solved
        q = Quadratic(*(
            torch.where(solved[..., None, None], part, other)
            for part, other in zip(found.q, forms.baseline(p, m), strict=True)
        ))  # fmt: skip
        costs = torch.where(solved, forms.bellman_cost(wide, self.learner.gamma, q), math.inf)
        self.exponents = torch.cat((self.exponents, exponents), 1)
        self.costs = torch.cat((self.costs, costs), 1)
        self.objectives = torch.cat((self.objectives, found.objective), 1)
        self.tried.append(q)
        tries = exponents.shape[1]
        self.reasons += [found.failures[i : i + tries] for i in range(0, len(found.failures), tries)]
        return costs

    @staticmethod
    def best(exponents: Tensor, costs: Tensor) -> Tensor:
        """The largest exponent whose cost is the least but for a tie, (batch,)."""
        least = costs.amin(1, keepdim=True)
        return torch.where(costs <= least + _TIE, exponents, -math.inf).amax(1)

    def golden_section(self, low: Tensor, high: Tensor) -> None:
        """Try six points that narrow [low, high], (batch,) each, around a minimum (Kiefer 1953)."""
        ratio = (math.sqrt(5.0) - 1.0) / 2.0
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        left_cost, right_cost = self.at(torch.stack((left, right), 1)).unbind(1)
        for _ in range(_GOLDEN_STEPS - 2):
            leftward = left_cost < right_cost - _TIE
            low, high = torch.where(leftward, low, left), torch.where(leftward, right, high)
            new = torch.where(leftward, high - ratio * (high - low), low + ratio * (high - low))
            cost = self.at(new.unsqueeze(1)).squeeze(1)
            left, right = torch.where(leftward, new, right), torch.where(leftward, left, new)
            left_cost, right_cost = torch.where(leftward, cost, right_cost), torch.where(leftward, left_cost, cost)

    @property
    def chosen(self) -> Tensor:
        """The exponent of the best λ of each data set, (batch,)."""
        return self.best(self.exponents[:, 1:], self.costs[:, 1:])

    def fits(self, p: int, m: int) -> list[Fit]:
        """The best of each data set; λ = 0 gives the bound alone."""
        q = Quadratic(*(torch.cat(parts, 1) for parts in zip(*self.tried, strict=True)))
        chosen = self.chosen
        where = (self.exponents == chosen.unsqueeze(1)).int().argmax(1)
        rows = torch.arange(len(where))
        found = []
        for index, one in enumerate(listed(Quadratic(*(part[rows, where] for part in q)))):
            cost, bound = self.costs[index, where[index]].item(), self.objectives[index, 0].item()
            if math.isfinite(cost):
                found.append(Fit(one, cost, bound, 10.0 ** chosen[index].item()))
                continue
            own = Sample(*(field[index] for field in self.sample))
            base = forms.baseline(p, m)
            failure = explain(self.reasons[index][1], own, self.learner.gamma)
            found.append(Fit(base, forms.bellman_cost(own, self.learner.gamma, base).item(), bound, math.nan, failure))
        return found
