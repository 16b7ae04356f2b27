"""Print a family's scalar programs as a module of Triton functions, and import it.

The functions work on tuples of numbers, or of blocks of them where many environments are handled together:
`observe(s, like)`, `step(p, s, action, u, like)` and `reset(p, u, like)`, with `like` any of those blocks.
"""

from __future__ import annotations

import hashlib
import math
from types import ModuleType

import torch

from torchq.cache import cache_folder, is_own, write_text
from torchq.engines.codegen.scalars import CAST, CONSTANT, INPUT, SELECT, FamilyProgram, Function, Number

_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64", torch.int32: "tl.int32", torch.int64: "tl.int64",
          torch.bool: "tl.int1"}  # fmt: skip
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
_CALLS = {
    SELECT: "tl.where", "div": "divide", "sqrt": "square_root", "remainder": "remainder", "minimum": "minimum",
    "maximum": "maximum", "round": "libdevice.rint",
    **{name: f"tl.{name}" for name in ("abs", "floor", "ceil", "sin", "cos")},
}  # fmt: skip
"""The others are functions of libdevice by their own names."""


def module(program: FamilyProgram) -> ModuleType:
    """The generated module, kept in the cache: Triton reads the source of its functions."""
    text = source(program)
    name = f"family_{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    path = cache_folder() / f"{name}.py"
    if not is_own(path) or path.read_text() != text:
        write_text(path, text)
    loaded = ModuleType(name)
    loaded.__file__ = str(path)
    exec(compile(text, str(path), "exec"), loaded.__dict__)  # Not what lies in the cache, nor its bytecode.
    return loaded


def source(program: FamilyProgram) -> str:
    """The module as text."""
    observe, step, reset = (_Printed(function) for function in (program.observe, program.step, program.reset))
    outcome = ", ".join(x for name in ("reward", "terminated", "truncated") for x in step[name])
    return f'''\
"""{program.name}, generated from its torch functions."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from torchq.engines.gpu.elementary import divide, full, maximum, minimum, remainder, square_root


@triton.jit
def observe(s, like):
{observe.body}    return ({"".join(f"{x}, " for x in observe["observation"])})


@triton.jit
def step(p, s, action, u, like):
{step.body}    return ({"".join(f"{x}, " for x in step["fields"])}), {outcome}


@triton.jit
def reset(p, u, like):
{reset.body}    return ({"".join(f"{x}, " for x in reset["fields"])})
'''


class _Printed:
    """A function as statements, and what its outputs are called after them."""

    def __init__(self, function: Function) -> None:
        self._names: dict[int, str] = {}
        self._function = function
        self.body = ""
        for i, number in enumerate(function.in_order()):
            self.body += f"    v{i} = {self._expression(number)}\n"
            self._names[id(number)] = f"v{i}"

    def __getitem__(self, output: str) -> list[str]:
        return [self._operand(number) for number in self._function.outputs[output]]

    def _operand(self, number: Number) -> str:
        if number.operator == CONSTANT:
            return f"full(like, {_literal(number)}, {_TYPES[number.dtype]})"
        if number.operator == INPUT:
            kind, _, index = number.name.removesuffix("]").partition("[")
            return {"parameter": f"p[{index}]", "field": f"s[{index}]", "uniform": f"u[{index}]"}.get(kind, kind)
        return self._names[id(number)]

    def _expression(self, number: Number) -> str:
        operands, operator = [self._operand(operand) for operand in number.operands], number.operator
        if operator in _INFIX:
            # A plain number takes the type of what it meets; two of them would take one of their own.
            plain = [operand.operator == CONSTANT and operand.dtype != torch.bool for operand in number.operands]
            if sum(plain) == 1:
                operands[plain.index(True)] = _literal(number.operands[plain.index(True)])
            return f"{operands[0]} {_INFIX[operator]} {operands[1]}"
        if operator in ("neg", "not"):
            return f"{'-' if operator == 'neg' else '~'}{operands[0]}"
        if operator == CAST:
            return f"{operands[0]} != 0" if number.dtype == torch.bool else f"{operands[0]}.to({_TYPES[number.dtype]})"
        return f"{_CALLS.get(operator, f'libdevice.{operator}')}({', '.join(operands)})"


def _literal(number: Number) -> str:
    value = number.value
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)
