"""LMI-QLi: quadratic Q-learning by a sequence of semidefinite programs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchq.errors import SolverError
from torchq.quadratic import forms, sdp
from torchq.quadratic.excitation import explain
from torchq.quadratic.forms import Fit, Quadratic, Sample


@dataclass(frozen=True)
class LMIQLi:
    """ℓ1 fitted-Q iteration under linear matrix inequalities.                          [LMI, alg. 2, eq. (14)]

    Each iteration holds the value of the next state at the last solution, starting from P̄ = 0, S̄ = 0, R̄ = I.

    Args:
        gamma: discount γ.
        num_iterations: programs solved.
    """

    gamma: float
    num_iterations: int = 20

    def fit(self, sample: Sample, bound: Tensor, start: Quadratic | None = None) -> Fit:
        """Fit to samples, with B of `sdp.solve_fitted`; a failed solve keeps the last good iterate.

        Raises:
            ValueError: if the R to start from is not positive.
        """
        p, m = sample.sizes()
        q = forms.baseline(p, m) if start is None else start
        if torch.linalg.eigvalsh(q.R).min() <= 0:
            raise ValueError(f"start: expected R with positive eigenvalues, got {q.R.tolist()}")
        failure = ""
        for _ in range(self.num_iterations):
            try:
                G, y = forms.fitted_system(sample, self.gamma, q)
                q = sdp.solve_fitted(G, y, bound, p, m).q
            except SolverError as error:
                failure = explain(str(error), sample, self.gamma)
                break
        return Fit(q, forms.bellman_cost(sample, self.gamma, q).item(), math.nan, math.nan, failure)
