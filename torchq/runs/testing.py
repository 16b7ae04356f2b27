"""Test a policy after training, on as many tasks and episodes as are asked for, in parts that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torchq import families
from torchq.engines.eager import Stepwise
from torchq.engines.evaluation import evaluate
from torchq.engines.rollout import Rollout
from torchq.engines.shards import TaskShare
from torchq.lowrank.learner import Learner
from torchq.lowrank.modes import Grid

_EPISODES_AT_ONCE = 1 << 16


def returns_on(
    env: Any, tasks: Sequence[Any], numbers: Sequence[int], learner: Learner, policy: Any, grid: Grid, seeds: range,
    episodes: int, evaluation: int, dtype: torch.dtype,
) -> np.ndarray:  # fmt: skip
    """Undiscounted returns of greedy episodes, mean over them, (seeds, tasks).

    Args:
        env: the family.
        tasks: parameters of each.
        numbers: of the tasks in the run, from which random numbers follow.
        learner: the method.
        policy: `learner.policy` of the run, on a device.
        grid: from observations to places along the factors.
        seeds: of the runs.
        episodes: of each seed and task.
        evaluation: which test this is; equal ones see equal random numbers.
        dtype: of the environments.
    """
    device, found = policy.num_updates.device, []
    each = max(1, _EPISODES_AT_ONCE // (len(seeds) * episodes))
    for first in range(0, len(tasks), each):
        some = torch.tensor(numbers[first : first + each], device=device)
        parameters = families.stack_tasks(tasks[first : first + each], device=device, dtype=dtype)
        share = TaskShare(some, (0, len(some)), len(some))
        run_seeds = torch.tensor(list(seeds), device=device)
        rollout = Rollout(env, parameters, grid, learner, 1.0, run_seeds, episodes, dtype, share=share)
        known = learner.at_tasks(policy, some)
        found.append(evaluate(rollout, Stepwise(rollout), known, evaluation, episodes).cpu().numpy())
    return np.concatenate(found, axis=1)
