"""Scalar programs: what one environment computes, as a graph of elementwise operations on numbers.

The middle of the way from torch to C++ and Triton: `trace` builds such a graph from a family's functions, `cpp` and
`triton_source` print it. Every number has a torch dtype; operands are cast before they meet, so that a target needs no
rules of promotion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

INPUT, CONSTANT, CAST, SELECT = "input", "constant", "cast", "select"

ARITHMETIC = ("add", "sub", "mul", "div", "neg", "abs", "minimum", "maximum", "remainder", "fmod", "pow", "atan2")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGIC = ("and", "or", "xor", "not")
ROUNDING = ("floor", "ceil", "round", "trunc")
FUNCTIONS = ("sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "expm1", "log",
             "log1p", "log2", "log10")  # fmt: skip
OPERATORS = (*ARITHMETIC, *COMPARISONS, *LOGIC, *ROUNDING, *FUNCTIONS, CAST, SELECT)
"""All that a target must be able to print: comparisons give booleans, `select` takes one first."""


@dataclass(frozen=True, eq=False)
class Number:
    """One number of one environment."""

    operator: str
    """One of `OPERATORS`, "input" or "constant"."""
    dtype: torch.dtype
    operands: tuple[Number, ...] = ()
    value: float | int | bool = 0
    """Of a constant."""
    name: str = ""
    """Of an input, in the target's words."""


def constant(value: float | int | bool, dtype: torch.dtype) -> Number:
    """A number known now, rounded to its type."""
    return Number(CONSTANT, dtype, value=torch.tensor(value, dtype=dtype).item())


def cast(number: Number, dtype: torch.dtype) -> Number:
    """The number in another type, as `Tensor.to` converts."""
    if number.dtype == dtype:
        return number
    if number.operator == CONSTANT:
        return constant(number.value, dtype)
    return Number(CAST, dtype, (number,))


class Function(NamedTuple):
    """Numbers in, numbers out."""

    inputs: dict[str, tuple[Number, ...]]
    """By what they are: "parameters", "fields", "action", "uniforms"."""
    outputs: dict[str, tuple[Number, ...]]
    """By what they are: "fields", "reward", "terminated", "truncated", "observation"."""

    def in_order(self, outputs: Iterable[str] | None = None) -> list[Number]:
        """What has to be computed for some of the outputs, operands first; inputs and constants left out."""
        wanted = [number for name in outputs or self.outputs for number in self.outputs[name]]
        done: dict[int, Number] = {}
        stack = list(reversed(wanted))
        while stack:
            number = stack[-1]
            pending = [operand for operand in number.operands if id(operand) not in done]
            if pending:
                stack.extend(reversed(pending))
                continue
            stack.pop()
            done.setdefault(id(number), number)
        return [number for number in done.values() if number.operator not in (INPUT, CONSTANT)]


class FamilyProgram(NamedTuple):
    """A family of environments as scalar programs."""

    name: str
    """Of the environment's class."""
    reset: Function
    """Parameters and uniforms to fields."""
    step: Function
    """Parameters, fields, action and uniforms to fields, reward, terminated and truncated."""
    observe: Function
    """Fields to the observation."""
    terminates: bool
    """Whether an environment is reset where an episode of its own ends."""

    @property
    def field_types(self) -> tuple[torch.dtype, ...]:
        """Type of each field of the state."""
        return tuple(field.dtype for field in self.step.inputs["fields"])

    @property
    def num_parameters(self) -> int:
        """Parameters of a task."""
        return len(self.step.inputs["parameters"])
