"""Objectives: pure functions from a ``TokenBatch`` to a ``LossSum``, found by name in the registry."""

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.custom import objective
from dftune.objectives.entry import Entry, Objective
from dftune.objectives.registry import OBJECTIVES, get_objective

__all__ = ["OBJECTIVES", "Entry", "LossSum", "Objective", "TokenBatch", "get_objective", "objective"]
