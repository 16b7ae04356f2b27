"""The compile engine: the steps of the eager one, each made one program by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchq.engines.contract import UnavailableError
from torchq.engines.eager import Stepwise
from torchq.engines.external import ExternalEngine
from torchq.engines.rollout import Rollout
from torchq.tree import rebuilt


def program(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as one compiled program."""

    def call(*given: Any) -> Any:
        return rebuilt(function(*given))  # torch 2.11 returns what `_replace` made without its fields.

    return torch.compile(call, dynamic=False, fullgraph=True)


def compiled(rollout: Rollout) -> Stepwise:
    """An engine whose steps are compiled on their first call for the shapes they meet there.

    Raises:
        UnavailableError: if torch.compile does not work here, found by trying: it needs a C++ compiler and Python's
            headers, or Triton.
    """
    _try(rollout)
    return Stepwise(rollout, "compile", program)


def compiled_outside(rollout: Rollout) -> ExternalEngine:
    """The same for environments outside of PyTorch: what learns and acts is compiled.

    Raises:
        UnavailableError: as above.
    """
    _try(rollout)
    return ExternalEngine(rollout, "compile", program)


def _try(rollout: Rollout) -> None:
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(8, device=rollout.device))
    except Exception as error:  # Whatever the back end raises, the eager engine does without it.
        raise UnavailableError(str(error).strip().partition("\n")[0]) from error


def _probe(x: Tensor) -> Tensor:
    return (x + 1.0) * x
