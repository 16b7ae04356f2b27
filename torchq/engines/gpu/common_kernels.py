"""What the kernels of both protocols share: random numbers, the grid, and one step of some environments.

Fields, parameters, random numbers and rows come as tuples, of any length. Every function works on single numbers (one
environment a program) and on blocks of them. What a kernel is compiled for comes as FAMILY and MODEL:
`tensors.FamilyConstants` and `ModelConstants`.
"""

import math

import triton
import triton.language as tl

from torchq.engines.gpu.elementary import divide, full, remainder, square_root
from torchq.philox import Purpose

# Constants of the compiler: a plain number with a name of its own becomes one of single precision.
EXPLORATION = tl.constexpr(int(Purpose.EXPLORATION))
TRAINING = tl.constexpr(int(Purpose.STEP))
AUTORESET = tl.constexpr(int(Purpose.AUTORESET))
TESTING = tl.constexpr(int(Purpose.EVALUATION_STEP))
REPLAYING = tl.constexpr(int(Purpose.REPLAY))
BETA1, BETA2, EPSILON = tl.constexpr(0.9), tl.constexpr(0.999), tl.constexpr(1e-8)  # Adamax (Kingma and Ba 2015)
LOG2_BETA1, LOG2_BETA2 = tl.constexpr(math.log2(0.9)), tl.constexpr(math.log2(0.999))
# How a state mode is interpolated: the order of torchq.lowrank.modes.KINDS.
CELLS, PERIODIC, QUADRATIC, LOG = tl.constexpr(0), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)


@triton.jit
def adamax(f, m, u, gradient, step_size):
    """One step on some numbers of a factor and its moments: torchq.lowrank.optim."""
    m = m + (1.0 - BETA1) * (gradient - m)
    u = tl.maximum(BETA2 * u, tl.abs(gradient) + EPSILON)
    return f - step_size * m / u, m, u


@triton.jit
def adam(f, m, v, gradient, step_size, update):
    """The same with Adam's second moments; `step_size` is corrected."""
    m = m + (1.0 - BETA1) * (gradient - m)
    v = BETA2 * v + (1.0 - BETA2) * gradient * gradient
    bias = square_root(1.0 - tl.exp2(update.to(f.dtype) * LOG2_BETA2))
    return f - step_size * bias * m / (square_root(v) + bias * EPSILON), m, v


@triton.jit
def corrected(rate, update):
    """Step size of an update, counted from 1: η / (1 − β₁ᵗ)."""
    return rate / (1.0 - tl.exp2(update.to(rate.dtype) * LOG2_BETA1))


@triton.jit
def uniform(bits, like):
    """32 bits in double precision, 24 in single, as torchq.philox.uniform."""
    if like.dtype == tl.float64:
        value = bits.to(tl.float64) * 2.3283064365386963e-10
    else:
        value = (bits >> 8).to(tl.float32) * 5.960464477539063e-08
    return value


@triton.jit
def words(seed, step, env, task, PURPOSE: tl.constexpr, BLOCK: tl.constexpr):
    """Four random words of each environment: torchq.philox.random_bits."""
    high = env * 0 + ((PURPOSE << 24) | (BLOCK << 12) | (step >> 32))
    low = env * 0 + (step & 0xFFFFFFFF)
    tasks = env * 0 + task
    return tl.philox(seed, low.to(tl.uint32), env.to(tl.uint32), tasks.to(tl.uint32), high.to(tl.uint32))


@triton.jit
def uniforms(seed, step, env, task, like, PURPOSE: tl.constexpr, COUNT: tl.constexpr):
    """COUNT random numbers of each environment."""
    numbers = ()
    for block in tl.static_range((COUNT + 3) // 4):
        b = words(seed, step, env, task, PURPOSE, block)
        for i in tl.static_range(4):
            if block * 4 + i < COUNT:
                numbers = numbers + (uniform(b[i], like),)
    return numbers


@triton.jit
def row_of(x, LOW: tl.constexpr, HIGH: tl.constexpr, SIZE: tl.constexpr):
    """The nearest grid point, half to even."""
    if SIZE == 1:
        return tl.zeros_like(x).to(tl.int32)
    scaled = divide(tl.minimum(tl.maximum(x, LOW), HIGH) - LOW, full(x, HIGH - LOW, x.dtype)) * (SIZE - 1)
    below = tl.floor(scaled)
    fraction = scaled - below
    whole = below.to(tl.int32)
    up = (fraction > 0.5) | ((fraction == 0.5) & (whole % 2 == 1))
    return tl.minimum(tl.maximum(whole + up.to(tl.int32), 0), SIZE - 1)


@triton.jit
def between(x, LOW: tl.constexpr, HIGH: tl.constexpr, SIZE: tl.constexpr, KIND: tl.constexpr):
    """A fractional place between two points: Mode.place."""
    if KIND == PERIODIC:
        scaled = divide(x - LOW, full(x, HIGH - LOW, x.dtype)) * SIZE
        place = remainder(scaled, full(x, SIZE, x.dtype))
    elif KIND == LOG:
        low, high = full(x, LOW, x.dtype), full(x, HIGH, x.dtype)
        clipped = tl.minimum(tl.maximum(x, low), high)
        place = tl.log(divide(clipped, low)) / tl.log(divide(high, low)) * (SIZE - 1)
    else:
        share = divide(tl.minimum(tl.maximum(x, LOW), HIGH) - LOW, full(x, HIGH - LOW, x.dtype))
        if KIND == QUADRATIC:
            share = square_root(share)
        place = share * (SIZE - 1)
    return place


@triton.jit
def places_of(s, like, FAMILY: tl.constexpr, MODEL: tl.constexpr):
    """Places of a state along the state modes: rows, or fractions between them."""
    DIMENSIONS: tl.constexpr = FAMILY.DIMENSIONS
    observation = FAMILY.OBSERVE(s, like)
    places = ()
    for d in tl.static_range(DIMENSIONS):
        if MODEL.KINDS[d] == CELLS:
            row = row_of(observation[d], MODEL.LOW[d], MODEL.HIGH[d], MODEL.GRID[d])
            if MODEL.JOINT and d > 0:
                places = (places[0] * MODEL.GRID[d] + row,)
            else:
                places = places + (row,)
        else:
            places = places + (between(observation[d], MODEL.LOW[d], MODEL.HIGH[d], MODEL.GRID[d], MODEL.KINDS[d]),)
    return places


@triton.jit
def neighbours(place, SIZE: tl.constexpr):
    """The row below a fractional place, the row above, and the weight of the latter: cp.neighbours."""
    below = tl.floor(place)
    row = below.to(tl.int32)
    row = tl.minimum(tl.maximum(tl.where(row >= SIZE, row - SIZE, row), 0), SIZE - 1)
    return row, tl.where(row + 1 < SIZE, row + 1, 0), place - below


@triton.jit
def load(pointers, at, inside, COUNT: tl.constexpr):
    """One number of each tensor."""
    values = ()
    for i in tl.static_range(COUNT):
        values = values + (tl.load(pointers[i] + at, mask=inside, other=0),)
    return values


@triton.jit
def load_parameters(parameters, task, PARAMETERS: tl.constexpr):
    """The parameters of a task, in columns."""
    values = ()
    for i in tl.static_range(PARAMETERS):
        values = values + (tl.load(parameters + task * PARAMETERS + i),)
    return values


@triton.jit
def store(pointers, at, values, inside, COUNT: tl.constexpr):
    """The other way round."""
    for i in tl.static_range(COUNT):
        tl.store(pointers[i] + at, values[i], mask=inside)


@triton.jit
def choose(chosen, yes, no, COUNT: tl.constexpr):
    """One of two states for each environment."""
    values = ()
    for i in tl.static_range(COUNT):
        values = values + (tl.where(chosen, yes[i], no[i]),)
    return values
