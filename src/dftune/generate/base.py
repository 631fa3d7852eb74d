"""What every engine is asked for and answers: requests, sampling parameters, completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Request:
    """One completion to be generated.

    Attributes:
        id: id of the problem; error messages name it, and the random numbers of the completion hang on it.
        prompt: token ids of the rendered prompt.
        sample: index of the completion among those of the same problem.
    """

    id: str
    prompt: tuple[int, ...]
    sample: int = 0


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_tokens: most tokens of a completion.
        temperature: 0 takes the likeliest token.
        top_p: draw from the smallest set of tokens that holds this much probability.
        stop: strings at which a completion ends; the text is cut before the first of them.
        end_token_ids: tokens that end a completion; they are not part of its text.
        seed: the completion of a problem and a sample index depends on this and on nothing else in the batch.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    end_token_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or "" in self.stop:
            raise ValueError(
                "sampling needs max_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and no empty stop string; "
                f"found {self}."
            )


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        id: of the request.
        sample: of the request.
        text: without the end token and the stop string.
        finish_reason: ``stop`` at an end token or stop string, ``length`` at the token limit.
        num_tokens: tokens generated, the end token or those of the stop string included.
    """

    id: str
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int
