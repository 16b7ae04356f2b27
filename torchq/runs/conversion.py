"""Between the two worlds: quadratic Q-functions to the factors of a Q-tensor, and a Q-tensor back to a quadratic."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchq.lowrank import cp
from torchq.quadratic import forms
from torchq.quadratic.forms import Quadratic

_SWEEPS = 200
_PENALTY = 1e-6


def action_values(
    q: Quadratic,
    phi: Float[Tensor, "*batch p"],
    deviation: Float[Tensor, "*batch m"],
    value: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Values of a quadratic Q-function.                                                   [LMI, eq. (10)]

        Q(x, u) = V_b(x) + φᵀPφ + 2φᵀSũ − ũᵀRũ

    Args:
        q: P, S and R.
        phi: φ(x).
        deviation: ũ = u − π_b(x).
        value: V_b(x).
    """
    z = torch.cat((forms.to_triangle(q.P), q.S.flatten(-2), forms.to_triangle(q.R)), dim=-1)
    return value + forms.action_features(phi, deviation) @ z


def compress(values: Float[Tensor, "*batch"], scale: float) -> Float[Tensor, "*batch"]:
    """Action values with what lies below −c drawn in, Q ← −c(1 + log(−Q/c)); the greedy policy stays.

    A choice of ours: a quadratic from a few samples near the origin can be wrong by orders of magnitude far from it.

    Args:
        values: Q.
        scale: c > 0.
    """
    return torch.where(values >= -scale, values, -scale * (1.0 + torch.log((-values / scale).clamp_min(1.0))))


def decompose(table: Tensor, rank: int, seed: int = 0) -> list[Tensor]:
    """CP factors of a tensor by TensorLy's `parafac`, with a slight penalty on the factors.

    Without the penalty, large components cancel each other, and a learner's first steps on them lose the tensor.

    Args:
        table: the tensor, one axis per mode.
        rank: components K.
        seed: of the random start.

    Returns:
        One factor (size, rank) per mode, each component's norm shared equally between modes.
    """
    import tensorly
    from tensorly.decomposition import parafac

    norm = table.norm().clamp_min(torch.finfo(table.dtype).tiny)
    with tensorly.backend_context("numpy"):
        weights, factors = parafac(
            (table / norm).double().cpu().numpy(), rank, init="random", n_iter_max=_SWEEPS, tol=1e-9, l2_reg=_PENALTY,
            random_state=seed,
        )  # fmt: skip
    found = [torch.from_numpy(np.ascontiguousarray(factor)).to(table.device) for factor in factors]
    found[0] = found[0] * torch.from_numpy(np.asarray(weights)).to(table.device) * norm
    return list(cp.rebalance(found))


def fit_quadratic(
    values: Float[Tensor, " samples"],
    phi: Float[Tensor, "samples p"],
    deviation: Float[Tensor, "samples m"],
    value: Float[Tensor, " samples"],
    control_floor: float,
) -> Quadratic:
    """Quadratic Q-function nearest to given values in least squares, with the eigenvalues of R raised to a floor.

        min Σ (Q(x, u) − V_b(x) − φᵀPφ − 2φᵀSũ + ũᵀRũ)²

    Args:
        values: Q(x, u), say from the grid of a Q-tensor.
        phi: φ(x).
        deviation: ũ.
        value: V_b(x).
        control_floor: smallest eigenvalue of R.
    """
    features = forms.action_features(phi, deviation)
    solution = torch.linalg.lstsq(features, (values - value).unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    q = forms.unpack(solution, phi.shape[-1], deviation.shape[-1])
    eigenvalues, vectors = torch.linalg.eigh(q.R)
    return q._replace(R=vectors * eigenvalues.clamp_min(control_floor) @ vectors.mT)
