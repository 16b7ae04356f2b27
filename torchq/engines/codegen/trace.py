"""Trace a family's `step`, `reset` and `observe` to scalar programs: run them on small tensors that remember.

The functions run once on `Lanes`, tensors of a small batch (seeds, tasks, envs) that carry, for every element behind
the batch axes, the `Number` that one environment computes. What they call arrives here as ATen operators: elementwise
ones follow `lowering`, those that stack, select or copy move numbers about, and any other is named in an error, as is a
value that steers Python's control flow. (`make_fx` records the same operators, but its first use loads half of torch's
compiler: 0.9 s.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchq.engines.codegen import lowering
from torchq.engines.codegen.scalars import INPUT, FamilyProgram, Function, Number, constant

_BATCH = (2, 3, 7)
"""Seeds, tasks and environments of the trial batch: unequal, so that axes cannot be mistaken."""


class TranslationError(Exception):
    """A function of a family has no scalar form; the message says which operator is in the way."""


class Lanes(Tensor):
    """A tensor of a batch with the number that each environment computes, for each element behind the batch axes."""

    tensor: Tensor
    numbers: np.ndarray
    """Objects, of the shape behind the batch axes."""

    @staticmethod
    def wrap(tensor: Tensor, numbers: Any) -> Lanes:
        """Lanes of a tensor."""
        made = Tensor._make_wrapper_subclass(Lanes, tensor.shape, dtype=tensor.dtype, device=tensor.device)
        made.tensor, made.numbers = tensor, _array(numbers)
        return made

    @property
    def batch_dims(self) -> int:
        """Axes that environments are laid out along."""
        return self.tensor.dim() - self.numbers.ndim

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Apply an ATen operator to the tensors, and its rule to the numbers."""
        name = str(function).removeprefix("aten.")
        kind = name.partition(".")[0]
        kwargs = kwargs or {}
        if kind in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise TranslationError("it reads a value, so that Python's control flow depends on data; use torch.where")
        if kind.endswith("_") and not kind.startswith("_"):
            raise TranslationError(f"aten.{name} changes a tensor in place; assign its result to a new name")
        if function.is_view or kind in _MOVES:
            plain = _MOVES.get(kind)
        else:
            plain = _elementwise if lowering.rule(kind) else _FILLS.get(kind)
        if plain is None:
            raise TranslationError(f"aten.{name} has no scalar form")
        result = function(*_tensors(args), **_tensors(kwargs))
        try:
            return plain(kind, result, *args, **kwargs)
        except NotImplementedError as error:
            raise TranslationError(f"aten.{name} has no scalar form: {error}") from None


def _array(numbers: Any) -> np.ndarray:
    """Numbers as an array of objects."""
    if isinstance(numbers, np.ndarray):
        return numbers
    array = np.empty((), dtype=object)
    array[()] = numbers
    return array


def _tensors(tree: Any) -> Any:
    """Arguments with the plain tensors in the place of lanes."""
    if isinstance(tree, Lanes):
        return tree.tensor
    if isinstance(tree, dict):
        return {name: _tensors(child) for name, child in tree.items()}
    return type(tree)(map(_tensors, tree)) if isinstance(tree, (list, tuple)) else tree


def _operand(argument: Any) -> np.ndarray:
    """Numbers of an argument: of lanes their own, of a plain tensor its only value."""
    if isinstance(argument, Lanes):
        return argument.numbers
    if isinstance(argument, Tensor):
        values = argument.unique()
        if len(values) != 1:
            raise NotImplementedError("a table of constants")
        return _array(constant(values.item(), argument.dtype))
    return _array(argument)


def _elementwise(kind: str, result: Tensor, *args: Any, **kwargs: Any) -> Lanes:
    behind = {argument.numbers.ndim for argument in args if isinstance(argument, Lanes)}
    if len(behind) != 1:
        raise NotImplementedError("operands with and without an axis behind the batch")
    kwargs = {name: value for name, value in kwargs.items() if name in ("alpha", "rounding_mode", "decimals")}
    rule = lowering.rule(kind)
    assert rule is not None
    operands = np.broadcast_arrays(*map(_operand, args))
    numbers = np.empty(operands[0].shape, dtype=object)
    for place in np.ndindex(numbers.shape):
        numbers[place] = rule(result.dtype, *(operand[place] for operand in operands), **kwargs)
    return Lanes.wrap(result, numbers)


def _filled(kind: str, result: Tensor, like: Lanes, *args: Any, **kwargs: Any) -> Lanes:
    value = {"zeros_like": 0, "ones_like": 1}.get(kind, args[0] if args else 0)
    numbers = np.empty(like.numbers.shape, dtype=object)
    numbers.fill(constant(value, result.dtype))
    return Lanes.wrap(result, numbers)


def _same(kind: str, result: Tensor, x: Lanes, *args: Any, **kwargs: Any) -> Lanes:
    if result.shape[result.dim() - x.numbers.ndim :] != x.shape[x.batch_dims :]:
        raise NotImplementedError("the axes behind the batch change")
    return Lanes.wrap(result, x.numbers)


def _behind(x: Lanes, dim: int, *, new: bool = False) -> int:
    """An axis of the tensor as one of its numbers."""
    axis = dim % (x.dim() + new) - x.batch_dims
    if axis < 0:
        raise NotImplementedError("it works along an axis of the batch")
    return axis


def _select(kind: str, result: Tensor, x: Lanes, dim: int, index: int) -> Lanes:
    return Lanes.wrap(result, _array(x.numbers.take(index, axis=_behind(x, dim))))


def _unbind(kind: str, result: Any, x: Lanes, dim: int = 0) -> list[Lanes]:
    axis = _behind(x, dim)
    return [Lanes.wrap(part, _array(x.numbers.take(i, axis=axis))) for i, part in enumerate(result)]


def _slice(kind: str, result: Tensor, x: Lanes, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Lanes:  # fmt: skip
    if result.shape == x.shape:
        return Lanes.wrap(result, x.numbers)
    chosen = range(x.shape[dim])[slice(start, end, step)]
    return Lanes.wrap(result, x.numbers.take(list(chosen), axis=_behind(x, dim)))


def _unsqueeze(kind: str, result: Tensor, x: Lanes, dim: int) -> Lanes:
    return Lanes.wrap(result, np.expand_dims(x.numbers, _behind(x, dim, new=True)))


def _squeeze(kind: str, result: Tensor, x: Lanes, dim: int) -> Lanes:
    return Lanes.wrap(result, np.squeeze(x.numbers, axis=_behind(x, dim)))


def _stack(kind: str, result: Tensor, parts: list[Any], dim: int = 0) -> Lanes:
    x = next(part for part in parts if isinstance(part, Lanes))
    axis = _behind(x, dim, new=kind == "stack")
    shape = result.shape[result.dim() - x.numbers.ndim - (kind == "stack") :]
    arrays = [np.broadcast_to(_operand(part), x.numbers.shape) if kind == "stack" else part.numbers for part in parts]
    joined = np.stack(arrays, axis) if kind == "stack" else np.concatenate(arrays, axis)
    assert joined.shape == shape
    numbers = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        numbers[place] = lowering.number(joined[place], result.dtype)  # type: ignore[arg-type]
    return Lanes.wrap(result, numbers)


_MOVES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("alias", "detach", "clone", "expand", "contiguous", "view_as", "lift_fresh"), _same),
    **dict.fromkeys(("stack", "cat"), _stack),
    "select": _select, "unbind": _unbind, "slice": _slice, "unsqueeze": _unsqueeze, "squeeze": _squeeze,
}  # fmt: skip
_FILLS = dict.fromkeys(("zeros_like", "ones_like", "full_like"), _filled)


def trace_family(env: Any, tasks: Any, state: Any, dtype: torch.dtype) -> FamilyProgram:
    """Scalar programs of a family.

    Args:
        env: with `step`, `reset` and `observe`.
        tasks: a parameters dataclass of tensors; its type and fields count.
        state: an environment state; its type and the types of its fields count.
        dtype: of the uniforms, the reward and the parameters.

    Raises:
        TranslationError: naming the function and the operator that has no scalar form.
    """
    with torch.no_grad():
        step = _traced(env, "step", lambda: _step(env, tasks, state, dtype))
        reset = _traced(env, "reset", lambda: _reset(env, tasks, dtype))
        observe = _traced(env, "observe", lambda: _observe(env, state, dtype))
    return FamilyProgram(type(env).__name__, reset, step, observe, env.terminates)


def _traced(env: Any, name: str, body: Callable[[], Function]) -> Function:
    try:
        return body()
    except TranslationError as error:
        raise TranslationError(f"{type(env).__name__}.{name}: {error}") from None
    except Exception as error:  # Whatever a user's function raises on a batch that it does not expect.
        line = str(error).strip().partition("\n")[0]
        raise TranslationError(f"{type(env).__name__}.{name} failed on a batch of {_BATCH}: {line}") from error


def _input(name: str, dtype: torch.dtype, shape: tuple[int, ...] = _BATCH, count: int | None = None) -> Lanes:
    """Inputs of a function: one number a lane, or `count` behind the batch axes."""
    whole = dtype in (torch.int32, torch.int64)
    tensor = torch.ones(*shape, *(() if count is None else (count,)), dtype=dtype)
    tensor = tensor if whole or dtype == torch.bool else tensor * 0.5
    if count is None:
        return Lanes.wrap(tensor, Number(INPUT, dtype, name=name))
    numbers = np.empty(count, dtype=object)
    numbers[:] = [Number(INPUT, dtype, name=f"{name}[{i}]") for i in range(count)]
    return Lanes.wrap(tensor, numbers)


def _parameters(tasks: Any, dtype: torch.dtype) -> Any:
    names = [field.name for field in dataclasses.fields(tasks)]
    values = {name: _input(f"parameter[{i}]", dtype, (_BATCH[1], 1)) for i, name in enumerate(names)}
    return type(tasks)(**values)


def _fields(state: Any) -> Any:
    return type(state)(*(_input(f"field[{i}]", field.dtype) for i, field in enumerate(state)))


def _numbers(what: str, found: Any, dtypes: tuple[torch.dtype, ...] | None = None) -> tuple[Number, ...]:
    """Numbers of a function's results, which must be of the types that they replace."""
    numbers = []
    for i, result in enumerate(found):
        operand = _operand(result)
        if operand.ndim or not isinstance(result, Tensor):
            raise TranslationError(f"{what} {i}: expected a tensor of the batch, got {lowering.describe(result)}")
        single: Any = operand[()]
        if dtypes and single.dtype != dtypes[i]:
            raise TranslationError(f"{what} {i} becomes {single.dtype}, but was {dtypes[i]}")
        numbers.append(single)
    return tuple(numbers)


def _given(tree: Any) -> tuple[Number, ...]:
    return tuple(lanes.numbers[()] for lanes in tree)


def _step(env: Any, tasks: Any, state: Any, dtype: torch.dtype) -> Function:
    parameters, fields = _parameters(tasks, dtype), _fields(state)
    action, uniforms = _input("action", torch.int64), _input("uniform", dtype, count=env.num_step_uniforms)
    following, reward, terminated, truncated = env.step(parameters, fields, action, uniforms)
    inputs = {"parameters": _given(vars(parameters).values()), "fields": _given(fields), "action": _given([action]),
              "uniforms": tuple(uniforms.numbers)}  # fmt: skip
    outputs = {"fields": _numbers("field", following, tuple(field.dtype for field in state)),
               "reward": (lowering.number(_numbers("reward", [reward])[0], dtype),),
               "terminated": _numbers("terminated", [terminated], (torch.bool,)),
               "truncated": _numbers("truncated", [truncated], (torch.bool,))}  # fmt: skip
    return Function(inputs, outputs)


def _reset(env: Any, tasks: Any, dtype: torch.dtype) -> Function:
    parameters, uniforms = _parameters(tasks, dtype), _input("uniform", dtype, count=env.num_reset_uniforms)
    inputs = {"parameters": _given(vars(parameters).values()), "uniforms": tuple(uniforms.numbers)}
    return Function(inputs, {"fields": _numbers("field", env.reset(parameters, uniforms))})


def _observe(env: Any, state: Any, dtype: torch.dtype) -> Function:
    fields = _fields(state)
    observation = env.observe(fields)
    if not isinstance(observation, Lanes) or observation.numbers.ndim != 1:
        raise TranslationError("expected the observation's dimensions behind the batch axes (torch.stack, dim=-1)")
    return Function(
        {"fields": _given(fields)}, {"observation": tuple(lowering.number(x, dtype) for x in observation.numbers)}
    )


def untranslatable(family: Any, tasks: Any, state: Any) -> str | None:
    """Why a family has no scalar form, in one line; None if it has: what `envs.check_family` asks."""
    try:
        trace_family(family, tasks, state, torch.float64)
    except TranslationError as error:
        return str(error).strip().partition("\n")[0]
    return None
