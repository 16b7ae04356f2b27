"""One algorithm per file: `LowRankQ` and `TabularQ` learn from transitions (`base.Learner`), the others `fit` data."""

from torchq.learners.lmi_ql import LMIQL
from torchq.learners.lmi_qli import LMIQLi
from torchq.learners.lowrank import LowRankQ, LowRankState
from torchq.learners.lspi import LSPI
from torchq.learners.tabular import TabularQ, TabularState

__all__ = ["LMIQL", "LSPI", "LMIQLi", "LowRankQ", "LowRankState", "TabularQ", "TabularState"]
