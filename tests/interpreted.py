"""Triton's interpreter with the functions of libdevice, which it lacks, from NumPy; import before any kernel."""

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

NUMPY = {
    "atan2": np.arctan2, "atan": np.arctan, "asin": np.arcsin, "acos": np.arccos, "pow": np.power,
    "fmod": np.fmod, "rint": np.rint, "trunc": np.trunc, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "log2": np.log2,
    "log10": np.log10,
}  # fmt: skip


def on_tensors(function):
    def call(*arguments):
        data = np.asarray(function(*(argument.handle.data for argument in arguments)))
        first = arguments[0]
        return tl.tensor(interpreter.TensorHandle(data, first.handle.dtype), first.type)

    return call


for name, function in NUMPY.items():
    setattr(libdevice, name, on_tensors(function))
