"""LSPI: least-squares policy iteration on the same quadratic features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.quadratic import forms
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Quadratic, Sample, listed


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
        sample.sizes()
        return self.fit_batch(Sample(*(field.unsqueeze(0) for field in sample)), bound)[0]

    def fit_batch(self, sample: Sample, bound: Tensor) -> list[Fit]:
        """Fit to each of several data sets of one size, fields (batch, samples, …)."""
        p, m = sample.sizes()
        batch = len(sample.phi)
        q = Quadratic(*(part.expand(batch, *part.shape) for part in forms.baseline(p, m)))
        features = forms.action_features(sample.phi, sample.deviation)
        target = sample.reward + self.gamma * sample.next_value - sample.value
        going = torch.isfinite(features).all((1, 2)) & torch.isfinite(target).all(1)
        failures = ["" if ok else "least squares met numbers that are not finite" for ok in going.tolist()]
        features, target = torch.nan_to_num(features), torch.nan_to_num(target)
        # Sums, not products of matrices, whose last digits would depend on the batch.
        right = (features * target.unsqueeze(-1)).sum(1)
        for _ in range(self.num_iterations):
            if not going.any():
                break
            deviation = forms.linear(sample.next_phi, forms.greedy_gain(q).unsqueeze(1))
            change = features - self.gamma * forms.action_features(sample.next_phi, deviation)
            system = torch.nan_to_num((features.unsqueeze(-1) * change.unsqueeze(-2)).sum(1))
            solution = torch.linalg.lstsq(system, right.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
            candidate = forms.unpack(solution, p, m)
            regular = torch.isfinite(solution).all(1)
            regular = regular & (torch.linalg.matrix_rank(torch.nan_to_num(candidate.R)) == m)
            for index in (going & ~regular).nonzero().squeeze(-1).tolist():
                failures[index] = f"R became singular: {candidate.R[index].tolist()}"
            going = going & regular
            mask = going[:, None, None]
            q = Quadratic(*(torch.where(mask, new, old) for new, old in zip(candidate, q, strict=True)))
        costs = forms.bellman_cost(sample, self.gamma, q).tolist()
        return [
            Fit(one, cost, math.nan, math.nan, failure and explain(failure, self._one(sample, index), self.gamma))
            for index, (one, cost, failure) in enumerate(zip(listed(q), costs, failures, strict=True))
        ]

    @staticmethod
    def _one(sample: Sample, index: int) -> Sample:
        return Sample(*(field[index] for field in sample))
