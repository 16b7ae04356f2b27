"""CP (PARAFAC) tensors by their factors: entries, fibres, gradients by row, norms, and TensorLy both ways.

    Q[i₁, …, i_D] = Σₖ ∏_d F_d[i_d, k]                                                 [TLR, eq. (7)]

Learners keep factors in batch, shaped (seeds, groups, size, rank), with groups = 1 where tasks share a factor and
groups = tasks where each has its own; functions on whole tensors take any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

if TYPE_CHECKING:
    from tensorly.cp_tensor import CPTensor

_SMALL_BATCH = 32
_ONE_HOT_ROWS = 256


def neighbours(place: Float[Tensor, "*batch"], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The row below a fractional place along a factor, the row above, and the weight w of the latter, all (*batch).

    After the last row comes the first again; where the dimension is not periodic its weight is 0.
    """
    below = place.floor()
    row = below.long() % size
    return row, (row + 1) % size, place - below


def interpolate(
    gather: Callable[[Int[Tensor, "*batch"]], Tensor], place: Tensor, size: int
) -> Float[Tensor, "*rows rank"]:
    """φᵀF, the rows of a factor at places along it, see `modes`: F[i, :], or (1 − w) F[i, :] + w F[i + 1, :].

    Args:
        gather: from rows to what the factor has there.
        place: rows (int64), or fractions between them.
        size: rows of the factor.
    """
    if not place.is_floating_point():
        return gather(place)
    below, above, weight = neighbours(place, size)
    start = gather(below)
    return start + weight.unsqueeze(-1) * (gather(above) - start)


def rows(
    factor: Float[Tensor, "seeds groups size rank"], place: Shaped[Tensor, "#seeds tasks envs"]
) -> Float[Tensor, "seeds tasks envs rank"]:
    """Rows that a batch visits, from the shared factor or from each task's own; between two, their weighted mean."""
    seeds = torch.arange(factor.shape[0], device=factor.device)[:, None, None]
    if factor.shape[1] == 1:
        return interpolate(lambda index: factor[:, 0][seeds, index], place, factor.shape[2])
    groups = torch.arange(factor.shape[1], device=factor.device)[:, None]
    return interpolate(lambda index: factor[seeds, groups, index], place, factor.shape[2])


def product(rows: Sequence[Float[Tensor, "*#batch rank"]]) -> Float[Tensor, "*#batch rank"]:
    """Hadamard product ∏_d F_d[i_d, :] of visited rows, in the order given; batches broadcast."""
    return reduce(torch.mul, rows)


def entry(rows: Sequence[Float[Tensor, "*#batch rank"]]) -> Float[Tensor, "*#batch"]:
    """Tensor entries Σₖ ∏_d F_d[i_d, k] from the visited rows of all modes.          [TLR, eq. (7)]

    By product and sum, whose order does not depend on the batch (a matrix product's does).
    """
    return product(rows).sum(-1)


def cofactor(rows: Sequence[Float[Tensor, "*#batch rank"]], mode: int) -> Float[Tensor, "*#batch rank"]:
    """∂ entry / ∂ F_mode[i, :]: the product of the other modes' visited rows.         [TLR, eqs. (6a)–(6c)]"""
    return product([row for other, row in enumerate(rows) if other != mode])


def khatri_rao(factors: Sequence[Float[Tensor, "*batch _ rank"]]) -> Float[Tensor, "*batch size rank"]:
    """Column-wise Kronecker product: rows of several modes flattened into one, the last mode fastest."""
    return reduce(lambda left, right: (left.unsqueeze(-2) * right.unsqueeze(-3)).flatten(-3, -2), factors)


def unravel(index: Int[Tensor, "*batch"], sizes: Sequence[int]) -> list[Tensor]:
    """Rows along several modes, from those of the mode that they flatten to, the last fastest; see `khatri_rao`."""
    rows = []
    for size in reversed(sizes[1:]):
        rows.append(index % size)
        index = index // size
    return [index, *reversed(rows)]


def fibre(
    weights: Float[Tensor, "seeds tasks envs rank"], factor: Float[Tensor, "seeds groups size rank"]
) -> Float[Tensor, "seeds tasks envs size"]:
    """Entries along one mode, Σₖ w[k] F[:, k], w being the product of the other modes' visited rows."""
    return (weights.unsqueeze(-2) * factor.unsqueeze(-3)).sum(-1)


def accumulate_rows(
    values: Float[Tensor, "seeds tasks envs rank"], index: Shaped[Tensor, "#seeds tasks envs"], size: int, groups: int
) -> Float[Tensor, "seeds groups {size} rank"]:
    """Sum of the values that fall on each row of a factor; rows hit several times add up.

        G[i, :] = Σₙ [iₙ = i] vₙ

    By product and sum for small batches (an order of its own for every row, whatever the device), by a matrix product
    with one-hot rows for large ones, and by scatter for modes too large for one-hot rows. Where iₙ lies between two
    rows, these get (1 − w) vₙ and w vₙ.

    Args:
        values: vₙ.
        index: iₙ in [0, size), whole or fractional.
        size: rows of the factor.
        groups: 1 if all tasks share the factor, else the number of tasks.
    """
    if index.is_floating_point():
        below, above, weight = neighbours(index, size)
        above_values = weight.unsqueeze(-1) * values
        lower = accumulate_rows(values - above_values, below, size, groups)
        return lower + accumulate_rows(above_values, above, size, groups)
    seeds, tasks, envs, rank = values.shape
    values = values.reshape(seeds, groups, tasks // groups * envs, rank)
    index = index.expand(seeds, tasks, envs).reshape(seeds, groups, -1)
    if size > _ONE_HOT_ROWS:
        total = values.new_zeros(seeds, groups, size, rank)
        return total.scatter_add(2, index.unsqueeze(-1).expand_as(values), values)
    one_hot = index.unsqueeze(-2) == torch.arange(size, device=index.device).unsqueeze(-1)
    if values.shape[2] <= _SMALL_BATCH:
        return torch.where(one_hot.unsqueeze(-1), values.unsqueeze(-3), 0.0).sum(-2)
    return one_hot.to(values.dtype) @ values


def dense(factors: Sequence[Float[Tensor, "*batch _ rank"]]) -> Tensor:
    """The whole tensor, shaped (*batch, size of each mode): for tests and pictures, its size is the product."""
    shape = (*factors[0].shape[:-2], *(factor.shape[-2] for factor in factors))
    return khatri_rao(factors).sum(-1).reshape(shape)


def norm(factors: Sequence[Float[Tensor, "*batch _ rank"]]) -> Float[Tensor, "*batch"]:
    """Frobenius norm from the factors' Gram matrices, never building the tensor.   [Kolda and Bader 2009, §3]

    ‖Q‖² = Σₖₗ ∏_d (F_dᵀF_d)[k, l]
    """
    gram = reduce(torch.mul, [factor.mT @ factor for factor in factors])
    return gram.sum((-2, -1)).clamp_min(0.0).sqrt()


def rebalance(factors: Sequence[Float[Tensor, "*batch _ rank"]]) -> tuple[Float[Tensor, "*batch _ rank"], ...]:
    """The same tensor with each component's norm shared equally by its factors.

    Every column k is scaled to the geometric mean over modes of ‖F_d[:, k]‖; a component with a zero column stays.
    """
    norms = torch.stack([factor.norm(dim=-2, keepdim=True) for factor in factors])
    mean = norms.log().mean(0).exp()
    scale = torch.where(mean > 0, mean / norms, 1.0)
    return tuple(factor * scale[mode] for mode, factor in enumerate(factors))


def to_tensorly(factors: Sequence[Float[Tensor, "_ rank"]]) -> CPTensor:
    """TensorLy's CPTensor of these factors with unit weights: tensors, or with its NumPy back end arrays of theirs.

    Raises:
        ValueError: if TensorLy has another back end.
    """
    import tensorly
    from tensorly.cp_tensor import CPTensor

    weights = torch.ones(factors[0].shape[-1], dtype=factors[0].dtype, device=factors[0].device)
    if (backend := tensorly.get_backend()) not in ("pytorch", "numpy"):
        raise ValueError(
            f"backend: expected TensorLy's pytorch or numpy, got {backend}; tensorly.set_backend('pytorch')"
        )
    if backend == "numpy":
        return CPTensor((weights.cpu().numpy(), [factor.cpu().numpy() for factor in factors]))
    return CPTensor((weights, list(factors)))


def from_tensorly(cp_tensor: CPTensor | tuple[Tensor | None, list[Tensor]]) -> tuple[Float[Tensor, "_ rank"], ...]:
    """Factors of a TensorLy CPTensor, its weights shared equally by the modes (their sign goes to the first)."""
    weights, factors = cp_tensor
    tensors = [torch.as_tensor(factor) for factor in factors]
    if weights is None:
        return tuple(tensors)
    weights = torch.as_tensor(weights, dtype=tensors[0].dtype, device=tensors[0].device)
    share = weights.abs() ** (1.0 / len(tensors))
    return (tensors[0] * share * weights.sign(), *(tensor * share for tensor in tensors[1:]))
