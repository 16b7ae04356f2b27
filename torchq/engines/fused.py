"""The fused engine: whole episodes of a run as one program, in C++ on a CPU and in Triton on a GPU."""

from torchq.engines.cpu.program import FusedProgram, num_threads
from torchq.engines.cpu.program import obstacle as _obstacle_on_cpu
from torchq.engines.gpu import online
from torchq.engines.gpu.batched import BatchedProgram, greedy
from torchq.engines.gpu.online import OnlineProgram
from torchq.engines.rollout import Problem

__all__ = ["BatchedProgram", "FusedProgram", "OnlineProgram", "greedy", "num_threads", "obstacle", "triton_program"]


def triton_program(problem: Problem) -> OnlineProgram | BatchedProgram:
    """The program of a problem on a GPU: one a run for updates block by block, few kernels a step for joint ones."""
    joint = getattr(problem.learner, "update_order", "joint") == "joint"
    return BatchedProgram(problem) if joint else OnlineProgram(problem)


def obstacle(problem: Problem) -> str | None:
    """What keeps the fused engine from running a problem on its device, in one line; None if nothing does."""
    return _obstacle_on_cpu(problem) if problem.seeds.device.type == "cpu" else online.obstacle(problem)
