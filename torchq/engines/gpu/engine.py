"""The fused engine on a GPU: whole episodes, or whole steps of a batch, as Triton kernels made for the environments."""

from __future__ import annotations

import importlib.util
import os

from torchq.engines.codegen import triton_source
from torchq.engines.codegen.scalars import FamilyProgram
from torchq.engines.codegen.trace import TranslationError, trace_family
from torchq.engines.contract import Engine, UnavailableError
from torchq.engines.gpu.batched import BatchedEngine
from torchq.engines.gpu.online import OnlineEngine
from torchq.engines.gpu.tensors import FamilyConstants, Kernels, ModelConstants, kernel_sizes, power_of_two
from torchq.engines.graph import GraphEngine
from torchq.engines.rollout import Rollout
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import KINDS

MAX_ROWS = 256
_ROWS = 32


def triton_engine(rollout: Rollout) -> Engine:
    """One program a run for updates block by block; few kernels a step, replayed as a graph, for joint ones.

    Raises:
        UnavailableError: if it does not run here, or not this run.
    """
    learner = _checked(rollout)
    start = rollout.reset(rollout.batch(0), 0)
    try:
        program = trace_family(rollout.env, rollout.tasks, start, rollout.dtype)
    except TranslationError as error:
        raise UnavailableError(str(error)) from error
    kernels = Kernels(rollout, learner, _family(rollout, program), _model(rollout, learner))
    if learner.update_order == "block":
        return OnlineEngine(kernels)
    return GraphEngine(rollout, BatchedEngine(kernels), "fused")


def _checked(rollout: Rollout) -> LowRankQ:
    """The learner of a rollout that the kernels can run.

    Raises:
        UnavailableError: if they cannot.
    """
    learner, device = rollout.learner, rollout.device.type
    if rollout.share is not None:
        raise UnavailableError("its tasks are shared by ranks")
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnavailableError(f"Triton needs a GPU, got {device}")
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("Triton is not installed; install it with: pip install triton")
    if not isinstance(learner, LowRankQ):
        raise UnavailableError("it needs stlrq, lrq or clrq")
    if learner.optimizer == "sgd" or learner.normalised or len(learner.action_sizes) != 1:
        raise UnavailableError("it needs plain Adam or Adamax steps and one action mode")
    if learner.update_order == "block" and rollout.num_envs != 1:
        raise UnavailableError("blocks of modes need `num_envs=1`")
    if learner.update_order == "block" and (rollout.grid.interpolates or rollout.replay or learner.target_rate):
        raise UnavailableError("blocks of modes need cells, without replay and target tensor")
    if learner.update_order == "block" and (learner.task_sizes or learner.only_tasks or learner.margin):
        raise UnavailableError("blocks of modes need a row per task, all modes to learn, and no guide")
    if learner.update_order == "block" and learner.optimizer != "adamax":
        raise UnavailableError("blocks of modes need Adamax")
    if learner.update_order == "joint" and learner.num_sweeps != 1:
        raise UnavailableError("joint updates need one sweep")
    if learner.update_order == "joint" and max(rollout.grid.mode_sizes) > MAX_ROWS:
        raise UnavailableError(f"joint updates need state modes of at most {MAX_ROWS} rows")
    return learner


def _family(rollout: Rollout, program: FamilyProgram) -> FamilyConstants:
    functions, env = triton_source.module(program), rollout.env
    return FamilyConstants(
        functions.observe, functions.step, functions.reset, len(program.observe.outputs["observation"]),
        len(program.field_types), program.num_parameters, env.num_step_uniforms, env.num_reset_uniforms,
        program.terminates,
    )  # fmt: skip


def _model(rollout: Rollout, learner: LowRankQ) -> ModelConstants:
    grid, actions, sizes = rollout.grid, rollout.env.num_actions, kernel_sizes(learner)
    together = tuple(min(_ROWS, power_of_two(size)) for size in sizes)
    return ModelConstants(
        tuple(mode.low for mode in grid.modes), tuple(mode.high for mode in grid.modes), tuple(grid.sizes),
        tuple(KINDS.index(mode.kind) if mode.interpolates else 0 for mode in grid.modes), grid.joint,
        tuple(sizes), together, int(learner.has_task_mode), len(sizes) - 1, actions, power_of_two(actions),
        learner.rank,
        power_of_two(learner.rank), learner.num_sweeps, rollout.gamma, learner.optimizer == "adam",
        learner.target_rate or 0.0, learner.margin > 0.0,
    )  # fmt: skip
