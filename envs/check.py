"""Whether a family keeps the contract of `envs.base`: every fault in one line, with its remedy.

    envs.check_family(MyFamily())

What only torchq can tell, whether its engines translate the family, comes by the entry point `torchq.family_checks`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from . import base
from .blame import where

_SHAPE = (2, 3, 4)
"""Seeds, tasks and environments: unequal, so that axes cannot be mistaken."""
_NAMES = (
    "name", "terminates", "episode_length", "num_reset_uniforms", "num_step_uniforms", "sample_tasks", "reset", "step",
    "observe",
)  # fmt: skip
_GRID = ("num_actions", "grid_low", "grid_high", "grid_sizes")
_KINDS = ("continuous", "periodic", "quadratic", "log", "category")


class FamilyError(ValueError):
    """A family does not keep the contract; a line for each fault."""


def check_family(family: Any) -> None:
    """Play a family at random and see that it keeps the contract.

    Args:
        family: an environment, with discrete actions or, where it has `features`, a continuous control.

    Raises:
        FamilyError: with a line for each fault.
    """
    if faults := find_faults(family):
        raise FamilyError("\n".join(faults))


def find_faults(family: Any) -> list[str]:
    """What is wrong with a family, a line each; no check is made that cannot be, after a fault before it."""
    found: list[str] = []
    for check in (_attributes, _tasks, _shapes, _grid, _purity, _played, _independence, _devices, _translation):
        try:
            found += check(family)
        except Exception as error:  # Whatever a user's code raises.
            reason = str(error).strip().partition("\n")[0]
            found.append(f"{check.__name__[1:]}: its code fails: {type(error).__name__}: {reason}{where(error)}")
        if found:
            return found
    return found


def _attributes(family: Any) -> Iterator[str]:
    names = _NAMES if hasattr(family, "features") else (*_NAMES, *_GRID)
    for name in names:
        if not hasattr(family, name):
            yield f"{name}: expected an attribute of {type(family).__name__}, got none; see envs/base.py"
    if not getattr(getattr(family, "__dataclass_params__", None), "frozen", False):
        yield (
            "family: expected a frozen dataclass, whose constants name what is cached of it; put "
            "@dataclass(frozen=True) above the class"
        )


def _tasks(family: Any) -> Iterator[str]:
    for count in (1, 3, 9):
        tasks = family.sample_tasks(count)
        if len(tasks) != count:
            yield f"sample_tasks: expected {count} tasks for sample_tasks({count}), got {len(tasks)}"
    first = family.sample_tasks()[0]
    if not dataclasses.is_dataclass(first):
        yield f"sample_tasks: expected dataclasses of numbers, got {type(first).__name__}"
        return
    for name, value in vars(first).items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            yield f"sample_tasks: expected a finite number for {name}, got {value!r}"
    said = getattr(family, "parameters", None)
    if said is not None and len(said) != len(vars(first)):
        yield f"parameters: expected {len(vars(first))}, one for each of {', '.join(vars(first))}, got {len(said)}"


def _shapes(family: Any) -> Iterator[str]:
    for dtype in (torch.float64, torch.float32):
        tasks, state, action, uniforms = _start(family, dtype)
        if not isinstance(state, tuple) or not hasattr(state, "_fields") or "elapsed" not in state._fields:
            yield f"reset: expected a NamedTuple of tensors with a field elapsed, got {type(state).__name__}"
            return
        if bool((state[state._fields.index("elapsed")] != 0).any()):
            yield "reset: expected elapsed of 0 at the start of an episode; count steps from the reset"
        for name, field in zip(state._fields, state, strict=True):
            yield from _is(f"reset: {name}", field, _SHAPE)
        stepped = family.step(tasks, state, action, uniforms)
        if not isinstance(stepped, tuple) or len(stepped) != 4:
            yield f"step: expected (state, reward, terminated, truncated), got {type(stepped).__name__}"
            return
        following, reward, terminated, truncated = stepped
        for name, before, after in zip(state._fields, state, following, strict=True):
            yield from _is(f"step: {name}", after, _SHAPE, before.dtype)
        yield from _is("step: reward", reward, _SHAPE, dtype)
        yield from _is("step: terminated", terminated, _SHAPE, torch.bool)
        yield from _is("step: truncated", truncated, _SHAPE, torch.bool)
        seen = family.observe(state)
        if seen.shape[:-1] != torch.Size(_SHAPE) or seen.dim() != 4:
            yield f"observe: expected (seeds, tasks, envs, dimensions), {_SHAPE} and one more, got {tuple(seen.shape)}"
        elif seen.dtype != dtype:
            yield f"observe: expected {dtype}, as the tasks, got {seen.dtype}; take the type from what came"


def _is(what: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Iterator[str]:
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        came = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        yield f"{what}: expected a tensor of the batch (seeds, tasks, envs), {shape}, got {came}; use torch.zeros_like"
    elif dtype is not None and tensor.dtype != dtype:
        yield f"{what}: expected {dtype}, got {tensor.dtype}; take the type from what came, not from a constant"


def _grid(family: Any) -> Iterator[str]:
    _, state, *_ = _start(family, torch.float64)
    count = family.observe(state).shape[-1]
    names = [name for name in ("grid_low", "grid_high", "grid_sizes", "dimensions") if hasattr(family, name)]
    for name in (*names, *(f"observation_{end}" for end in ("low", "high") if hasattr(family, f"observation_{end}"))):
        if len(getattr(family, name)) != count:
            came = getattr(family, name)
            yield f"{name}: expected {count} values, one for each number of the observation, got {came}"
    if hasattr(family, "grid_low"):
        for low, high, size in zip(family.grid_low, family.grid_high, family.grid_sizes, strict=False):
            if not (isinstance(size, int) and size >= 1 and (low < high or size == 1)):
                yield f"grid: expected low < high and a whole number of points, got {low}, {high} and {size}"
    for dimension in (*getattr(family, "dimensions", ()), *getattr(family, "parameters", ())):
        if dimension.kind not in _KINDS or dimension.points < 1 or not dimension.low < dimension.high:
            kinds = ", ".join(_KINDS)
            yield f"dimensions, parameters: expected low < high, points and a kind of {kinds}, got {dimension}"
    if hasattr(family, "num_actions") and (not isinstance(family.num_actions, int) or family.num_actions < 1):
        yield f"num_actions: expected a whole number of at least 1, got {family.num_actions!r}"


def _played(family: Any) -> Iterator[str]:
    """One episode of random actions and somewhat more, in double precision."""
    tasks, state, _, _ = _start(family, torch.float64)
    generator = torch.Generator().manual_seed(1)
    ended, told = torch.zeros(_SHAPE, dtype=torch.bool), set[int]()
    for step in range(1, family.episode_length + 1):
        before = state.elapsed
        state, reward, terminated, truncated = family.step(
            tasks, state, _action(family, generator), _uniforms(family.num_step_uniforms, generator)
        )
        seen, live = family.observe(state), ~ended
        if not bool(torch.isfinite(seen[live]).all()) or not bool(torch.isfinite(reward[live]).all()):
            yield f"step: expected finite observations and rewards, got NaN or infinity at step {step}; clamp the state"
            return
        yield from _bounds(family, seen[live], step, told)
        if bool((state.elapsed != before + 1)[live].any()):
            yield "step: expected elapsed to grow by 1 at each step; return elapsed + 1"
            return
        if bool((terminated & truncated)[live].any()):
            yield "step: expected truncated to be false where terminated is true; use truncated & ~terminated"
            return
        if bool(terminated[live].any()) and not family.terminates:
            yield f"terminates: expected True, for an episode terminated at step {step}"
            return
        late = truncated if step < family.episode_length else ~(truncated | terminated)
        if bool(late[live].any()):
            when = f"at step {family.episode_length}, its episode_length, and not before"
            yield f"truncated: expected {when}, got otherwise at step {step}; compare elapsed with it"
            return
        ended = ended | terminated


def _bounds(family: Any, seen: Tensor, step: int, told: set[int]) -> Iterator[str]:
    """Each number of the observation that leaves its bounds, the first time."""
    if not hasattr(family, "observation_low") or not seen.numel():
        return
    low, high = (seen.new_tensor(getattr(family, f"observation_{end}")) for end in ("low", "high"))
    slack = 1e-9 * (1.0 + high - low).nan_to_num(posinf=1.0)
    for number in (number for number in range(seen.shape[-1]) if number not in told):
        least, most = float(seen[..., number].min()), float(seen[..., number].max())
        if least < low[number] - slack[number] or most > high[number] + slack[number]:
            told.add(number)
            yield (
                f"observation_low, observation_high: expected number {number} between {float(low[number]):g} and "
                f"{float(high[number]):g}, got {least:g} to {most:g} at step {step}; widen them, or clamp the state"
            )


def _purity(family: Any) -> Iterator[str]:
    tasks, state, action, uniforms = _start(family, torch.float64)
    kept = [part.clone() for part in (*state, action, uniforms, *vars(tasks).values())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = [*_flat(family.step(tasks, state, action, uniforms)), family.observe(state)]
        torch.manual_seed(2)
        again = [*_flat(family.step(tasks, state, action, uniforms)), family.observe(state)]
    if not _equal(kept, [*state, action, uniforms, *vars(tasks).values()]):
        yield "step: expected its arguments to stay as they were; use x = x + 1 in the place of x += 1"
    elif not _equal(first, again):
        yield "step: expected equal results from equal arguments; take random numbers from `uniforms` alone"
    first, again = (
        list(family.reset(tasks, _uniforms(family.num_reset_uniforms, torch.Generator().manual_seed(3))))
        for _ in range(2)
    )
    if not _equal(first, again):
        yield "reset: expected equal results from equal arguments; take random numbers from `uniforms` alone"


def _independence(family: Any) -> Iterator[str]:
    """Each environment by itself must be what it is in the batch."""
    tasks, state, action, uniforms = _start(family, torch.float64)
    whole = [*_flat(family.step(tasks, state, action, uniforms)), family.observe(state)]
    for axis, what in enumerate(("seeds", "tasks", "environments")):
        part = slice(1, 2)
        index = tuple(part if number == axis else slice(None) for number in range(3))
        names = [field.name for field in dataclasses.fields(tasks)]
        chosen = type(tasks)(**{n: getattr(tasks, n)[part] if axis == 1 else getattr(tasks, n) for n in names})
        alone = type(state)(*(field[index] for field in state))
        few = [*_flat(family.step(chosen, alone, action[index], uniforms[index])), family.observe(alone)]
        if not all(torch.allclose(a[index].double(), b.double(), atol=1e-12) for a, b in zip(whole, few, strict=True)):
            yield f"step: expected {what} not to depend on each other; no sums or means over the batch's axes"


def _devices(family: Any) -> Iterator[str]:
    """On a device without memory, where a tensor made elsewhere cannot take part."""
    try:
        tasks, state, action, uniforms = (_moved(part) for part in _start(family, torch.float32))
        made = family.reset(tasks, torch.empty(*_SHAPE, family.num_reset_uniforms, device="meta"))
        parts = [*made, *_flat(family.step(tasks, state, action, uniforms)), family.observe(state)]
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "item()" in reason or "is_nonzero" in reason:
            yield f"device: expected no value to be read, as `if` and `.item()` do{where(error)}; use torch.where"
        else:
            yield f"device: expected tensors on the device of the tasks ({reason}); use zeros_like, or what came"
        return
    if wrong := [part for part in parts if part.device.type != "meta"]:
        yield f"device: expected all results on the device of the tasks, got {len(wrong)} on {wrong[0].device}"


def _translation(family: Any) -> Iterator[str]:
    for entry in metadata.entry_points(group="torchq.family_checks"):
        tasks, state, _, _ = _start(family, torch.float64)
        if hasattr(family, "features"):
            continue
        check: Callable[[Any, Any, Any], str | None] = entry.load()
        if reason := check(family, tasks, state):
            yield f"translation: {reason}; the fused engine does not run it (compile and eager do)"


def _start(family: Any, dtype: torch.dtype) -> tuple[Any, Any, Tensor, Tensor]:
    """Three tasks, episodes begun and played for a step, and what another step takes."""
    generator = torch.Generator().manual_seed(0)
    tasks = base.stack_tasks(family.sample_tasks(3), dtype=dtype)
    state = family.reset(tasks, _uniforms(family.num_reset_uniforms, generator).to(dtype))
    uniforms = _uniforms(family.num_step_uniforms, generator).to(dtype)
    return tasks, state, _action(family, generator).to(dtype if hasattr(family, "features") else torch.int64), uniforms


def _uniforms(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*_SHAPE, count, generator=generator, dtype=torch.float64)


def _action(family: Any, generator: torch.Generator) -> Tensor:
    if hasattr(family, "features"):
        return 2.0 * torch.rand(_SHAPE, generator=generator, dtype=torch.float64) - 1.0
    return torch.randint(family.num_actions, _SHAPE, generator=generator)


def _moved(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.to("meta")
    if isinstance(part, tuple):
        return type(part)(*(field.to("meta") for field in part))
    return type(part)(**{name: value.to("meta") for name, value in vars(part).items()})


def _flat(stepped: tuple[Any, ...]) -> list[Tensor]:
    return [*stepped[0], *stepped[1:]]


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(some, others, strict=True))
