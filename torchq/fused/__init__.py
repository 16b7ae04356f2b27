"""The fused engine: whole episodes of a run as one compiled program."""

from torchq.fused.engine import FusedProgram, num_threads, obstacle

__all__ = ["FusedProgram", "num_threads", "obstacle"]
