"""Solve a batch of small semidefinite programs, differentiably."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite import processor
from torchq.semidefinite.in_torch import InTorch
from torchq.semidefinite.processor import Processor
from torchq.semidefinite.program import Block, Program, Solution, Status
from torchq.semidefinite.quality import judge
from torchq.uncompiled import uncompiled

TOLERANCE = 1e-10
ITERATIONS = 50
LOOSE = 1e-5
"""A stated gap, relative to 1 + |objective|, with which an instance is not solved, however small its errors are."""
_TIGHTER = 1e-2
"""Times the tolerance, before polishing."""
EXACT = 1e-9
"""An error of the optimality conditions, relative to the data, with which a polished instance is solved."""

Report = Callable[[Tensor, Tensor], None]


@uncompiled
def solve(
    program: Program,
    *,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    polish: bool | None = None,
    alone: bool = True,
    report: Report | None = None,
) -> Solution:
    """Solve each program of a batch, on the CPU in C++, elsewhere (or without a compiler) by torch operations.

        min  cᵀz + mean |Az − b|     s.t.  F_j(z) = C_j + Σ_k z_k L_jk ⪰ 0

    The solution z has gradients with respect to c, A, b, C and L, exact where it is differentiable (what is active
    there does not change with the data), those of one side at kinks, and zero for instances without a solution.

    Args:
        program: c (*batch, n), A (*batch, N, n), b (*batch, N), and blocks of C (*batch, d, d) and L (*batch, n, d, d),
            all float64 on one device. What all instances share needs no batch dimensions.
        tolerance: of gap and residuals relative to the data. What rounding keeps above it is solved up to a hundred
            times that, and inaccurate beyond.
        iterations: at most.
        polish: whether to make solutions exact by Newton steps, which derivatives need; None: if gradients are wanted.
        alone: whether on the CPU a few instances may be solved one after the other, which is quicker for many
            residuals, but may leave other last digits than side by side with others.
        report: called with the status and the error of all instances, before anything is returned.

    Raises:
        ValueError: if shapes, types or devices do not fit each other, or a matrix is not symmetric.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance}")
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations: expected a positive integer, got {iterations}")
    batch = _check(program)
    parts = program.parts()
    owned = [1, 2, 1, *[2, 3] * len(program.blocks)]
    tensors = [_flat(part, own, batch) for part, own in zip(parts, owned, strict=True)]
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    settings = _Settings(tolerance, iterations, wanted if polish is None else polish, alone, report)
    # What no gradient goes through goes around autograd, which takes as long as a small program.
    found = (_Solve.apply if wanted or any(map(is_hidden, parts)) else _solved)(settings, *tensors)
    z, w, cost, gap, primal, dual, taken, status, error, *Y = (
        field if len(batch) == 1 else field.reshape((*batch, *field.shape[1:])) for field in found
    )
    return Solution(z, w, tuple(Y), cost, gap, primal, dual, taken, status, error)


def _method(program: Program, batch: int) -> Processor | InTorch:
    """What solves programs where they are."""
    return Processor(program, batch) if program.c.device.type == "cpu" and has_compiler() else InTorch(program, batch)


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Whether the programs in C++ can be had; warns if not."""
    try:
        processor.library()
    except (RuntimeError, OSError) as error:
        slower = "semidefinite programs are solved in torch operations, which takes longer"
        warnings.warn(f"{slower}: {error}", stacklevel=2)
        return False
    return True


class _Settings(NamedTuple):
    tolerance: float
    iterations: int
    polish: bool
    alone: bool
    report: Report | None


def _solved(settings: _Settings, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of a program, each (batch, …), to those of its solution."""
    program = _program(tensors)
    method = _method(program, len(tensors[0]))
    finite, asymmetric = method.look()
    if asymmetric is not None:
        block, name = divmod(asymmetric - 3, 2)
        came = f"blocks[{block}].{Block._fields[name]}"
        raise ValueError(f"{came}: expected symmetric matrices; use (M + M.mT) / 2")
    # What is active shows in the last digits.
    tighter = _TIGHTER if settings.polish else 1.0
    point = method.solve(tighter * settings.tolerance, settings.iterations, alone=settings.alone)
    point = point._replace(merit=tighter * point.merit)
    status = judge(program, point, finite)
    z, w, Y, error = point.z, point.w, point.Y, torch.full_like(point.merit, torch.nan)
    inaccurate = status == Status.INACCURATE
    # On a GPU asking whether any is would wait for it.
    if settings.polish or (z.device.type == "cpu" and inaccurate.any()):
        usable = status <= Status.INACCURATE if settings.polish else inaccurate
        z, w, Y, error = _polished(method, z, w, Y, usable)
    cost, gap, primal, dual = method.describe(z, w, Y)
    size = 1 + cost.abs()
    status = torch.where(inaccurate & (error < EXACT) & (gap < 10 * EXACT * size), int(Status.SOLVED), status)
    status = torch.where((status == Status.SOLVED) & (gap > LOOSE * size), int(Status.INACCURATE), status)
    if settings.report is not None:
        settings.report(status, error)
    infeasible, unbounded = status == Status.INFEASIBLE, status == Status.UNBOUNDED
    z = torch.where((infeasible | (status == Status.NOT_FINITE)).unsqueeze(-1), torch.nan, z)
    cost = torch.where(infeasible, torch.inf, torch.where(unbounded, -torch.inf, cost))
    return z, w, cost, gap, primal, dual, point.iterations, status, error, *Y


def _polished(
    method: Processor | InTorch, z: Tensor, w: Tensor, Y: tuple[Tensor, ...], usable: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Usable solutions made exact, but where that widens the stated gap: then a small multiplier was taken for zero."""
    exact = method.polish(z, w, Y, usable)
    before, after = (method.describe(*one) for one in ((z, w, Y), exact[:3]))
    worse = after.gap > 10 * before.gap + 1e-9 * (1 + before.cost.abs())
    z, w = (torch.where(worse.unsqueeze(-1), one, other) for one, other in ((z, exact[0]), (w, exact[1])))
    Y = tuple(torch.where(worse[:, None, None], one, other) for one, other in zip(Y, exact[2], strict=True))
    return z, w, Y, exact[3]


def is_hidden(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` hides a tensor's numbers."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class _Solve(torch.autograd.Function):
    """`_solved` with derivatives."""

    @staticmethod
    def forward(settings: _Settings, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _solved(settings, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, w, status = output[0], output[1], output[7]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(z, w, status, *output[9:], *inputs[1:])

    @staticmethod
    def backward(ctx: Any, of_z: Tensor, *_: Any) -> tuple[Any, ...]:
        return None, *_Gradients.apply(ctx.needs_input_grad[1:], of_z, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, settings: _Settings, *tensors: Tensor) -> tuple[Any, Any]:
        found = _Solve.apply(settings, *_merged(info.batch_size, in_dims[1:], tensors))
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in found), (0,) * len(found)


class _Gradients(torch.autograd.Function):
    """A gradient with respect to z, a solution's z, w, status and Y, and its program's tensors, to their gradients."""

    @staticmethod
    def forward(
        wanted: tuple[bool, ...], of_z: Tensor, z: Tensor, w: Tensor, status: Tensor, *rest: Tensor
    ) -> tuple[Tensor | None, ...]:
        count = len(rest) - len(wanted)
        method = _method(_program(rest[count:]), len(z))
        return tuple(method.differentiate(z, w, rest[:count], status <= Status.INACCURATE, of_z, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("solutions of semidefinite programs have first derivatives alone: detach their gradients")

    @staticmethod
    def vmap(info: Any, in_dims: Any, wanted: tuple[bool, ...], *tensors: Tensor) -> tuple[Any, Any]:
        found = _Gradients.apply(wanted, *_merged(info.batch_size, in_dims[1:], tensors))
        parted = tuple(None if part is None else part.unflatten(0, (info.batch_size, -1)) for part in found)
        return parted, tuple(None if part is None else 0 for part in found)


def _merged(size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of a batch of batches as those of one batch."""
    moved = (
        tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    )
    return [tensor.flatten(0, 1) for tensor in moved]


def _flat(part: Tensor, own: int, batch: tuple[int, ...]) -> Tensor:
    """One batch dimension, that of what all instances share without a stride."""
    its, shape = part.shape[: part.dim() - own], part.shape[part.dim() - own :]
    count = torch.Size(batch).numel()
    if its.numel() == 1:
        return (part.reshape(shape) if its else part).expand(count, *shape)
    return part if len(batch) == 1 else part.expand(*batch, *shape).reshape(count, *shape)


def _program(tensors: Sequence[Tensor]) -> Program:
    """The program, what all instances share without its batch dimension."""
    c, A, b, *rest = (part[0] if len(part) > 1 and part.stride(0) == 0 else part for part in tensors)
    return Program(c, A, b, tuple(Block(C, L) for C, L in zip(rest[::2], rest[1::2], strict=True)))


def _check(program: Program) -> tuple[int, ...]:
    """The batch dimensions of a program.

    Raises:
        ValueError: if something does not fit.
    """
    n, N = program.c.shape[-1], program.b.shape[-1]
    named = [("c", program.c, (n,)), ("A", program.A, (N, n)), ("b", program.b, (N,))]
    for number, block in enumerate(program.blocks):
        d = block.C.shape[-1]
        named += [(f"blocks[{number}].C", block.C, (d, d)), (f"blocks[{number}].L", block.L, (n, d, d))]
    for name, tensor, own in named:
        if tuple(tensor.shape[tensor.dim() - len(own) :]) != own:
            raise ValueError(
                f"{name}: expected the shape (*batch, {', '.join(map(str, own))}), got {tuple(tensor.shape)}"
            )
        if tensor.dtype != torch.float64 or tensor.device != program.c.device:
            came = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(
                f"{name}: expected torch.float64 on {program.c.device}, got {came}; use .to(torch.float64)"
            )
    batches = [tensor.shape[: tensor.dim() - len(own)] for _, tensor, own in named]
    different = {batch for batch in batches if batch}
    try:
        return tuple(torch.broadcast_shapes(*different) if len(different) > 1 else next(iter(different), ()))
    except RuntimeError:
        came = ", ".join(f"{name} {tuple(batch)}" for (name, *_), batch in zip(named, batches, strict=True))
        raise ValueError(f"program: expected batch dimensions that fit each other, got {came}") from None
