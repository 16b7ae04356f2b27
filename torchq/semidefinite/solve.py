"""Solve a batch of small semidefinite programs, differentiably."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.semidefinite import derivatives, interior_point, polish, processor
from torchq.semidefinite.program import Block, Point, Program, Solution, Status, adjoint, objective, terms, values

TOLERANCE = 1e-10
ITERATIONS = 50
_ACCEPTED = 100.0
"""Times the tolerance, where rounding allows no more."""
_CERTAIN = 1e-6
"""Of a certificate: an instance is infeasible if no z with |z|₁ below 1/this meets its inequalities."""


Report = Callable[[Tensor, Tensor], None]


@torch.compiler.disable
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
    batch = _check(program)
    parts = [program.c, program.A, program.b, *(part for block in program.blocks for part in block)]
    owned = [1, 2, 1, *[2, 3] * len(program.blocks)]
    tensors = [_flat(part, own, batch) for part, own in zip(parts, owned, strict=True)]
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    settings = _Settings(tolerance, iterations, wanted if polish is None else polish, alone, report)
    z, *rest = _Solve.apply(settings, *tensors)
    z, w, cost, gap, primal, dual, taken, status, error, *Y = (
        field.reshape((*batch, *field.shape[1:])) for field in (z, *rest)
    )
    return Solution(z, w, tuple(Y), cost, gap, primal, dual, taken, status, error)


@lru_cache(maxsize=1)
def for_processors() -> ModuleType:
    """The method in C++, or where that cannot be compiled the one in torch operations, with a warning."""
    try:
        processor.library()
    except (RuntimeError, OSError) as error:
        slower = "semidefinite programs are solved in torch operations, which takes longer"
        warnings.warn(f"{slower}: {error}", stacklevel=2)
        return interior_point
    return processor


class _Settings(NamedTuple):
    tolerance: float
    iterations: int
    polish: bool
    alone: bool
    report: Report | None


class _Solve(torch.autograd.Function):
    """Tensors of a program, each (batch, …), to those of its solution."""

    @staticmethod
    def forward(settings: _Settings, *tensors: Tensor) -> tuple[Tensor, ...]:
        program, batch = _program(tensors), len(tensors[0])
        for number, block in enumerate(program.blocks):
            for name, part in zip(Block._fields, block, strict=True):
                if not _is_symmetric(part):
                    raise ValueError(f"blocks[{number}].{name}: expected symmetric matrices; use (M + M.mT) / 2")
        method = for_processors() if program.c.device.type == "cpu" else interior_point
        point = method.solve(program, batch, settings.tolerance, settings.iterations, alone=settings.alone)
        status = judge(program, point)
        error = torch.full_like(point.merit, torch.nan)
        if settings.polish:
            usable = status <= Status.INACCURATE
            exact = polish.polish(*_tidy(program, point.z, point.w, point.Y, usable))
            z, w = (torch.where(usable.unsqueeze(-1), x, y) for x, y in ((exact.z, point.z), (exact.w, point.w)))
            Y = tuple(torch.where(usable[:, None, None], x, y) for x, y in zip(exact.Y, point.Y, strict=True))
            point, error = point._replace(z=z, w=w, Y=Y), torch.where(usable, exact.error, torch.nan)
        if settings.report is not None:
            settings.report(status, error)
        return (*_described(program, point, status), error, *point.Y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, w, status = output[0], output[1], output[7]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(z, w, status, *output[9:], *inputs[1:])

    @staticmethod
    def backward(ctx: Any, of_z: Tensor, *_: Any) -> tuple[Any, ...]:
        return None, *_Gradients.apply(of_z, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, settings: _Settings, *tensors: Tensor) -> tuple[Any, Any]:
        found = _Solve.apply(settings, *_merged(info.batch_size, in_dims[1:], tensors))
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in found), (0,) * len(found)


class _Gradients(torch.autograd.Function):
    """A gradient with respect to z, a solution's z, w, status and Y, and its program's tensors, to their gradients."""

    @staticmethod
    def forward(of_z: Tensor, z: Tensor, w: Tensor, status: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = (len(rest) - 3) // 3
        program = _program(rest[count:])
        usable = status <= Status.INACCURATE
        program, z, w, Y = _tidy(program, z, w, rest[:count], usable)
        of_z = torch.where(usable.unsqueeze(-1), of_z, 0.0)
        found = derivatives.gradients(program, z, w, Y, derivatives.active(program, z, w, Y), of_z)
        return found.c, found.A, found.b, *(part for block in found.blocks for part in block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("solutions of semidefinite programs have first derivatives alone: detach their gradients")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *tensors: Tensor) -> tuple[Any, Any]:
        found = _Gradients.apply(*_merged(info.batch_size, in_dims, tensors))
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in found), (0,) * len(found)


def _merged(size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of a batch of batches as those of one batch."""
    moved = (
        tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    )
    return [tensor.flatten(0, 1) for tensor in moved]


def _flat(part: Tensor, own: int, batch: tuple[int, ...]) -> Tensor:
    """One batch dimension, that of what all instances share without a stride."""
    shape = part.shape[part.dim() - own :]
    count = torch.Size(batch).numel()
    if part.shape[: part.dim() - own].numel() == 1:
        return part.reshape(shape).expand(count, *shape)
    return part.expand(*batch, *shape).reshape(count, *shape)


def _program(tensors: Sequence[Tensor]) -> Program:
    """The program, what all instances share without its batch dimension."""
    c, A, b, *rest = (part[0] if len(part) > 1 and part.stride(0) == 0 else part for part in tensors)
    return Program(c, A, b, tuple(Block(C, L) for C, L in zip(rest[::2], rest[1::2], strict=True)))


def judge(program: Program, point: Point) -> Tensor:
    """`Status` of each instance, (batch,)."""
    status = torch.where(point.merit <= _ACCEPTED, int(Status.SOLVED), int(Status.INACCURATE))
    lost = point.merit > interior_point.POOR
    if lost.device.type == "cpu" and not lost.any():  # Elsewhere asking would wait for the device.
        return torch.where(_finite(program, len(status)), status, int(Status.NOT_FINITE))
    against = torch.zeros_like(point.merit)
    balance = torch.zeros_like(point.z)
    for block, Y in zip(program.blocks, point.Y, strict=True):
        against = against - (block.C * Y).sum((-2, -1))
        balance = balance + adjoint(block, Y)
    # Any z that meets the inequalities has 0 ≤ Σ ⟨F(z), Y⟩ = −against + zᵀ balance.
    infeasible = lost & (against > 0) & (balance.abs().amax(-1) < _CERTAIN * against)
    length = point.z.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    ray = point.z / length
    rate = objective(program._replace(b=torch.zeros_like(program.b)), ray)
    unbounded = lost & (rate < 0)
    for block in program.blocks:
        change = torch.nan_to_num(terms(block, ray))
        unbounded = unbounded & (torch.linalg.eigvalsh(change)[:, 0] > -_CERTAIN * rate.abs())
    status = torch.where(unbounded, int(Status.UNBOUNDED), status)
    status = torch.where(infeasible, int(Status.INFEASIBLE), status)
    return torch.where(_finite(program, len(status)), status, int(Status.NOT_FINITE))


def _finite(program: Program, batch: int) -> Tensor:
    """Whether all data of an instance are finite, (batch,)."""
    parts = [(program.c, 1), (program.A, 2), (program.b, 1)]
    for block in program.blocks:
        parts += [(block.C, 2), (block.L, 3)]
    finite = torch.ones(batch, dtype=torch.bool, device=program.c.device)
    for part, own in parts:
        finite = finite & torch.isfinite(part).flatten(part.dim() - own).all(-1)
    return finite


def _tidy(
    program: Program, z: Tensor, w: Tensor, Y: Sequence[Tensor], usable: Tensor
) -> tuple[Program, Tensor, Tensor, tuple[Tensor, ...]]:
    """A program and its solution, with zeros in place of instances that have none."""

    def tidy(part: Tensor, own: int) -> Tensor:
        part = part.expand(len(usable), *part.shape[part.dim() - own :])
        return torch.where(usable.view(-1, *[1] * own), part, 0.0)

    def shared(L: Tensor) -> Tensor:
        return L if L.dim() == 3 and bool(torch.isfinite(L).all()) else tidy(L, 3)

    blocks = tuple(Block(tidy(block.C, 2), shared(block.L)) for block in program.blocks)
    tidied = Program(tidy(program.c, 1), tidy(program.A, 2), tidy(program.b, 1), blocks)
    return tidied, tidy(z, 1), tidy(w, 1), tuple(tidy(matrix, 2) for matrix in Y)


def _described(program: Program, point: Point, status: Tensor) -> tuple[Tensor, ...]:
    """The fields of a `Solution` but for error and Y."""
    z, w = point.z, point.w
    cost = objective(program, z)
    dual = program.c + (program.A.mT @ w.unsqueeze(-1)).squeeze(-1)
    value = -(program.b * w).sum(-1)
    primal = torch.zeros_like(cost)
    for block, Y in zip(program.blocks, point.Y, strict=True):
        dual = dual - adjoint(block, Y)
        value = value - (block.C * Y).sum((-2, -1))
        primal = torch.maximum(primal, -torch.linalg.eigvalsh(torch.nan_to_num(values(block, z)))[:, 0])
    dual_residual = dual.abs().amax(-1)
    gap = (cost - value).abs() + dual_residual * z.abs().sum(-1)
    infeasible, unbounded = status == Status.INFEASIBLE, status == Status.UNBOUNDED
    none = infeasible | (status == Status.NOT_FINITE)
    z = torch.where(none.unsqueeze(-1), torch.nan, z)
    cost = torch.where(infeasible, torch.inf, torch.where(unbounded, -torch.inf, cost))
    return z, w, cost, gap, primal, dual_residual, point.iterations, status


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
    try:
        return tuple(torch.broadcast_shapes(*batches))
    except RuntimeError:
        came = ", ".join(f"{name} {tuple(batch)}" for (name, *_), batch in zip(named, batches, strict=True))
        raise ValueError(f"program: expected batch dimensions that fit each other, got {came}") from None


def _is_symmetric(matrix: Tensor) -> bool:
    """Whether matrices that are finite are symmetric."""
    off = (matrix - matrix.mT).abs()
    return not bool((off > 1e-9 * matrix.abs().amax((-2, -1), keepdim=True)).any())
