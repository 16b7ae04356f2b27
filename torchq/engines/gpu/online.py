"""The Triton program of the online protocol: tensors to the kernel and back."""

from __future__ import annotations

from torch import Tensor

from torchq.engines.contract import Batch, EnvState, LearnerState, Rates, RunState
from torchq.engines.eager import Stepwise
from torchq.engines.gpu.batched import greedy_returns
from torchq.engines.gpu.tensors import Kernels, copied_moments, copies, on_device
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.optim import Moments


class OnlineEngine:
    """Whole episodes of the online protocol in one launch, a program for each run."""

    name = "fused"

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self._weights = kernels, kernels.weights()

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int) -> RunState:
        """Consecutive steps with their updates, as in `Engine`; the batch is one task, or tasks that share nothing."""
        from torchq.engines.gpu import online_kernels

        learner, env, statistics, _ = state
        rollout, sweeps = self.kernels.rollout, self.kernels.learner.num_sweeps
        steps, tasks = len(rates.epsilon), len(batch.task_index)
        assert tasks == 1 or self.kernels.learner.groups == tasks
        factors, moments, fields = copies(learner.factors), copied_moments(learner), copies(env)
        runs = len(rollout.seeds) * tasks
        sums = rates.epsilon.new_zeros(runs, 4)
        online_kernels.train[(runs,)](
            tuple(factors), (tuple(moments[0]), tuple(moments[1])), tuple(fields), batch.parameters, rollout.seeds,
            batch.task_index.clone(),  # A slice is aligned otherwise, for which kernels are compiled anew.
            self._weights[batch.task_index], (rates.epsilon, rates.learning_rate), sums,
            (on_device(first_step, rollout.device), learner.num_updates), steps, tasks,
            **self.kernels.constants,
        )  # fmt: skip
        after = LowRankState(tuple(factors), tuple(map(Moments, *moments)), learner.num_updates + steps * sweeps)
        seen = sums.view(*statistics.reward.shape, 4).unbind(-1)
        return RunState(after, type(env)(*fields), statistics.plus(*seen))

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes in one launch, as in `Engine`."""
        if self.kernels.rollout.test_rows is not None:  # The kernels take tasks by their places.
            return Stepwise(self.kernels.rollout).greedy_returns(learner, env, first_step)
        return greedy_returns(self.kernels, learner, env, first_step)
