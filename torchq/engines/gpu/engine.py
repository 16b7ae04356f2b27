"""The fused engine on a GPU: whole episodes, or whole steps of a batch, as Triton kernels made for the environments."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from torchq.engines.codegen import triton_source
from torchq.engines.codegen.scalars import FamilyProgram
from torchq.engines.codegen.trace import TranslationError, trace_family
from torchq.engines.contract import Engine, UnavailableError
from torchq.engines.gpu.batched import BatchedEngine
from torchq.engines.gpu.online import OnlineEngine
from torchq.engines.gpu.tensors import Kernels, power_of_two
from torchq.engines.graph import GraphEngine
from torchq.engines.rollout import Rollout
from torchq.lowrank.low_rank_q import LowRankQ

MAX_ROWS = 256


def triton_engine(rollout: Rollout) -> Engine:
    """One program a run for updates block by block; few kernels a step, replayed as a graph, for joint ones.

    Raises:
        UnavailableError: if it does not run here, or not this run.
    """
    learner = _checked(rollout)
    start = rollout.reset(rollout.batch(0), 0)
    try:
        family = trace_family(rollout.env, rollout.tasks, start, rollout.dtype)
    except TranslationError as error:
        raise UnavailableError(str(error)) from error
    kernels = Kernels(rollout, learner, _constants(rollout, learner, family))
    if learner.update_order == "block":
        return OnlineEngine(kernels)
    return GraphEngine(rollout, BatchedEngine(kernels), "fused")


def _checked(rollout: Rollout) -> LowRankQ:
    """The learner of a rollout that the kernels can run.

    Raises:
        UnavailableError: if they cannot.
    """
    learner, device = rollout.learner, rollout.device.type
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnavailableError(f"Triton needs a GPU, got {device}")
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("Triton is not installed; install it with: pip install triton")
    if not isinstance(learner, LowRankQ):
        raise UnavailableError("it needs stlrq, lrq or clrq")
    if learner.optimizer != "adamax" or learner.normalised or len(learner.action_sizes) != 1:
        raise UnavailableError("it needs plain Adamax steps and one action mode")
    if learner.update_order == "block" and rollout.num_envs != 1:
        raise UnavailableError("blocks of modes need --num-envs 1")
    if learner.update_order == "joint" and learner.num_sweeps != 1:
        raise UnavailableError("joint updates need one sweep")
    if learner.update_order == "joint" and max(rollout.grid.mode_sizes) > MAX_ROWS:
        raise UnavailableError(f"joint updates need state modes of at most {MAX_ROWS} rows")
    return learner


def _constants(rollout: Rollout, learner: LowRankQ, family: FamilyProgram) -> dict[str, Any]:
    """What every kernel is compiled for."""
    grid, functions = rollout.grid, triton_source.module(family)
    return {
        "OBSERVE": functions.observe, "STEP": functions.step, "RESET": functions.reset,
        "FIELDS": len(family.field_types), "PARAMETERS": family.num_parameters,
        "STEP_UNIFORMS": rollout.env.num_step_uniforms, "RESET_UNIFORMS": rollout.env.num_reset_uniforms,
        "TERMINATES": family.terminates, "LOW": tuple(grid.low), "HIGH": tuple(grid.high), "GRID": tuple(grid.sizes),
        "DIMENSIONS": len(grid.sizes), "JOINT": grid.joint, "SIZES": tuple(learner.sizes),
        "HAS_TASK": int(learner.has_task_mode), "MODES": len(learner.sizes), "ACTIONS": rollout.env.num_actions,
        "RANK": learner.rank, "RANK_P": power_of_two(learner.rank), "GAMMA": rollout.gamma,
    }  # fmt: skip
