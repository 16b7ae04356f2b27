"""The semidefinite programs of [LMI] as differentiable PyTorch layers."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchq.quadratic import arguments, backends, forms, programs, sdp
from torchq.quadratic.excitation import excitation
from torchq.quadratic.forms import Quadratic, Sample
from torchq.quadratic.lmi_ql import LMIQL, PENALTIES
from torchq.semidefinite.solve import is_hidden
from torchq.uncompiled import uncompiled

Kind = Literal["relaxation", "fitted"]


class _ProgramLayer(nn.Module):
    """A program of one shape with its back end, for any leading batch dimensions."""

    def __init__(
        self, kind: Kind, num_samples: int, num_features: int, num_controls: int, gamma: float, backend: str
    ) -> None:
        super().__init__()
        self.kind, self.backend = kind, backend
        self.sizes = num_samples, num_features, num_controls
        arguments.check_sizes(self.sizes, gamma)
        if backend != "torchq":
            self._layer = sdp.layer(kind, *self.sizes, backend)
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the program of CVXPY, which is made again where it is needed."""
        return {**self.__dict__, "_modules": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.backend != "torchq":
            self._layer = sdp.layer(self.kind, *self.sizes, self.backend)

    def bound(self, sample: Sample, gamma: float, bound: Tensor | None) -> Tensor:
        """B for every instance; where it is zero by default, the first call looks whether that is wise."""
        batch, p = sample.phi.shape[:-2], self.sizes[1]
        if bound is not None:
            return arguments.checked_bound(bound, batch, p)
        if not self._looked and batch.numel():
            self._looked = True
            _warn_of_pessimism(sample, gamma)
        return sample.phi.new_zeros(*batch, p, p)

    def forward(self, *parameters: Tensor) -> list[Tensor]:
        if self.backend == "torchq":
            program = getattr(programs, self.kind)(*parameters, *self.sizes[1:])
            return backends.torchq(program, self.sizes[1:])
        if any(map(is_hidden, parameters)):
            raise RuntimeError(f'backend: expected "torchq" under transforms of torch.func, got "{self.backend}"')
        batch = parameters[0].shape[:-2]
        flat = [x.expand(*batch, *x.shape[len(batch) :]).flatten(0, len(batch) - 1) if batch else x for x in parameters]
        options: dict[str, Any] = {}
        if self.backend == "diffcp":
            # diffcp with Clarabel has wrong duals for PSD cones of size 4 and more; its iterative adjoint loses digits.
            options = {"eps": 1e-9, "max_iters": 100_000}
            if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
                options["mode"] = "dense"
        return [x.unflatten(0, batch) if len(batch) > 1 else x for x in self._layer(*flat, solver_args=options)]


@torch.no_grad()
def _warn_of_pessimism(sample: Sample, gamma: float) -> None:
    """Say so where V_b of the first instance seems pessimistic; data that cannot tell are left to the solver."""
    batch = sample.phi.dim() - 2
    first = Sample(*(field[(0,) * batch].detach().cpu() for field in sample))
    with suppress(ValueError, RuntimeError):
        if excitation(first, gamma).pessimistic:
            warnings.warn(
                "bound: V_b seems pessimistic, and the default bound (dev) keeps all values below it, which gives a "
                "wrong gain; pass bound=P_b (tot), embedded in the features",
                stacklevel=5,
            )


class LMIQLayer(nn.Module):
    """LMI-QL's penalised relaxation as a layer, with gradients into every input.        [LMI, eqs. (15), (16), (18)]

        (φ, ũ, r, φ⁺, V_b, V_b⁺, λ) ↦ (P, S, R, W) = argmin mean |Gz + y| + λ tr(MW)

    What it learns is a deviation from the value V_b(x) = −xᵀP_b x ≤ 0 of a baseline u = π_b(x):

        Q(x, u) = V_b(x) + φᵀPφ + 2φᵀSũ − ũᵀRũ,   ũ = u − π_b(x),   R ⪰ 1e−4 I                   [LMI, eq. (10)]
        argmax_u Q = π_b(x) + R⁻¹Sᵀφ,   max_u Q = V_b(x) + φᵀ(P + W)φ

    so with φ = x and π_b(x) = −K_b x the gain of the learnt u = −Kx is K = K_b − (R⁻¹Sᵀ), `forms.greedy_gain`.

    **`bound` decides what P may be.** The default, zero (`dev`), keeps every learnt value below V_b: B − P − W ⪰ 0. It
    needs a V_b that no policy beats. Where V_b is pessimistic, as the value of a baseline that is not optimal is, the
    gain comes out wrong: on a linear-quadratic problem with V_b three times too low, far from Riccati's, which `bound`
    = EᵀP_bE (`tot`, x = Eφ: the value itself stays below zero) gives to seven digits at λ = 1e−4. The first call looks
    at its first instance, and warns where V_b seems pessimistic.

    Back ends:

    - "torchq": `torchq.semidefinite`, all instances of a batch together, on the CPU or on CUDA; the default.
    - "clarabel": one instance after the other on the CPU.
    - "moreau": all instances of a batch together, on the CPU or on CUDA.
    - "diffcp": cvxpylayers' own, with SCS at tolerance 1e−9 and the dense adjoint; slow, for comparison.

    The last three are built on cvxpylayers (Agrawal et al., *Differentiable Convex Optimization Layers*, NeurIPS 2019);
    of these the first two take their derivatives from `conic`. With all but diffcp an instance that is not solved comes
    back as NaN with a warning that names it, and does not touch the others.

    Args:
        num_samples: N, transitions per instance.
        num_features: p.
        num_controls: m.
        gamma: discount γ.
        penalty: M: "trace" is the identity, "data" the mean of φ⁺φ⁺ᵀ.
        backend: "torchq", "clarabel", "moreau" or "diffcp".

    Raises:
        ValueError: if the back end or the penalty is none of these, a size no positive integer, or γ not in [0, 1].
        ImportError: if something it needs is not installed, with the command that installs it.
    """

    def __init__(
        self,
        num_samples: int,
        num_features: int,
        num_controls: int,
        gamma: float,
        *,
        penalty: str = "trace",
        backend: str = "torchq",
    ) -> None:
        super().__init__()
        arguments.check_choice("penalty", penalty, PENALTIES)
        self.learner = LMIQL(gamma, penalty)
        self._program = _ProgramLayer("relaxation", num_samples, num_features, num_controls, gamma, backend)

    @uncompiled
    def forward(
        self,
        phi: Tensor,
        deviation: Tensor,
        reward: Tensor,
        next_phi: Tensor,
        value: Tensor,
        next_value: Tensor,
        penalty_weight: Tensor | float | None = None,
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
            penalty_weight: λ, (*batch) or one for all; None: that of `LMIQL`'s line search, a constant to gradients.
            bound: B of `sdp.solve_relaxation`, (*batch, p, p) or one (p, p) for all; None is zero (`dev`, see above).

        Returns:
            P (*batch, p, p), S (*batch, p, m), R (*batch, m, m) and W (*batch, p, p), with P, R and W symmetric.

        Raises:
            SolverError: if no instance could be solved.
        """
        sample = Sample(phi, deviation, reward, next_phi, value, next_value)
        arguments.check_sample(sample, self._program.sizes)
        bound = self._program.bound(sample, self.learner.gamma, bound)
        if penalty_weight is None:
            penalty_weight = self._searched(sample, bound)
        else:
            penalty_weight = arguments.checked_weight(penalty_weight, sample)
        G, y = forms.residual_system(sample, self.learner.gamma)
        penalty = penalty_weight[..., None, None] * self.learner.weight(sample)
        P, S, R, W = self._program(G, y, bound, penalty)
        return P, S, R, W

    @torch.no_grad()
    def _searched(self, sample: Sample, bound: Tensor) -> Tensor:
        """λ of each instance by the line search, (*batch)."""
        if any(map(is_hidden, (*sample, bound))):
            raise RuntimeError("penalty_weight: expected λ under transforms of torch.func, got None, a line search")
        batch = sample.phi.shape[:-2]
        own = (2, 2, 1, 2, 1, 1)  # Dimensions of an instance's fields.
        flat = Sample(*(x.reshape(batch.numel(), *x.shape[x.dim() - n :]) for x, n in zip(sample, own, strict=True)))
        found = self.learner.searched(flat, bound.reshape(batch.numel(), *bound.shape[-2:]))
        return (10.0**found.chosen).view(batch)


class LMIQLiLayer(nn.Module):
    """One iteration of LMI-QLi as a layer, with gradients into every input.                        [LMI, eq. (14)]

        (φ, ũ, r, φ⁺, V_b, V_b⁺, P̄, S̄, R̄) ↦ (P, S, R) = argmin mean |Gz + y|,  the next state's value held

    Feed it its own output to differentiate through several iterations. Arguments, back ends and errors as in
    `LMIQLayer`.
    """

    def __init__(
        self, num_samples: int, num_features: int, num_controls: int, gamma: float, *, backend: str = "torchq"
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self._program = _ProgramLayer("fitted", num_samples, num_features, num_controls, gamma, backend)

    @uncompiled
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
            bound: B of `sdp.solve_fitted`, (*batch, p, p) or one (p, p) for all; None is zero (`dev`).

        Raises:
            SolverError: if no instance could be solved.
        """
        sample = Sample(phi, deviation, reward, next_phi, value, next_value)
        arguments.check_sample(sample, self._program.sizes)
        last = arguments.checked_quadratic(last, phi.shape[:-2], *self._program.sizes[1:])
        G, y = forms.fitted_system(sample, self.gamma, last)
        bound = self._program.bound(sample, self.gamma, bound)
        return Quadratic(*self._program(G, y, bound))
