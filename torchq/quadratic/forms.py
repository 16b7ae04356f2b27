"""Quadratic Q-functions around a baseline policy: features, values, greedy gain and Bellman residuals.

    Q(x, u) = V_b(x) + φᵀPφ + 2φᵀSũ − ũᵀRũ,   φ = φ(x),  ũ = u − π_b(x),  R ≻ 0          [LMI, eq. (10)]

Symmetric matrices travel as their upper triangles, row by row. The parameters of a Q-function are one vector
z = (triu P, S, triu R), and those of its relaxation z = (triu P, S, triu R, triu W).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Quadratic(NamedTuple):
    """Parameters of a quadratic Q-function; any leading batch dimensions."""

    P: Tensor
    """State block, (..., p, p), symmetric."""
    S: Tensor
    """Cross block, (..., p, m)."""
    R: Tensor
    """Control block, (..., m, m), symmetric."""


def triangle_size(size: int) -> int:
    """Entries of the upper triangle of a symmetric matrix."""
    return size * (size + 1) // 2


@lru_cache(maxsize=64)
def _indices(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each entry of an upper triangle, and how often it stands in the matrix."""
    row, column = torch.triu_indices(size, size, device=device)
    return row, column, torch.where(row == column, 1.0, 2.0).to(torch.float64)


def to_triangle(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch entries"]:
    """Upper triangle of a symmetric matrix, row by row."""
    row, column, _ = _indices(matrix.shape[-1], matrix.device)
    return matrix[..., row, column]


def from_triangle(entries: Float[Tensor, "*batch entries"], size: int) -> Float[Tensor, "*batch {size} {size}"]:
    """Symmetric matrix from its upper triangle."""
    row, column, _ = _indices(size, entries.device)
    matrix = entries.new_zeros(*entries.shape[:-1], size, size)
    matrix[..., row, column] = entries
    matrix[..., column, row] = entries
    return matrix


def monomials(v: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch entries"]:
    """Coefficients of the upper triangle of M in vᵀMv: v_i² on the diagonal, 2 v_i v_j above it."""
    row, column, times = _indices(v.shape[-1], v.device)
    return times.to(v.dtype) * v.index_select(-1, row) * v.index_select(-1, column)


def form(v: Float[Tensor, "*#batch n"], matrix: Float[Tensor, "*#batch n n"]) -> Float[Tensor, "*batch"]:
    """Quadratic form vᵀMv, summed in an order that does not depend on the batch, as a product of matrices would be."""
    return (monomials(v) * to_triangle((matrix + matrix.mT) / 2)).sum(-1)


def linear(x: Float[Tensor, "*#batch n"], matrix: Float[Tensor, "*#batch m n"]) -> Float[Tensor, "*batch m"]:
    """Mx, summed in an order that does not depend on the batch."""
    return (matrix * x.unsqueeze(-2)).sum(-1)


def action_features(
    phi: Float[Tensor, "*batch p"], deviation: Float[Tensor, "*batch m"]
) -> Float[Tensor, "*batch parameters"]:
    """Coefficients of z = (triu P, S, triu R) in Q(x, u) − V_b(x).                        [LMI, eqs. (10), (21)]"""
    cross = 2.0 * (phi.unsqueeze(-1) * deviation.unsqueeze(-2)).flatten(-2)
    return torch.cat((monomials(phi), cross, -monomials(deviation)), dim=-1)


def unpack(z: Float[Tensor, "*batch parameters"], p: int, m: int) -> Quadratic:
    """P, S and R from the parameter vector; what follows them in z is ignored."""
    sizes = (triangle_size(p), p * m, triangle_size(m))
    P, S, R = z[..., : sum(sizes)].split(sizes, dim=-1)
    return Quadratic(from_triangle(P, p), S.unflatten(-1, (p, m)), from_triangle(R, m))


def greedy_gain(q: Quadratic) -> Float[Tensor, "*batch m p"]:
    """R⁻¹Sᵀ: the greedy control is u = π_b(x) + R⁻¹Sᵀ φ(x).                               [LMI, eq. (11)]"""
    return torch.linalg.solve(q.R, q.S.mT)


def coupling(q: Quadratic) -> Float[Tensor, "*batch p p"]:
    """W = S R⁻¹ Sᵀ, so that max_u Q(x, u) = V_b(x) + φᵀ(P + W)φ.                          [LMI, eq. (12)]"""
    W = q.S @ greedy_gain(q)
    return (W + W.mT) / 2


def listed(q: Quadratic) -> list[Quadratic]:
    """Each of a batch, (batch, …)."""
    return [Quadratic(*parts) for parts in zip(*q, strict=True)]


class Fit(NamedTuple):
    """What a quadratic learner returns for one set of samples."""

    q: Quadratic
    cost: float
    """Mean |δ| of q, eq. (13): an upper bound of its minimum."""
    lower_bound: float
    """Optimum of the relaxation without penalty, a lower bound of that minimum; NaN where the method has none."""
    penalty_weight: float
    """λ chosen by the line search; NaN where the method has none."""
    failure: str = ""
    """What failed and what to do, if a solve did, so that q is the last good iterate or the baseline itself."""

    @property
    def failed(self) -> bool:
        """Whether a solve failed."""
        return bool(self.failure)


def baseline(p: int, m: int) -> Quadratic:
    """P = 0, S = 0, R = I: the Q-function whose greedy control is the baseline's."""
    zero = torch.zeros(p, p, dtype=torch.float64)
    return Quadratic(zero, zero[:, :1].expand(p, m).clone(), torch.eye(m, dtype=torch.float64))


class Sample(NamedTuple):
    """Features of one-step transitions, all float64; any leading batch dimensions."""

    phi: Tensor
    """φ(x), (samples, p)."""
    deviation: Tensor
    """ũ = u − π_b(x), (samples, m)."""
    reward: Tensor
    """r, (samples,)."""
    next_phi: Tensor
    """φ(x⁺), (samples, p)."""
    value: Tensor
    """V_b(x), (samples,)."""
    next_value: Tensor
    """V_b(x⁺), (samples,)."""

    def sizes(self) -> tuple[int, int]:
        """P and m, numbers of features and of controls; fields may have leading batch dimensions, the same in all.

        Raises:
            ValueError: if there is no transition, or a field is not shaped as it should be.
        """
        *batch, count, p = self.phi.shape if self.phi.ndim > 1 else (len(self.phi), 0)
        if count == 0:
            raise ValueError("sample: expected at least one transition, got none")
        for name, tensor in zip(self._fields, self, strict=True):
            if name == "deviation":
                own: tuple[int | str, ...] = (tensor.shape[-1],) if tensor.ndim == len(batch) + 2 else ("m",)
            else:
                own = (p or "p",) if name in ("phi", "next_phi") else ()
            if tuple(tensor.shape) != (*batch, count, *own):
                expected = ", ".join(map(str, (*batch, count, *own))) + ("" if batch or own else ",")
                raise ValueError(f"sample.{name}: expected the shape ({expected}), got {tuple(tensor.shape)}")
        return p, self.deviation.shape[-1]


def residual_system(sample: Sample, gamma: float) -> tuple[Tensor, Tensor]:
    """Matrix G and offset y of the Bellman residuals δ = Gz + y, affine in z = (triu P, S, triu R, triu W).

        δ = Q(x, u) − r − γ (V_b(x⁺) + φ⁺ᵀ(P + W)φ⁺)                                       [LMI, eqs. (8), (13)]

    Residual is prediction minus target here, as in the paper; a TD error has the other sign.
    """
    following = gamma * monomials(sample.next_phi)
    taken = action_features(sample.phi, sample.deviation)
    first, rest = taken.split((following.shape[-1], taken.shape[-1] - following.shape[-1]), dim=-1)
    G = torch.cat((first - following, rest, -following), dim=-1)
    return G, sample.value - sample.reward - gamma * sample.next_value


def fitted_system(sample: Sample, gamma: float, fixed: Quadratic, *, hold: str = "all") -> tuple[Tensor, Tensor]:
    """G and y of the residuals with the next state's value fixed, affine in z = (triu P, S, triu R).

        δ = Q(x, u) − r − γ (V_b(x⁺) + φ⁺ᵀ(P̄ + S̄R̄⁻¹S̄ᵀ)φ⁺)                            [LMI, eq. (14)]

    P̄, S̄ and R̄ are those of `fixed`; with `hold` "coupling" P̄ is P, which is affine too.
    """
    G = action_features(sample.phi, sample.deviation)
    held = coupling(fixed)
    if hold == "coupling":
        following = gamma * monomials(sample.next_phi)
        G = G - torch.nn.functional.pad(following, (0, G.shape[-1] - following.shape[-1]))
    else:
        held = fixed.P + held
    best = sample.next_value + form(sample.next_phi, held.unsqueeze(-3))
    return G, sample.value - sample.reward - gamma * best


def bellman_residuals(sample: Sample, gamma: float, q: Quadratic) -> Float[Tensor, "*batch samples"]:
    """δ with W = S R⁻¹ Sᵀ.                                                                  [LMI, eq. (8)]"""
    G, y = fitted_system(sample, gamma, q)
    z = torch.cat((to_triangle(q.P), q.S.flatten(-2), to_triangle(q.R)), dim=-1)
    return linear(z, G) + y


def bellman_cost(sample: Sample, gamma: float, q: Quadratic) -> Float[Tensor, "*batch"]:
    """Mean |δ| with W = S R⁻¹ Sᵀ: the cost that all methods are measured by.               [LMI, eq. (13)]

    Differs from the paper: the mean instead of the sum, so that it does not grow with the number of samples.
    """
    return bellman_residuals(sample, gamma, q).abs().mean(-1)
