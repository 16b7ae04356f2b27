"""Value functions for many related tasks at once: low-rank Q-tensors in PyTorch."""

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
