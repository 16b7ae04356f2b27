"""Linear-quadratic regulation with a discount: baselines and yardsticks of the quadratic learners."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def discounted_riccati(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n m"],
    Q: Float[Tensor, "n n"],
    R: Float[Tensor, "m m"],
    gamma: float,
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "m n"]]:
    """Value matrix P and gain K of the optimal control u = −Kx for reward −(xᵀQx + uᵀRu), discounted by γ.

        P = Q + γAᵀPA − γ²AᵀPB (R + γBᵀPB)⁻¹ BᵀPA,   K = γ (R + γBᵀPB)⁻¹ BᵀPA,   V(x) = −xᵀPx

    the Riccati equation of (√γA, √γB) (Bertsekas, Dynamic Programming and Optimal Control, §4.2), solved by SciPy.

    Raises:
        ValueError: if there is no stabilising solution.
    """
    from scipy.linalg import solve_discrete_are

    root = gamma**0.5
    try:
        P = torch.from_numpy(solve_discrete_are(root * A.numpy(), root * B.numpy(), Q.numpy(), R.numpy()))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"A, B, Q, R: expected a stabilisable system, but Riccati's equation has no solution ({error})"
        ) from error
    K = gamma * torch.linalg.solve(R + gamma * B.mT @ P @ B, B.mT @ P @ A)
    return P, K


def discounted_radius(A: Float[Tensor, "n n"], B: Float[Tensor, "n m"], K: Float[Tensor, "m n"], gamma: float) -> float:
    """√γ·ρ(A − BK): below 1 if the control u = −Kx has a finite discounted cost."""
    return gamma**0.5 * torch.linalg.eigvals(A - B @ K).abs().max().item()
