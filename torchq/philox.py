"""Counter-based random numbers: every draw is a pure function of where it is used.

A draw is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) of

    key     = seed                                           (64 bits)
    counter = (step, env, task, purpose · index · step_high)  (4 × 32 bits)

so a run sees the same numbers whatever runs beside it, on any device, and resuming needs no generator state.
The integers and the uniforms are equal bit for bit on every device; the normals to rounding.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK_BITS, _STEP_HIGH_BITS = 12, 12

MAX_STEP = 1 << (32 + _STEP_HIGH_BITS)
MAX_COUNT = 4 << _BLOCK_BITS


class Purpose(IntEnum):
    """What a draw is for; draws for different purposes are independent."""

    INIT = 0
    EXPLORATION = 1
    RESET = 2
    STEP = 3
    AUTORESET = 4
    EVALUATION_RESET = 5
    EVALUATION_STEP = 6
    DATASET = 7
    REPLAY = 8
    HELD_OUT = 9
    TESTED = 10


def _multiply_high_low(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of multiplier · x, in 16-bit halves so that no product leaves int64."""
    low = multiplier * (x & 0xFFFF)
    middle = multiplier * (x >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of 32 random bits from a counter and a key.      [Salmon et al. 2011, §4.3]

    Args:
        counter: four int64 tensors of values in [0, 2³²), broadcast against each other and the key.
        key: two int64 tensors of values in [0, 2³²).

    Returns:
        Four int64 tensors of values in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply_high_low(_MULTIPLIERS[0], c0)
        high_1, low_1 = _multiply_high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _WEYL[0]) & _MASK_32, (k1 + _WEYL[1]) & _MASK_32
    return c0, c1, c2, c3


def random_bits(
    seeds: Int[Tensor, " seeds"],
    steps: Int[Tensor, " steps"],
    purpose: int,
    tasks: Int[Tensor, " tasks"],
    envs: Int[Tensor, " envs"],
    count: int,
) -> Int[Tensor, "steps seeds tasks envs {count}"]:
    """Words of 32 random bits for every combination of the arguments, `count` of them each.

    Args:
        seeds: run seeds, 0 ≤ seed < 2⁶³.
        steps: step counters, 0 ≤ step < 2⁴⁴.
        purpose: a `Purpose`, or any number in [0, 256).
        tasks: task numbers, 0 ≤ task < 2³².
        envs: environment numbers, 0 ≤ env < 2³².
        count: words for each combination, at most 16,384.

    Returns:
        int64 in [0, 2³²); word i depends on (seed, step, purpose, task, env, i) and on nothing else.

    Raises:
        ValueError: if count or purpose is out of range.
    """
    if not 0 <= count <= MAX_COUNT:
        raise ValueError(f"count: expected 0 to {MAX_COUNT} draws per step, got {count}")
    if not 0 <= purpose < 256:
        raise ValueError(f"purpose: expected a number from 0 to 255, got {purpose}")
    num_blocks = (count + 3) // 4
    shape = (len(steps), len(seeds), len(tasks), len(envs), num_blocks)
    step = steps.view(-1, 1, 1, 1, 1)
    seed = seeds.view(1, -1, 1, 1, 1)
    block = torch.arange(num_blocks, device=seeds.device)
    high = (purpose << (_BLOCK_BITS + _STEP_HIGH_BITS)) | (block << _STEP_HIGH_BITS) | (step >> 32)
    counter = (step & _MASK_32, envs.view(1, 1, 1, -1, 1), tasks.view(1, 1, -1, 1, 1), high)
    words = philox4x32(counter, (seed & _MASK_32, seed >> 32))
    return torch.stack([word.expand(shape) for word in words], dim=-1).flatten(-2)[..., :count]


def uniform(bits: Int[Tensor, "*batch"], dtype: torch.dtype) -> Float[Tensor, "*batch"]:
    """Uniform numbers in [0, 1) from 32-bit words: 24 bits of them in float32, all 32 in float64, both exact.

    Raises:
        ValueError: if dtype is another one, in which rounding would give 1.
    """
    if dtype == torch.float64:
        return bits.to(dtype) * 2.0**-32
    if dtype == torch.float32:
        return (bits >> 8).to(dtype) * 2.0**-24
    raise ValueError(f"dtype: expected float32 or float64, got {dtype}")


def integers(bits: Int[Tensor, "*batch"], high: int | Int[Tensor, "*#batch"]) -> Int[Tensor, "*batch"]:
    """Integers in [0, high) from 32-bit words by multiply and shift; the bias is below high · 2⁻³²."""
    return (bits * high) >> 32


def normal(
    first: Float[Tensor, "*batch"], second: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Two independent standard normals from two uniforms in [0, 1), by the Box–Muller transform."""
    radius = torch.sqrt(-2.0 * torch.log1p(-first))
    angle = 2.0 * torch.pi * second
    return radius * torch.cos(angle), radius * torch.sin(angle)
