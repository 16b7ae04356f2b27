"""Print a family's scalar programs as C++: a struct whose functions work on one environment or on many side by side.

Its functions are templates over `Lanes` (`cpu/lanes.h`), so that one text serves single environments and vectors of
them; `cpu/program.cpp` includes it.
"""

from __future__ import annotations

import math

import torch

from torchq.engines.codegen.scalars import (
    CAST,
    COMPARISONS,
    CONSTANT,
    INPUT,
    SELECT,
    FamilyProgram,
    Function,
    Number,
)

_LANES = {torch.float32: "f32", torch.float64: "f64", torch.int32: "i32", torch.int64: "i64", torch.bool: "mask"}
_SCALARS = {torch.float32: "float", torch.float64: "double", torch.int32: "int32_t", torch.int64: "int64_t"}
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
_OWN = {"minimum": "minimum", "maximum": "maximum", "remainder": "modulo", "abs": "absolute", "not": "invert",
        SELECT: "choose"}  # fmt: skip
_LIBRARY = {"round": "rint"}
"""Functions of the C library; the others have the name of their operator."""


def family(program: FamilyProgram) -> str:
    """The struct `Family` of a program."""
    fields = [_LANES[dtype] for dtype in program.field_types]
    counts = {
        "FIELDS": len(fields), "PARAMETERS": program.num_parameters,
        "STEP_UNIFORMS": len(program.step.inputs["uniforms"]),
        "RESET_UNIFORMS": len(program.reset.inputs["uniforms"]),
        "DIMENSIONS": len(program.observe.outputs["observation"]),
    }  # fmt: skip
    members = "".join(f" typename L::{lanes} f{i};" for i, lanes in enumerate(fields))
    kinds = ["mask" if lanes == "mask" else "lanes" for lanes in fields]
    loads = ", ".join(
        f"load_{kind}<typename L::{lanes}>(from[{i}], at, count)"
        for i, (kind, lanes) in enumerate(zip(kinds, fields, strict=True))
    )
    stores = " ".join(f"store_{kind}(f{i}, to[{i}], at, count);" for i, kind in enumerate(kinds))
    chosen = ", ".join(f"::choose(chosen, yes.f{i}, no.f{i})" for i in range(len(fields)))
    observe, step, reset = (_Printed(function) for function in (program.observe, program.step, program.reset))
    observed = "\n".join(f"    observation[{i}] = {x};" for i, x in enumerate(observe["observation"]))
    moved = "\n".join(f"    after.f{i} = {x};" for i, x in enumerate(step["fields"]))
    outcome = ", ".join(x for name in ("reward", "terminated", "truncated") for x in step[name])
    return f"""\
// {program.name}, generated from its torch functions.
struct Family {{
  static constexpr int {", ".join(f"{name} = {count}" for name, count in counts.items())};
  static constexpr bool TERMINATES = {str(program.terminates).lower()};

  template <class L> struct State {{
   {members}
    static State load(void *const *from, int64_t at, int count) {{ return {{{loads}}}; }}
    void store(void *const *to, int64_t at, int count) const {{ {stores} }}
    static State choose(typename L::mask chosen, const State &yes, const State &no) {{ return {{{chosen}}}; }}
  }};

  template <class L> static inline void observe(const State<L> &s, typename L::r *observation) {{
{observe.body}
{observed}
  }}

  template <class L>
  static inline Outcome<L> step(const typename L::r *p, const State<L> &s, typename L::i64 action,
                                const typename L::r *u, State<L> &after) {{
{step.body}
{moved}
    return {{{outcome}}};
  }}

  template <class L> static inline State<L> reset(const typename L::r *p, const typename L::r *u) {{
{reset.body}
    return {{{", ".join(reset["fields"])}}};
  }}
}};
"""


class _Printed:
    """A function as statements, and what its outputs are called after them."""

    def __init__(self, function: Function) -> None:
        self._names: dict[int, str] = {}
        self._function = function
        lines = []
        for i, number in enumerate(function.in_order()):
            lines.append(f"    const typename L::{_LANES[number.dtype]} v{i} = {self._expression(number)};")
            self._names[id(number)] = f"v{i}"
        self.body = "\n".join(lines)

    def __getitem__(self, output: str) -> list[str]:
        return [self._operand(number) for number in self._function.outputs[output]]

    def _operand(self, number: Number) -> str:
        if number.operator == CONSTANT:
            return _constant(number)
        if number.operator == INPUT:
            kind, _, index = number.name.removesuffix("]").partition("[")
            return {"parameter": f"p[{index}]", "field": f"s.f{index}", "uniform": f"u[{index}]"}.get(kind, kind)
        return self._names[id(number)]

    def _expression(self, number: Number) -> str:
        operands = [self._operand(operand) for operand in number.operands]
        operator, lanes = number.operator, f"typename L::{_LANES[number.dtype]}"
        if operator in COMPARISONS:
            return f"mask<{lanes}>({operands[0]} {_INFIX[operator]} {operands[1]})"
        if operator in _INFIX:
            return f"{operands[0]} {_INFIX[operator]} {operands[1]}"
        if operator == "neg":
            return f"-{operands[0]}"
        if operator == CAST:
            return _cast(number.operands[0], operands[0], number.dtype)
        if operator in _OWN:
            return f"{_OWN[operator]}({', '.join(operands)})"
        names = ["x", "y"][: len(operands)]
        arguments = ", ".join(f"{_SCALARS[number.dtype]} {name}" for name in names)
        called = f"std::{_LIBRARY.get(operator, operator)}({', '.join(names)})"
        return f"map({', '.join(operands)}, []({arguments}) {{ return {called}; }})"


def _constant(number: Number) -> str:
    value, lanes = number.value, f"typename L::{_LANES[number.dtype]}"
    if number.dtype == torch.bool:
        return f"all<{lanes}>({str(bool(value)).lower()})"
    if isinstance(value, float) and not math.isfinite(value):
        text = "NAN" if math.isnan(value) else f"{'-' if value < 0 else ''}INFINITY"
    else:
        text = value.hex() if isinstance(value, float) else str(value)
    return f"fill<{lanes}>({text})"


def _cast(source: Number, operand: str, dtype: torch.dtype) -> str:
    lanes = f"typename L::{_LANES[dtype]}"
    if source.dtype == torch.bool:
        return f"from_mask<{lanes}>({operand})"
    if dtype == torch.bool:
        return f"mask<{lanes}>({operand} != fill<typename L::{_LANES[source.dtype]}>(0))"
    return f"convert<{_SCALARS[dtype]}>({operand})"
