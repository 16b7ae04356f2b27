"""What generated Triton functions call besides Triton's own: rounding and NaN as in eager mode.

Importing this needs Triton; TRITON_INTERPRET=1 runs it without a GPU.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def full(like, VALUE: tl.constexpr, TYPE: tl.constexpr):
    """A constant in a type, shaped like a block."""
    return tl.zeros_like(like).to(TYPE) + VALUE


@triton.jit
def divide(x, y):
    """The quotient to the nearest number: Triton's own quotient is one or two units off in single precision."""
    if x.dtype == tl.float32:
        quotient = tl.div_rn(x, y)
    else:
        quotient = x / y
    return quotient


@triton.jit
def square_root(x):
    """√x to the nearest number."""
    if x.dtype == tl.float32:
        root = tl.sqrt_rn(x)
    else:
        root = tl.sqrt(x)
    return root


@triton.jit
def minimum(x, y):
    """The lower, NaN if either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(x, y):
    """The larger, NaN if either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def remainder(x, y):
    """With the sign of the divisor, as torch.remainder."""
    if x.dtype.is_floating():
        rest = libdevice.fmod(x, y)
    else:
        rest = x % y
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)
