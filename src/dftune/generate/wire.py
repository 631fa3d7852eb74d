"""What is sent to an OpenAI-compatible server, and what is taken from its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dftune.generate.base import Completion, Request, Sampling
from dftune.generate.faults import RequestError

_UNSAID = object()
_MOST_STOPS = 4  # OpenAI's limit; the others are looked for in the text
_FINISHED: Mapping[object, Literal["stop", "length"]] = {
    "stop": "stop",
    "length": "length",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
}


@dataclass(frozen=True)
class ServerFacts:
    """What a server was seen to do; None where the probe could not tell.

    Attributes:
        url: its base URL.
        model: the model's name there.
        software: ``vllm``, ``sglang`` or ``transformers``, where it says so: these get fields of their own.
        n: whether several samples can be asked for at once.
        stop: the stop string is ``cut`` off, ``kept`` at the end of the text, or ``ignored``.
        logprobs: whether log-probabilities of the tokens are given.
        fixed_sampling: whether every request is sampled as the first one was that this server ever got.
        seed: whether the same seed gives the same sample while other requests are served.
        token_prompts: whether prompts are taken as token ids.
        end_tokens: how end tokens beyond the model's own reach it: ``model`` (there are none), ``ids``, or ``text``, as
            stop strings.
        limit_key: the name of ``max_tokens``.
    """

    url: str
    model: str
    software: str | None = None
    n: bool | None = None
    stop: Literal["cut", "kept", "ignored"] | None = None
    logprobs: bool = False
    fixed_sampling: bool = False
    seed: bool | None = None
    token_prompts: bool = False
    end_tokens: Literal["model", "ids", "text"] = "model"
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for the user."""
        words = {True: "yes", False: "no", None: "not seen"}
        return (
            f"{self.url} serves {self.model} ({self.software or 'unknown software'}): n {words[self.n]}, "
            f"stop {self.stop or words[None]}, logprobs {words[self.logprobs]}, seed {words[self.seed]}, "
            f"token ids as prompts {words[self.token_prompts]}"
            + (", sampling as in its first request" if self.fixed_sampling else "")
        )


def body(
    request: Request,
    sampling: Sampling,
    facts: ServerFacts,
    *,
    chat: bool,
    max_tokens: int,
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> dict[str, Any]:
    """The JSON of a request.

    vLLM and SGLang take what a request leaves open (top_k, min_p, a repetition penalty) from the model's generation
    config, and transformers a top_k of 50 and no sampling at all; so these are told, in fields of their own, to draw
    from the distribution that ``sampling`` describes.

    Args:
        request: what to complete.
        sampling: how; its own ``max_tokens``, ``stop`` and ``seed`` are not looked at.
        facts: of the server.
        chat: messages rather than a prompt.
        max_tokens: most tokens of a completion.
        num_samples: completions asked for.
        seed: of this request.
        stop: stop strings; the server gets the first four.
    """
    fields: dict[str, Any] = {"model": facts.model, facts.limit_key: max_tokens}
    fields |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if chat:
        messages = request.messages or (("user", request.text),)
        fields["messages"] = [{"role": role, "content": content} for role, content in messages]
    else:
        fields["prompt"] = list(request.prompt) if facts.token_prompts else request.text
    if num_samples > 1:
        fields["n"] = num_samples
    if sampling.temperature > 0:
        fields["seed"] = seed
    if facts.software == "transformers":  # it looks for them across the border of prompt and completion
        stop = [string for string in stop if not _begins_at_the_end(string, request.text)]
    if stop:
        fields["stop"] = list(stop)[:_MOST_STOPS]
    if facts.logprobs:
        fields["logprobs"] = True if chat else 1
    ends = sorted(sampling.end_token_ids)
    if facts.software in ("vllm", "sglang"):
        fields |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
        fields["stop_token_ids"] = ends
    elif facts.software == "transformers":
        drawn = {"do_sample": sampling.temperature > 0, "temperature": sampling.temperature, "top_p": sampling.top_p}
        limits = {"max_new_tokens": max_tokens, "eos_token_id": ends or None, "pad_token_id": ends[0] if ends else None}
        fields["generation_config"] = json.dumps({**drawn, "top_k": sampling.top_k or 0, **limits})
    elif sampling.top_k is not None and sampling.temperature > 0:
        fields["top_k"] = sampling.top_k  # no field of OpenAI's; the probe has seen that it is heeded
    return fields


def _begins_at_the_end(string: str, text: str) -> bool:
    return any(text.endswith(string[:length]) for length in range(1, len(string)))


@dataclass(frozen=True)
class Choice:
    """One completion as the server gave it; ``stop_string`` as in `Completion`, where it says (vLLM, SGLang)."""

    text: str
    finish_reason: Literal["stop", "length"] | None
    logps: tuple[float, ...] | None
    num_tokens: int | None
    stop_string: str | None = None


def choices_of(reply: Mapping[str, Any], num_samples: int) -> list[Choice]:
    """The completions in an answer, in the order of their index; more than were asked for are left out.

    Raises:
        RequestError: there is none, or one without text or with an ending that is none (``abort``, ``content_filter``).
    """
    listed = reply.get("choices")
    if not isinstance(listed, list) or not listed or not all(isinstance(choice, dict) for choice in listed):
        raise RequestError("broken", "the answer has no choices")
    if all(isinstance(choice.get("index"), int) for choice in listed):
        listed = sorted(listed, key=lambda choice: choice["index"])
    usage = reply.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) and len(listed) == 1 else None
    return [_choice(choice, total) for choice in listed[:num_samples]]


def _choice(choice: Mapping[str, Any], total: object) -> Choice:
    reason = choice.get("finish_reason")
    if reason is not None and reason not in _FINISHED:
        raise RequestError("broken", f"a completion ended with finish_reason {reason!r}")
    text = choice.get("text")
    if isinstance(message := choice.get("message"), dict):
        text = message.get("content")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thoughts, str):  # taken out by the server; a prompt would have got it as the model wrote it
            text = f"<think>{thoughts}" + (f"</think>{text}" if isinstance(text, str) else "")
    if not isinstance(text, str):
        raise RequestError("broken", f"a completion has no text but {text!r}")
    logps = _logps(choice.get("logprobs"))
    num_tokens = total if isinstance(total, int) and not isinstance(total, bool) else None
    if num_tokens is None and logps is not None:
        num_tokens = len(logps)
    stopped_at = choice.get("stop_reason", choice.get("matched_stop", _UNSAID))  # an end token is given by its id
    stop_string = None if stopped_at is _UNSAID else stopped_at if isinstance(stopped_at, str) else ""
    return Choice(text, _FINISHED[reason] if reason is not None else None, logps, num_tokens, stop_string)


def _logps(logprobs: object) -> tuple[float, ...] | None:
    if not isinstance(logprobs, dict):
        return None
    given = logprobs.get("token_logprobs")
    if isinstance(content := logprobs.get("content"), list):  # of /chat/completions
        given = [token.get("logprob") for token in content if isinstance(token, dict)]
    if not isinstance(given, list) or not given:
        return None
    if not all(isinstance(logp, int | float) and math.isfinite(logp) for logp in given):
        return None
    return tuple(float(logp) for logp in given)


def completion_of(
    choice: Choice,
    request: Request,
    *,
    max_tokens: int,
    stop: Sequence[str],
    count: Callable[[str], int],
    stops: bool = True,
) -> Completion:
    """A completion as every engine gives it: cut before the first stop string, whatever the server did about it.

    Args:
        choice: what the server gave.
        request: whose id and sample index it gets.
        max_tokens: what was asked for; decides the finish reason where the server gives none.
        stop: strings to cut at: the stop strings, and the end tokens as text.
        count: number of tokens of a text, for servers that do not say.
        stops: whether the server may have ended at a stop string itself.
    """
    text, reason, num_tokens, logps = choice.text, choice.finish_reason, choice.num_tokens, choice.logps
    found = [(at, string) for string in stop if (at := text.find(string)) >= 0]
    if num_tokens is None:
        num_tokens = count(text) + (reason == "stop" and not found)  # and the end token
    stop_string = choice.stop_string
    if found:
        at, string = min(found)
        stop_string = string
        end = at + max(len(other) for where, other in found if where == at)
        if end < len(text) or not stops:  # the server wrote on: these tokens were never asked for
            num_tokens, logps = count(text[: at + len(string)]), None
        text, reason = text[:at], "stop"
    reason = reason or ("length" if num_tokens >= max_tokens else "stop")
    mean_logp = sum(logps) / len(logps) if logps else None
    stop_string = "" if reason == "length" else stop_string
    return Completion(request.id, request.sample, text, reason, num_tokens, mean_logp, stop_string=stop_string)
