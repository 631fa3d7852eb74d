"""Objectives: pure functions from a ``TokenBatch`` to a ``LossSum``, found by name in the registry."""

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.registry import OBJECTIVES, Objective, get_objective

__all__ = ["OBJECTIVES", "LossSum", "Objective", "TokenBatch", "get_objective"]
