"""LSPI: least-squares policy iteration on the same quadratic features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.quadratic import forms
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Sample


@dataclass(frozen=True)
class LSPI:
    """LSTD-Q and greedy improvement in turns.                      (Lagoudakis and Parr 2003; [LMI, §IV-B, eq. (21)])

        Ψᵀ(Ψ − γΨ⁺) z = Ψᵀ(r + γV_b⁺ − V_b),   Ψ⁺ at the greedy control of the last z, the baseline's at first

    solved by minimum-norm least squares. Nothing keeps R positive.

    Args:
        gamma: discount γ.
        num_iterations: rounds of evaluation and improvement.
    """

    gamma: float
    num_iterations: int = 20

    def fit(self, sample: Sample, bound: Tensor) -> Fit:
        """Fit to samples; `bound` is not used. A singular R keeps the last good iterate."""
        p, m = sample.sizes()
        q = forms.baseline(p, m)
        features = forms.action_features(sample.phi, sample.deviation)
        target = sample.reward + self.gamma * sample.next_value - sample.value
        finite = bool(torch.isfinite(features).all() and torch.isfinite(target).all())
        failure = "" if finite else explain("least squares met numbers that are not finite", sample, self.gamma)
        for _ in range(self.num_iterations if finite else 0):
            deviation = sample.next_phi @ forms.greedy_gain(q).mT
            following = forms.action_features(sample.next_phi, deviation)
            system = features.mT @ (features - self.gamma * following)
            solution = torch.linalg.lstsq(system, (features.mT @ target).unsqueeze(-1), driver="gelsd").solution
            candidate = forms.unpack(solution.squeeze(-1), p, m)
            if not torch.isfinite(solution).all() or torch.linalg.matrix_rank(candidate.R) < m:
                failure = explain(f"R became singular: {candidate.R.tolist()}", sample, self.gamma)
                break
            q = candidate
        return Fit(q, forms.bellman_cost(sample, self.gamma, q).item(), math.nan, math.nan, failure)
