"""One algorithm per file; all follow `torchq.learners.base.Learner`."""

from torchq.learners.lowrank import LowRankQ, LowRankState
from torchq.learners.tabular import TabularQ, TabularState

__all__ = ["LowRankQ", "LowRankState", "TabularQ", "TabularState"]
