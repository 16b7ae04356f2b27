"""Programs scaled by powers of two: blocks, variables and the objective, so that L, A and costs are about one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite.program import Block, Program


class Scaled(NamedTuple):
    """A program and what it was multiplied by."""

    program: Program
    blocks: tuple[Tensor, ...]
    """(batch, 1, 1) each, or (1, 1) where all instances share L."""
    variables: Tensor
    """(batch, n) or (n,): z of the program itself is this times that of the scaled one."""
    cost: Tensor
    """(batch, 1) or (1,): of c, A and b."""


def scaled(program: Program) -> Scaled:
    """A program of numbers about one, so that a start suits it."""
    c, A, b, blocks = program
    of_blocks = tuple(_power_of_two(block.L.abs().amax((-3, -2, -1)))[..., None, None] for block in blocks)
    blocks = tuple(Block(s * C, s.unsqueeze(-3) * L) for (C, L), s in zip(blocks, of_blocks, strict=True))
    columns = [L.abs().amax((-2, -1)) for _, L in blocks]  # (batch, n) or (n,) each
    of_variables = _power_of_two(_largest(columns)) if columns else torch.ones_like(c[..., :1])
    of_terms = of_variables[..., None, None]
    blocks = tuple(Block(C, of_terms * L) for C, L in blocks)
    c, A = of_variables * c, of_variables.unsqueeze(-2) * A
    sizes = A.abs().flatten(-2) if A.shape[-2] else c.abs()
    of_cost = _power_of_two(torch.nn.functional.pad(sizes, (0, 1)).amax(-1, keepdim=True), 8 if A.shape[-2] else 0)
    scaled = Program(of_cost * c, of_cost.unsqueeze(-1) * A, of_cost * b, blocks)
    return Scaled(scaled, of_blocks, of_variables, of_cost)


def _largest(parts: list[Tensor]) -> Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = torch.maximum(found, part)
    return found


def _power_of_two(size: Tensor, slack: int = 0) -> Tensor:
    """What brings a size to about one; 1 where it is zero or not finite, or within 2^slack of one."""
    size = torch.where((size > 0) & torch.isfinite(size), size, 2**0.5) / 2**0.5
    exponent = torch.frexp(size).exponent
    return torch.ldexp(torch.ones_like(size), -torch.where(exponent.abs() <= slack, 0, exponent))
