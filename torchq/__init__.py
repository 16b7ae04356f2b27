"""Value functions for many related tasks at once: low-rank Q-tensors in PyTorch."""

from torchq.grid import Grid
from torchq.layers import LMIQLayer, LMIQLiLayer
from torchq.learners import LMIQL, LSPI, LMIQLi, LowRankQ, TabularQ
from torchq.qtensor import QTensor
from torchq.transitions import Transition

__version__ = "0.1.0"

__all__ = [
    "LMIQL",
    "LSPI",
    "Grid",
    "LMIQLayer",
    "LMIQLi",
    "LMIQLiLayer",
    "LowRankQ",
    "QTensor",
    "TabularQ",
    "Transition",
    "__version__",
]
