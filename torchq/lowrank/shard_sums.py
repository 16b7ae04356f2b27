"""Gradients of factors that tasks share, where other processes hold other tasks: torch operations of a fixed order."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor

from torchq.lowrank import cp
from torchq.ranks import Exchange


class ShardSums(NamedTuple):
    """Sums over the tasks of all processes: of each shard by itself, then of pairs of shards, and so on."""

    bounds: tuple[int, ...]
    """First tasks of this process's shards, and the end of the last."""
    ranks: Exchange

    def rows(
        self, values: Float[Tensor, "seeds tasks envs rank"], index: Shaped[Tensor, "#seeds tasks envs"], size: int
    ) -> Float[Tensor, "seeds 1 {size} rank"]:
        """Sum of the values that fall on each row of a factor, as `cp.accumulate_rows`, over all processes."""
        own = in_pairs([
            cp.accumulate_rows(values[:, first:end], index[:, first:end], size, 1)
            for first, end in pairwise(self.bounds)
        ])  # fmt: skip
        received = own.new_empty(self.ranks.count, *own.shape)
        self.ranks.exchange(own.contiguous().flatten(), received.flatten())
        return in_pairs(list(received.unbind()))


def in_pairs(terms: list[Tensor]) -> Tensor:
    """Sum of a power of two of terms: of neighbours, then of these sums."""
    while len(terms) > 1:
        terms = [left + right for left, right in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]
