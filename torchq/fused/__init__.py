"""The fused engine: whole episodes of a run as one compiled program."""

from torchq.fused.engine import FusedProgram, obstacle

__all__ = ["FusedProgram", "obstacle"]
