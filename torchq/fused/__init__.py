"""The fused engine: whole episodes of a run as one program, in C++ on a CPU and in Triton on a GPU."""

from torchq.fused import online
from torchq.fused.engine import FusedProgram, num_threads
from torchq.fused.engine import obstacle as _obstacle_on_cpu
from torchq.fused.online import OnlineProgram
from torchq.rollout import Problem

__all__ = ["FusedProgram", "OnlineProgram", "num_threads", "obstacle"]


def obstacle(problem: Problem) -> str | None:
    """What keeps the fused engine from running a problem on its device, in one line; None if nothing does."""
    return _obstacle_on_cpu(problem) if problem.seeds.device.type == "cpu" else online.obstacle(problem)
