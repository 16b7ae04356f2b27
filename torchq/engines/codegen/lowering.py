"""ATen's elementwise operators as scalar numbers: one rule an operator, with the rounding of eager mode.

A rule takes the operands of one element, `Number`s or Python numbers, and the type of ATen's result; operands are cast
to the type in which ATen computes. Powers with a whole or half exponent are products and roots, as in ATen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from torchq.engines.codegen.scalars import COMPARISONS, FUNCTIONS, ROUNDING, SELECT, Number, cast, constant

Operand = Number | float | int | bool


def number(operand: Operand, dtype: torch.dtype) -> Number:
    """An operand in a type."""
    return cast(operand, dtype) if isinstance(operand, Number) else constant(operand, dtype)


def apply(operator: str, dtype: torch.dtype, *operands: Operand) -> Number:
    """An operation on operands cast to its own type."""
    return Number(operator, dtype, tuple(number(operand, dtype) for operand in operands))


def _arithmetic(operator: str, result: torch.dtype, *operands: Operand) -> Number:
    if result == torch.bool:  # Products of booleans are conjunctions, sums disjunctions.
        operator = {"mul": "and", "add": "or", "minimum": "and", "maximum": "or"}[operator]
    return apply(operator, result, *operands)


def _scaled(operator: str, result: torch.dtype, left: Operand, right: Operand, alpha: float = 1) -> Number:
    return _arithmetic(operator, result, left, right if alpha == 1 else apply("mul", result, right, alpha))


def _compare(operator: str, result: torch.dtype, left: Operand, right: Operand) -> Number:
    common = common_type(left, right)
    return Number(operator, result, (number(left, common), number(right, common)))


def common_type(left: Operand, right: Operand) -> torch.dtype:
    """The type in which ATen compares two operands: a Python number takes the other's kind if that can hold it."""
    probes: Any = [torch.empty(1, dtype=x.dtype) if isinstance(x, Number) else x for x in (left, right)]
    return torch.result_type(*probes)


def _clamp(result: torch.dtype, x: Operand, low: Operand | None = None, high: Operand | None = None) -> Number:
    clamped = number(x, result)
    if low is not None:
        clamped = apply("maximum", result, clamped, low)
    return clamped if high is None else apply("minimum", result, clamped, high)


def _divide(result: torch.dtype, left: Operand, right: Operand, rounding_mode: str | None = None) -> Number:
    if rounding_mode is None:
        return apply("div", result, left, right)
    if not result.is_floating_point:
        raise NotImplementedError("a division of whole numbers that rounds")
    return apply("floor" if rounding_mode == "floor" else "trunc", result, apply("div", result, left, right))


def _power(result: torch.dtype, base: Operand, exponent: Operand) -> Number:
    x = number(base, result)
    if isinstance(exponent, Number) or not isinstance(base, Number):
        return apply("pow", result, x, exponent)
    one, square = constant(1, result), apply("mul", result, x, x)
    special = {
        0: one, 1: x, 2: square, 3: apply("mul", result, square, x), 0.5: apply("sqrt", result, x),
        -0.5: apply("div", result, one, apply("sqrt", result, x)), -1: apply("div", result, one, x),
        -2: apply("div", result, one, square),
    }  # fmt: skip
    return special.get(float(exponent)) or apply("pow", result, x, exponent)


def _where(result: torch.dtype, condition: Operand, left: Operand, right: Operand) -> Number:
    return Number(SELECT, result, (number(condition, torch.bool), number(left, result), number(right, result)))


def _round(result: torch.dtype, x: Operand, decimals: int = 0) -> Number:
    if decimals:
        raise NotImplementedError("rounding to decimals")
    return apply("round", result, x)


def _sign(result: torch.dtype, x: Operand) -> Number:
    above, below = (_compare(operator, torch.bool, x, 0) for operator in ("gt", "lt"))
    return apply("sub", result, above, below)


def _bitwise(operator: str, result: torch.dtype, *operands: Operand) -> Number:
    if result != torch.bool:
        raise NotImplementedError("bits of whole numbers")
    return apply(operator, torch.bool, *operands)


def _one_over(operator: str | None, result: torch.dtype, x: Operand) -> Number:
    return apply("div", result, 1, x if operator is None else apply(operator, result, x))


Rule = Callable[..., Number]

RULES: dict[str, Rule] = {
    **{name: partial(_arithmetic, name) for name in ("mul", "neg", "abs", "minimum", "maximum", "remainder", "fmod",
                                                     "atan2")},
    **{name: partial(_compare, name) for name in COMPARISONS},
    **{name: partial(apply, name) for name in (*FUNCTIONS, *ROUNDING) if name != "round"},
    **{f"bitwise_{name}": partial(_bitwise, name) for name in ("and", "or", "xor", "not")},
    **{f"logical_{name}": partial(apply, name) for name in ("and", "or", "xor", "not")},
    "add": partial(_scaled, "add"),
    "sub": partial(_scaled, "sub"),
    "rsub": lambda result, left, right, alpha=1: _scaled("sub", result, right, left, alpha),
    "div": _divide,
    "floor_divide": partial(_divide, rounding_mode="floor"),
    "reciprocal": partial(_one_over, None),
    "rsqrt": partial(_one_over, "sqrt"),
    "square": lambda result, x: _power(result, x, 2),
    "pow": _power,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda result, x, high: _clamp(result, x, None, high),
    "where": _where,
    "round": _round,
    "sign": _sign,
    "isnan": lambda result, x: _compare("ne", result, x, x),
    "sigmoid": lambda result, x: _one_over(None, result, apply("add", result, 1, apply("exp", result, apply(
        "neg", result, x)))),
    "_to_copy": lambda result, x, **_: number(x, result),
}  # fmt: skip
"""By the first part of ATen's name; keyword arguments are those of ATen."""


def rule(name: str) -> Rule | None:
    """The rule of an ATen operator such as "add.Tensor", or None."""
    return RULES.get(name.partition(".")[0])


def describe(value: Any) -> str:
    """An argument in an error message."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
