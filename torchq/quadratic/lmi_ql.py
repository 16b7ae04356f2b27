"""LMI-QL: quadratic Q-learning by a convex relaxation and a line search on its penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.errors import SolverError
from torchq.quadratic import forms, sdp
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Sample

_DECADES = range(-5, 3)
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
    """

    gamma: float
    penalty: str = "trace"

    def fit(self, sample: Sample, bound: Tensor) -> Fit:
        """Fit to samples, with B of `sdp.solve_relaxation`; falls back to the baseline if every solve fails."""
        p, m = sample.sizes()
        G, y = forms.residual_system(sample, self.gamma)
        weight = torch.eye(p, dtype=G.dtype)
        if self.penalty == "data":
            weight = sample.next_phi.mT @ sample.next_phi / len(y)
        lower_bound, found, reasons = math.nan, {}, []

        def cost(exponent: float) -> float:
            try:
                solution = sdp.solve_relaxation(G, y, bound, 10.0**exponent * weight, p, m)
            except SolverError as error:
                reasons.append(str(error))
                return math.inf
            found[exponent] = solution.q, forms.bellman_cost(sample, self.gamma, solution.q).item()
            return found[exponent][1]

        with suppress(SolverError):
            lower_bound = sdp.solve_relaxation(G, y, bound, 0.0 * weight, p, m).objective
        costs = {float(exponent): cost(float(exponent)) for exponent in _DECADES}
        best = max(exponent for exponent, value in costs.items() if value <= min(costs.values()) + _TIE)
        _golden_section(cost, best - 1.0, best + 1.0)
        if not found:
            q = forms.baseline(p, m)
            cost_of_baseline = forms.bellman_cost(sample, self.gamma, q).item()
            failure = explain(reasons[0], sample, self.gamma)
            return Fit(q, cost_of_baseline, lower_bound, math.nan, failure)
        least = min(value for _, value in found.values())
        exponent = max(e for e, (_, value) in found.items() if value <= least + _TIE)
        q, value = found[exponent]
        return Fit(q, value, lower_bound, 10.0**exponent)


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> None:
    """Evaluate six points that narrow [low, high] around a minimum (Kiefer 1953)."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    left_cost, right_cost = cost(left), cost(right)
    for _ in range(_GOLDEN_STEPS - 2):
        if left_cost < right_cost - _TIE:
            high, right, right_cost = right, left, left_cost
            left = high - ratio * (high - low)
            left_cost = cost(left)
        else:
            low, left, left_cost = left, right, right_cost
            right = low + ratio * (high - low)
            right_cost = cost(right)
