"""Limits counted in operations, so that a verdict never depends on how busy the machine is."""

from __future__ import annotations

MAX_ANSWER_CHARS = 200_000
"""Longer answers are compared as text only."""
MAX_TOKENS = 80_000
"""Numbers, letters, commands and signs of one answer; a list of 10,000 numbers has 20,000."""
MAX_DEPTH = 120
"""Nesting of brackets, fractions, roots and powers that the parser follows."""
MAX_BITS = 400_000
"""Size of an integer that is still computed exactly."""
MAX_LITERAL_DIGITS = 20_000
"""Digits of a number that are read into an exact value."""
MAX_OPERATIONS = 150_000
"""Arithmetic operations that one comparison may spend; a transcendental function costs 20."""


class UnreadableError(Exception):
    """The text is not an answer expression this grader knows."""


class UndefinedError(Exception):
    """The expression has no value: division by zero, logarithm of zero, missing function."""


class UndecidedError(Exception):
    """The comparison cannot be settled, for instance because a number is too large to compute exactly."""


class BudgetSpentError(UndecidedError):
    """The comparison used up its operations."""


class Budget:
    """Counts down the operations of one comparison."""

    __slots__ = ("left",)

    def __init__(self, operations: int = MAX_OPERATIONS) -> None:
        self.left = operations

    def spend(self, operations: int = 1) -> None:
        """Use ``operations``; raises `BudgetSpentError` when none are left."""
        self.left -= operations
        if self.left < 0:
            raise BudgetSpentError("operation budget spent")
