"""The semidefinite programs of [LMI] as differentiable PyTorch layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchq import quadratic, sdp
from torchq.quadratic import Sample


class LMIQLayer(nn.Module):
    """LMI-QL's penalised relaxation as a layer, with gradients into every input.        [LMI, eqs. (15), (16), (18)]

        (φ, ũ, r, φ⁺, V_b, V_b⁺, λ) ↦ (P, S, R, W) = argmin mean |Gz + y| + λ tr(W)

    Built on cvxpylayers (Agrawal et al., *Differentiable Convex Optimization Layers*, NeurIPS 2019) with diffcp and SCS
    at tolerance 1e−9 and the dense adjoint. Not with Clarabel: diffcp returns wrong duals and gradients with it for PSD
    cones of size 4 and more, and the default iterative adjoint loses digits on large problems.

    Args:
        num_samples: N, transitions per instance.
        num_features: p.
        num_controls: m.
        gamma: discount γ.
        eps: tolerance of the solver, absolute and relative.
    """

    def __init__(
        self, num_samples: int, num_features: int, num_controls: int, gamma: float, *, eps: float = 1e-9
    ) -> None:
        super().__init__()
        self.gamma, self.eps = gamma, eps
        self.num_features, self.num_controls = num_features, num_controls
        self._layer = sdp.relaxation_layer(num_samples, num_features, num_controls)

    def forward(
        self,
        phi: Tensor,
        deviation: Tensor,
        reward: Tensor,
        next_phi: Tensor,
        value: Tensor,
        next_value: Tensor,
        penalty_weight: Tensor,
        bound: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Solve one instance, or a batch of them along leading dimensions.

        Args:
            phi: φ(x), (*batch, samples, p), float64 as all inputs.
            deviation: ũ, (*batch, samples, m).
            reward: r, (*batch, samples).
            next_phi: φ(x⁺), (*batch, samples, p).
            value: V_b(x), (*batch, samples).
            next_value: V_b(x⁺), (*batch, samples).
            penalty_weight: λ, (*batch).
            bound: B of `sdp.solve_relaxation`, (*batch, p, p); None is zero (`dev`).

        Returns:
            P (*batch, p, p), S (*batch, p, m), R (*batch, m, m) and W (*batch, p, p).
        """
        sample = Sample(phi, deviation, reward, next_phi, value, next_value)
        G, y = quadratic.residual_system(sample, self.gamma)
        identity = torch.eye(self.num_features, dtype=G.dtype, device=G.device)
        penalty = penalty_weight[..., None, None] * identity
        bound = torch.zeros_like(penalty) if bound is None else bound
        options: dict[str, Any] = {"eps": self.eps, "max_iters": 100_000}
        if torch.is_grad_enabled() and any(x.requires_grad for x in (G, y, bound, penalty)):
            options["mode"] = "dense"
        P, S, R, W = self._layer(G, y, bound, penalty, solver_args=options)
        return P, S, R, W
