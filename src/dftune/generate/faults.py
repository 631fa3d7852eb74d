"""What can go wrong with a request, and how long to wait before it is tried again."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["fatal", "refused", "busy", "broken", "unreachable"]

_LONGEST_RETRY_AFTER_S = 600.0
_SHOWN = 300


class RequestError(Exception):
    """A request without a usable answer.

    Attributes:
        kind: ``fatal``: no request can succeed (key, model name); ``refused``: this one never will (400, 413, 422);
            ``busy``: too much at once (429, 5xx, time limit); ``broken``: the answer makes no sense; ``unreachable``:
            no connection, or one that was lost.
        reason: for the user.
        status: of the HTTP answer, where there was one.
        retry_after_s: how long the server asks to be left alone.
        arrived: whether the server may have begun to work on it.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        arrived: bool = True,
    ) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.status = kind, reason, status
        self.retry_after_s, self.arrived = retry_after_s, arrived


@dataclass
class Backoff:
    """Exponential waiting times with jitter.

    Attempt k waits ``u min(cap_s, base_s 2^k)``, u uniform in [0.5, 1], so that many requests do not return together.
    """

    base_s: float = 0.5
    cap_s: float = 60.0
    random: random.Random = field(default_factory=random.Random)

    def seconds(self, attempt: int) -> float:
        """How long to wait after failed attempt ``attempt``, counted from 0."""
        return self.random.uniform(0.5, 1.0) * min(self.cap_s, self.base_s * 2.0 ** min(attempt, 60))


def fault_of(error: Exception, timeout_s: float) -> RequestError:
    """What an exception of the HTTP client means.

    Raises:
        Exception: ``error`` itself, where it is none of the client's.
    """
    import openai  # noqa: PLC0415

    if isinstance(error, RequestError):
        return error
    if isinstance(error, asyncio.TimeoutError | openai.APITimeoutError):
        return RequestError("busy", f"no answer within {timeout_s:g} s (request_timeout_s)")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error.status_code, error.response.text, error.response.headers)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        what = str(cause or error).strip() or type(cause or error).__name__
        return RequestError("unreachable", f"connection failed: {what}", arrived=type(cause).__name__ != "ConnectError")
    if isinstance(error, openai.APIError | json.JSONDecodeError | UnicodeDecodeError):
        return RequestError("broken", f"the answer is not valid JSON ({str(error).strip()[:_SHOWN]})")
    raise error


def _of_status(status: int, text: str, headers: Mapping[str, str]) -> RequestError:
    said = f"HTTP {status}: {_message(text)}"
    if status in (401, 403):
        return RequestError("fatal", f"{said}. The key in OPENAI_API_KEY is missing or not accepted.", status=status)
    if status == 404:
        return RequestError("fatal", f"{said}. It does not know this model or path: see served_model.", status=status)
    if status in (408, 409, 425, 429) or status >= 500:
        return RequestError("busy", said, status=status, retry_after_s=retry_after(headers))
    return RequestError("refused", said, status=status)


def _message(text: str) -> str:
    """The server's own words, without the JSON around them."""
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    for key in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    said = " ".join(str(body).split())[:_SHOWN] or "(no text)"
    secret = os.environ.get("OPENAI_API_KEY")
    return said.replace(secret, "***") if secret else said


def error_in(reply: object) -> str | None:
    """The message of an error that came with status 200."""
    if isinstance(reply, dict) and (error := reply.get("error")):
        return _message(json.dumps({"error": error}))
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``retry-after-ms`` or ``retry-after`` (seconds or a date) ask for, at most ten minutes."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            seconds = math.nan if date is None else email.utils.mktime_tz(date) - time.time()
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)
    return None
