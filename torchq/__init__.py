"""Value functions for many related tasks at once: low-rank Q-tensors in PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchq.errors import TorchqError
    from torchq.lowrank.low_rank_q import LowRankQ
    from torchq.lowrank.modes import Grid, Mode
    from torchq.lowrank.qtensor import QTensor
    from torchq.lowrank.tabular_q import TabularQ
    from torchq.lowrank.transitions import Transition
    from torchq.quadratic.layers import LMIQLayer, LMIQLiLayer
    from torchq.quadratic.lmi_ql import LMIQL
    from torchq.quadratic.lmi_qli import LMIQLi
    from torchq.quadratic.lspi import LSPI
    from torchq.runs.launch import train
    from torchq.runs.run import Run, load

__version__ = "0.1.0"

__all__ = [
    "LMIQL",
    "LSPI",
    "Grid",
    "LMIQLayer",
    "LMIQLi",
    "LMIQLiLayer",
    "LowRankQ",
    "Mode",
    "QTensor",
    "Run",
    "TabularQ",
    "TorchqError",
    "Transition",
    "__version__",
    "load",
    "train",
]

_MODULES = {
    "Grid": "torchq.lowrank.modes",
    "LMIQL": "torchq.quadratic.lmi_ql",
    "LMIQLayer": "torchq.quadratic.layers",
    "LMIQLi": "torchq.quadratic.lmi_qli",
    "LMIQLiLayer": "torchq.quadratic.layers",
    "LSPI": "torchq.quadratic.lspi",
    "LowRankQ": "torchq.lowrank.low_rank_q",
    "Mode": "torchq.lowrank.modes",
    "QTensor": "torchq.lowrank.qtensor",
    "Run": "torchq.runs.run",
    "TabularQ": "torchq.lowrank.tabular_q",
    "TorchqError": "torchq.errors",
    "Transition": "torchq.lowrank.transitions",
    "load": "torchq.runs.run",
    "train": "torchq.runs.launch",
}
"""Where what is exported lies: imported when it is asked for, so that a command begins at once."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'torchq' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
