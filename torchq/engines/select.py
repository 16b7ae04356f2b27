"""The engine of a run: chosen by what works here, and tried for one step against eager mode before it is trusted."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchq.engines import compiling, evaluation, fused, graph, protocols
from torchq.engines.evaluation import Greedy
from torchq.engines.protocols import Advance, RunState, Tables
from torchq.engines.rollout import Problem, Statistics
from torchq.tree import flatten

_LARGEST_TRIAL = 50_000_000
"""Action values times rank of the largest batch that is tried: eager mode needs them all in memory."""


class Execution(NamedTuple):
    """How an engine trains and tests."""

    name: str
    advance: Advance
    greedy: Greedy


def build(problem: Problem, name: str, *, on_gpu: bool | None = None) -> Execution:
    """The functions of an engine.

    Args:
        problem: what is trained.
        name: of the engine.
        on_gpu: whether `fused` is Triton rather than C++; None follows the device.
    """
    on_gpu = problem.seeds.device.type == "cuda" if on_gpu is None else on_gpu
    if name == "fused" and not on_gpu:
        compiled = fused.FusedProgram(problem)
        return Execution(name, compiled.train, compiled.greedy)
    if name == "fused":
        program = fused.triton_program(problem)
        advance = program.train
        if isinstance(program, fused.BatchedProgram):  # Several launches a step, too small to be made one by one.
            advance = graph.GraphProgram(problem, advance, evaluation.greedy_step).train
        return Execution(name, advance, partial(fused.greedy, problem))
    if name == "graph":
        inner = "compile" if compiling.compile_obstacle(problem.seeds.device) is None else "eager"
        step, greedy_step = (compiling.prepare(function, inner) for function in (problem.step, evaluation.greedy_step))
        replayed = graph.GraphProgram(problem, protocols.stepwise(problem, step), greedy_step)
        return Execution(name, replayed.train, replayed.greedy)
    step, greedy_step = (compiling.prepare(function, name) for function in (problem.step, evaluation.greedy_step))
    return Execution(name, protocols.stepwise(problem, step), evaluation.stepwise(problem, greedy_step))


def choose(asked: str, problem: Problem, tasks: Any, state: RunState, task: Tensor | None, num_steps: int) -> Execution:
    """The engine asked for; with "auto", the fastest that works here.

    Args:
        asked: "auto" or the name of an engine.
        problem: what is trained.
        tasks: environment parameters of the tasks that play first.
        state: at the start.
        task: number of the first task where tasks take turns.
        num_steps: steps of the run.

    Raises:
        UsageError: if the engine asked for does not work.
    """
    built: dict[str, Execution] = {}

    def obstacle(name: str) -> str | None:
        found = fused.obstacle(problem) if name == "fused" else graph.obstacle(problem.seeds.device)
        if found is None:
            built[name] = build(problem, name)
            found = disagreement(built[name], problem, tasks, state, task)
        return found

    tests = {name: partial(obstacle, name) for name in ("fused", "graph")}
    name = compiling.choose(asked, problem.seeds.device, num_steps, tests)
    return built.get(name) or build(problem, name)


@torch.no_grad()
def disagreement(
    execution: Execution, problem: Problem, tasks: Any, state: RunState, task: Tensor | None
) -> str | None:
    """How one step of an engine differs from eager mode, or fails; None if it does not, or is too large to try."""
    runs, num_tasks, envs = state.env.elapsed.shape
    if runs * num_tasks * envs * problem.env.num_actions * getattr(problem.learner, "rank", 1) > _LARGEST_TRIAL:
        return None
    device, dtype = problem.seeds.device, problem.dtype
    rates = Tables(torch.ones(1, device=device, dtype=dtype), torch.full((1,), 1e-3, device=device, dtype=dtype))
    nothing = Statistics.zeros(runs, num_tasks, device, dtype)
    given = (tasks, state.learner, state.env, nothing, 0, rates, task)
    try:
        expected, found = (flatten(play.advance(*given)[1:]) for play in (build(problem, "eager"), execution))
    except Exception as error:  # Whatever a compiler or driver raises, another engine does without it.
        return str(error).strip().partition("\n")[0] or type(error).__name__
    for name, value in expected.items():
        if not torch.allclose(found[name].double(), value.double(), rtol=1e-3, atol=1e-3, equal_nan=True):
            return f"its first step differs from that of eager mode in {name}"
    return None
