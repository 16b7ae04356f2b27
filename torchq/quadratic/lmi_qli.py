"""LMI-QLi: quadratic Q-learning by a sequence of semidefinite programs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.quadratic import forms, solvers
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Quadratic, Sample, listed


@dataclass(frozen=True)
class LMIQLi:
    """ℓ1 fitted-Q iteration under linear matrix inequalities.                          [LMI, alg. 2, eq. (14)]

    Each iteration holds the value of the next state at the last solution, starting from P̄ = 0, S̄ = 0, R̄ = I.

    Args:
        gamma: discount γ.
        num_iterations: programs solved.
        solver: one of `solvers.SOLVERS`.
        hold: "all" of P̄, S̄ and R̄, or the "coupling" S̄ and R̄ alone, which convexity needs: P is free.
    """

    gamma: float
    num_iterations: int = 20
    solver: str = "torchq"
    hold: str = "all"

    def fit(self, sample: Sample, bound: Tensor, start: Quadratic | None = None) -> Fit:
        """Fit to samples, with B of `programs.fitted`; a failed solve keeps the last good iterate.

        Raises:
            ValueError: if the R to start from is not positive.
        """
        sample.sizes()
        return self.fit_batch(Sample(*(field.unsqueeze(0) for field in sample)), bound, start)[0]

    def fit_batch(self, sample: Sample, bound: Tensor, start: Quadratic | None = None) -> list[Fit]:
        """Fit to each of several data sets of one size, fields (batch, samples, …), all programs of a step together.

        Args:
            sample: the data sets.
            bound: B, (p, p) or (batch, p, p).
            start: with or without the batch's dimension; None: the baseline.

        Raises:
            ValueError: if an R to start from is not positive.
        """
        p, m = sample.sizes()
        batch = len(sample.phi)
        q = forms.baseline(p, m) if start is None else start
        if torch.linalg.eigvalsh(q.R).min() <= 0:
            raise ValueError(f"start: expected R with positive eigenvalues, got {q.R.tolist()}")
        q = Quadratic(*(part.expand(batch, *part.shape[-2:]) for part in q))
        failures = [""] * batch
        for _ in range(self.num_iterations):
            G, y = forms.fitted_system(sample, self.gamma, q, hold=self.hold)
            found = solvers.fitted(G, y, bound, p, m, self.solver)
            failures = [old or new for old, new in zip(failures, found.failures, strict=True)]
            if all(failures):
                break
            going = torch.tensor([not failure for failure in failures])[:, None, None]
            q = Quadratic(*(torch.where(going, new, old) for new, old in zip(found.q, q, strict=True)))
        costs = forms.bellman_cost(sample, self.gamma, q).tolist()
        return [
            Fit(one, cost, math.nan, math.nan, failure and self._explained(failure, sample, index))
            for index, (one, cost, failure) in enumerate(zip(listed(q), costs, failures, strict=True))
        ]

    def _explained(self, failure: str, sample: Sample, index: int) -> str:
        return explain(failure, Sample(*(field[index] for field in sample)), self.gamma)
