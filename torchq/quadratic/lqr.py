"""Linear-quadratic regulation with a discount: baselines and yardsticks of the quadratic learners."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchq.quadratic.forms import Sample, form


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
        ValueError: if R is not positive, or there is no stabilising solution.
    """
    from scipy.linalg import solve_discrete_are

    if not torch.linalg.eigvalsh(R).min() > 0:
        raise ValueError(f"R: expected a symmetric matrix with positive eigenvalues, got {R.tolist()}")

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


class NoiseFreeProblem(NamedTuple):
    """One-step data of a random linear system, whose best quadratic Q-function is known exactly."""

    sample: Sample
    gain: Tensor
    """K_b − K: the gain in ũ = (K_b − K)x of the optimal control, (m, n)."""
    value: Tensor
    """P_b of the baseline's V_b(x) = −xᵀP_b x, (n, n)."""


def noise_free_problem(seed: int, gamma: float = 0.95, num_samples: int = 60) -> NoiseFreeProblem:
    """A random unstable system, a baseline from a slightly wrong model, and exploring data without noise.

    A is 2×2 normal scaled to spectral radius 1.2, B 2×1 normal, Q = I, R = 0.1; the baseline is the discounted
    regulator of A + 0.05·N(0, 1); x and ũ are standard normal. Problems whose baseline has √γ·ρ(A_b) ≥ 0.99 are drawn
    again.

    Args:
        seed: of the generator.
        gamma: discount γ.
        num_samples: transitions.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    Q, R = torch.eye(2, dtype=torch.float64), torch.full((1, 1), 0.1, dtype=torch.float64)
    while True:
        A, B = normal(2, 2), normal(2, 1)
        A = A * 1.2 / torch.linalg.eigvals(A).abs().max()
        P_b, K_b = discounted_riccati(A + 0.05 * normal(2, 2), B, Q, R, gamma)
        if discounted_radius(A, B, K_b, gamma) < 0.99:
            break
    _, K = discounted_riccati(A, B, Q, R, gamma)
    x, deviation = normal(num_samples, 2), normal(num_samples, 1)
    u = deviation - x @ K_b.mT
    following = x @ A.mT + u @ B.mT
    reward = -form(x, Q) - form(u, R)
    return NoiseFreeProblem(Sample(x, deviation, reward, following, -form(x, P_b), -form(following, P_b)), K_b - K, P_b)
