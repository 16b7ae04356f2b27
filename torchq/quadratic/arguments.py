"""What the layers were given, looked at before anything is solved: each refusal names its argument in one line."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from torchq.quadratic.forms import Quadratic, Sample
from torchq.semidefinite.solve import is_hidden

Sizes = tuple[int, int, int]
"""Transitions, features and controls of a layer."""


def check_sizes(sizes: Sizes, gamma: float) -> None:
    """Of a layer to be made.

    Raises:
        ValueError: if one is not a positive integer, or γ not between 0 and 1.
    """
    for name, size in zip(("num_samples", "num_features", "num_controls"), sizes, strict=True):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: expected a positive integer, got {size}")
    if not (isinstance(gamma, Real) and 0 <= gamma <= 1):
        raise ValueError(f"gamma: expected 0 ≤ γ ≤ 1, got {gamma}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Of a name out of several.

    Raises:
        ValueError: if it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def checked(name: str, tensor: Any, *own: int) -> Tensor:
    """A tensor in double precision whose last dimensions are these.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it is another one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype != torch.float64:
        raise ValueError(f"{name}: expected torch.float64, got {tensor.dtype}; use .double()")
    if tuple(tensor.shape[max(0, tensor.dim() - len(own)) :]) != own:
        expected = ", ".join(map(str, own))
        raise ValueError(f"{name}: expected the shape (*batch, {expected}) of this layer, got {tuple(tensor.shape)}")
    return tensor


def check_sample(sample: Sample, sizes: Sizes) -> None:
    """A sample of a layer's sizes, in double precision.

    Raises:
        TypeError: if a field is no tensor.
        ValueError: if it is not of these sizes.
    """
    N, p, m = sizes
    own = {"phi": (N, p), "next_phi": (N, p), "deviation": (N, m)}
    for name, tensor in zip(Sample._fields, sample, strict=True):
        checked(name, tensor, *own.get(name, (N,)))
    batches = {name: tuple(x.shape[: x.dim() - len(own.get(name, (N,)))]) for name, x in sample._asdict().items()}
    for name, batch in batches.items():
        if batch != batches["phi"]:
            raise ValueError(f"{name}: expected the batch {batches['phi']} of phi, got {batch}")


def checked_bound(bound: Tensor, batch: torch.Size, p: int) -> Tensor:
    """B, (*batch, p, p).

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it is not symmetric, or for another batch.
    """
    checked("bound", bound, p, p)
    if not is_hidden(bound) and not torch.allclose(bound, bound.mT, equal_nan=True):
        raise ValueError("bound: expected symmetric matrices; use (B + B.mT) / 2")
    return _expanded("bound", bound, batch, p, p)


def checked_weight(weight: Tensor | float, sample: Sample) -> Tensor:
    """λ, one for all or (*batch).

    Raises:
        TypeError: if it is no number.
        ValueError: if it is negative, or for another batch.
    """
    number = isinstance(weight, Real)
    given = torch.tensor(float(weight), dtype=torch.float64, device=sample.phi.device) if number else weight
    tensor = checked("penalty_weight", given)
    if not is_hidden(tensor) and (tensor < 0).any():
        raise ValueError(f"penalty_weight: expected λ ≥ 0, got {tensor.min().item():g}")
    return _expanded("penalty_weight", tensor, sample.reward.shape[:-1])


def checked_quadratic(last: Quadratic, batch: torch.Size, p: int, m: int) -> Quadratic:
    """P̄, S̄ and R̄ of a batch.

    Raises:
        TypeError: if it is not three tensors.
        ValueError: if it is of other sizes, or R̄ is not positive definite.
    """
    if not isinstance(last, tuple) or len(last) != 3:
        raise TypeError(f"last: expected Quadratic(P, S, R), got {type(last).__name__}")
    own = ((p, p), (p, m), (m, m))
    parts = Quadratic(*(
        _expanded(f"last.{name}", checked(f"last.{name}", part, *shape), batch, *shape)
        for name, part, shape in zip(Quadratic._fields, last, own, strict=True)
    ))  # fmt: skip
    finite = torch.isfinite(parts.R).flatten(-2).all(-1)
    if not is_hidden(parts.R) and ((torch.linalg.cholesky_ex(parts.R).info != 0) & finite).any():
        raise ValueError("last.R: expected positive definite matrices; begin with forms.baseline")
    return parts


def _expanded(name: str, tensor: Tensor, batch: torch.Size, *own: int) -> Tensor:
    its = tuple(tensor.shape[: tensor.dim() - len(own)])
    if its not in ((), tuple(batch)):
        expected = " or ".join(str((*each, *own)) for each in dict.fromkeys(((), tuple(batch))))
        raise ValueError(f"{name}: expected the shape {expected}, got {tuple(tensor.shape)}")
    return tensor.expand((*batch, *own))
