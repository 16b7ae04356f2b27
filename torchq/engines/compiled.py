"""The compile engine: the steps of the eager one, each made one program by torch.compile."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchq.engines.contract import UnavailableError
from torchq.engines.eager import Stepwise
from torchq.engines.external import ExternalEngine
from torchq.engines.rollout import Rollout

_COMPILE = partial(torch.compile, dynamic=False, fullgraph=True)


def compiled(rollout: Rollout) -> Stepwise:
    """An engine whose steps are compiled on their first call for the shapes they meet there.

    Raises:
        UnavailableError: if torch.compile does not work here, found by trying: it needs a C++ compiler and Python's
            headers, or Triton.
    """
    _try(rollout)
    return Stepwise(rollout, "compile", _COMPILE)


def compiled_outside(rollout: Rollout) -> ExternalEngine:
    """The same for environments outside of PyTorch: what learns and acts is compiled.

    Raises:
        UnavailableError: as above.
    """
    _try(rollout)
    return ExternalEngine(rollout, "compile", _COMPILE)


def _try(rollout: Rollout) -> None:
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(8, device=rollout.device))
    except Exception as error:  # Whatever the back end raises, the eager engine does without it.
        raise UnavailableError(str(error).strip().partition("\n")[0]) from error


def _probe(x: Tensor) -> Tensor:
    return (x + 1.0) * x
