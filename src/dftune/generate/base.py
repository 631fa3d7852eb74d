"""What every engine is asked for and answers: requests, sampling parameters, completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """One completion to be generated.

    Attributes:
        id: id of the problem; error messages name it, and the random numbers of the completion hang on it.
        prompt: token ids of the rendered prompt.
        sample: index of the completion among those of the same problem.
        text: the rendered prompt as text, for engines that tokenize by themselves.
        messages: (role, content) of each message, for servers that render the prompt by their own chat template; where
            there are none, ``text`` is the one message of the user.
    """

    id: str
    prompt: tuple[int, ...]
    sample: int = 0
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    def room(self, max_tokens: int, max_context: int | None) -> int:
        """Most tokens of the completion: ``max_tokens``, or what the model's context leaves where that is less.

        Raises:
            ValueError: the context leaves nothing.
        """
        if max_context is None:
            return max_tokens
        room = max_context - len(self.prompt)
        if room < 1:
            raise ValueError(
                f"the prompt of {self.id!r} has {len(self.prompt)} tokens, and the model's context holds "
                f"{max_context}: no room for a completion. "
                "Leave this problem out, or use a model with a longer context."
            )
        return min(max_tokens, room)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_tokens: most tokens of a completion.
        temperature: 0 takes the likeliest token.
        top_p: draw from the smallest set of tokens that holds this much probability, of what ``top_k`` leaves.
        top_k: draw from so many of the likeliest tokens; None for all.
        stop: strings at which a completion ends; the text is cut before the first of them.
        end_token_ids: tokens that end a completion; they are not part of its text.
        seed: the completion of a problem and a sample index depends on this and on nothing else in the batch.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    end_token_ids: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        ranges = self.max_tokens >= 1 and self.temperature >= 0 and 0 < self.top_p <= 1
        if not ranges or (self.top_k is not None and self.top_k < 1) or "" in self.stop:
            raise ValueError(
                "sampling needs max_tokens >= 1, temperature >= 0, 0 < top_p <= 1, top_k >= 1 or None, and no empty "
                f"stop string; found {self}."
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
        mean_logp: mean log-probability of those tokens under the model at temperature 1, in nats; None where the engine
            does not say. Completions that differ in this or in the entropy alone are equal: the last digits depend on
            the batch.
        mean_entropy: mean entropy of the model's distributions over those tokens, at temperature 1, in nats; likewise.
        stop_string: the stop string it ended at; empty where it ended otherwise, None where the engine does not say.
    """

    id: str
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    mean_logp: float | None = field(default=None, compare=False)
    mean_entropy: float | None = field(default=None, compare=False)
    stop_string: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """A request that got no completion, and why. It is never a wrong answer: the next start asks again."""

    id: str
    sample: int
    reason: str


class IncompleteError(RuntimeError):
    """Some requests failed for good. All others were delivered before this is raised."""

    def __init__(self, message: str, failures: Sequence[Failure]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class Engine(Protocol):
    """Whatever completes prompts: a model in this process, or servers."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end any text of the model."""
        ...

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_done: Callable[[Sequence[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; ``on_done`` gets completions as they are finished.

        Raises:
            IncompleteError: some requests failed.
        """
        ...
