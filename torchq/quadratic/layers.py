"""The semidefinite programs of [LMI] as differentiable PyTorch layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchq.quadratic import forms, sdp
from torchq.quadratic.forms import Quadratic, Sample


class _ProgramLayer(nn.Module):
    """A program of one shape with its back end, for any leading batch dimensions."""

    def __init__(self, kind: Any, num_samples: int, num_features: int, num_controls: int, backend: str) -> None:
        super().__init__()
        self.num_samples, self.backend = num_samples, backend
        self._layer = sdp.layer(kind, num_samples, num_features, num_controls, backend)

    def forward(self, *parameters: Tensor) -> list[Tensor]:
        batch = parameters[0].shape[:-2]
        flat = [x.expand(*batch, *x.shape[len(batch) :]).flatten(0, len(batch) - 1) if batch else x for x in parameters]
        options: dict[str, Any] = {}
        if self.backend == "diffcp":
            # diffcp with Clarabel has wrong duals for PSD cones of size 4 and more; its iterative adjoint loses digits.
            options = {"eps": 1e-9, "max_iters": 100_000}
            if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
                options["mode"] = "dense"
        return [x.unflatten(0, batch) if len(batch) > 1 else x for x in self._layer(*flat, solver_args=options)]


class LMIQLayer(nn.Module):
    """LMI-QL's penalised relaxation as a layer, with gradients into every input.        [LMI, eqs. (15), (16), (18)]

        (φ, ũ, r, φ⁺, V_b, V_b⁺, λ) ↦ (P, S, R, W) = argmin mean |Gz + y| + λ tr(W)

    Built on cvxpylayers (Agrawal et al., *Differentiable Convex Optimization Layers*, NeurIPS 2019). Back ends:

    - "clarabel": one instance after the other on the CPU; the default, and the fastest for a few instances.
    - "moreau": all instances of a batch together, on the CPU or on CUDA.
    - "diffcp": cvxpylayers' own, with SCS at tolerance 1e−9 and the dense adjoint; slow, for comparison.

    The first two take their derivatives from `conic`; an instance that they cannot solve comes back as NaN with
    a warning that names it, and does not touch the others.

    Args:
        num_samples: N, transitions per instance.
        num_features: p.
        num_controls: m.
        gamma: discount γ.
        backend: "clarabel", "moreau" or "diffcp".

    Raises:
        ValueError: if the back end is none of these.
        ImportError: if something it needs is not installed, with the command that installs it.
    """

    def __init__(
        self, num_samples: int, num_features: int, num_controls: int, gamma: float, *, backend: str = "clarabel"
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self._program = _ProgramLayer("relaxation", num_samples, num_features, num_controls, backend)

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
            penalty_weight: λ, (*batch) or one for all.
            bound: B of `sdp.solve_relaxation`, (*batch, p, p); None is zero (`dev`).

        Returns:
            P (*batch, p, p), S (*batch, p, m), R (*batch, m, m) and W (*batch, p, p).

        Raises:
            SolverError: if no instance could be solved.
        """
        G, y = forms.residual_system(Sample(phi, deviation, reward, next_phi, value, next_value), self.gamma)
        p = phi.shape[-1]
        penalty = penalty_weight[..., None, None] * torch.eye(p, dtype=G.dtype, device=G.device)
        penalty = penalty.expand(*phi.shape[:-2], p, p)
        bound = torch.zeros_like(penalty) if bound is None else bound
        P, S, R, W = self._program(G, y, bound, penalty)
        return P, S, R, W


class LMIQLiLayer(nn.Module):
    """One iteration of LMI-QLi as a layer, with gradients into every input.                        [LMI, eq. (14)]

        (φ, ũ, r, φ⁺, V_b, V_b⁺, P̄, S̄, R̄) ↦ (P, S, R) = argmin mean |Gz + y|,  the next state's value held

    Feed it its own output to differentiate through several iterations. Arguments, back ends and errors as in
    `LMIQLayer`.
    """

    def __init__(
        self, num_samples: int, num_features: int, num_controls: int, gamma: float, *, backend: str = "clarabel"
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self._program = _ProgramLayer("fitted", num_samples, num_features, num_controls, backend)

    def forward(
        self,
        phi: Tensor,
        deviation: Tensor,
        reward: Tensor,
        next_phi: Tensor,
        value: Tensor,
        next_value: Tensor,
        last: Quadratic,
        bound: Tensor | None = None,
    ) -> Quadratic:
        """Solve one instance, or a batch of them along leading dimensions.

        Args:
            phi: φ(x), (*batch, samples, p), float64 as all inputs.
            deviation: ũ, (*batch, samples, m).
            reward: r, (*batch, samples).
            next_phi: φ(x⁺), (*batch, samples, p).
            value: V_b(x), (*batch, samples).
            next_value: V_b(x⁺), (*batch, samples).
            last: P̄, S̄ and R̄, each with the batch's leading dimensions; `forms.baseline` to begin with.
            bound: B of `sdp.solve_fitted`, (*batch, p, p); None is zero (`dev`).

        Raises:
            SolverError: if no instance could be solved.
        """
        sample = Sample(phi, deviation, reward, next_phi, value, next_value)
        G, y = forms.fitted_system(sample, self.gamma, last)
        p = phi.shape[-1]
        bound = G.new_zeros(*phi.shape[:-2], p, p) if bound is None else bound
        return Quadratic(*self._program(G, y, bound))
