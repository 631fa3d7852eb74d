"""One server: its HTTP client, how much may be asked of it at once, and whether it answers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dftune.generate.faults import Backoff, RequestError, error_in, fault_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from dftune.generate.wire import ServerFacts

_NOBODY_BEHIND = (502, 503, 504)
_LIST_TIMEOUT_S = 10.0


class Endpoint:
    """A server, by its base URL.

    The number of requests in flight adapts as TCP does: an answer raises the limit by one a round, a 429, a 5xx or a
    time-out halves it, once for all requests that were sent before the last cut.

    Attributes:
        limit: requests that may be in flight, between 1 and ``concurrency``.
        up: False from a lost connection until the server answers again.
        lost_at: time of the event loop of that loss.
        resume_at: time of the event loop before which nothing is sent (Retry-After).
        facts: what the probe found; None before it.
        probed: what the probe asked with.
        max_context: the server's own limit on prompt and completion together.
        asked: requests by outcome: ``answered``, or the kind of fault.
    """

    def __init__(self, url: str, *, concurrency: int, timeout_s: float, backoff: Backoff) -> None:
        self.url, self.concurrency, self.timeout_s, self.backoff = url, concurrency, timeout_s, backoff
        self.name = re.sub(r"//[^/@]*@", "//", url)  # as it may be written down: without a password
        self.limit = float(concurrency)
        self.in_flight = 0
        self.up = True
        self.lost_at = 0.0
        self.resume_at = 0.0
        self.facts: ServerFacts | None = None
        self.probed: tuple[object, ...] = ()
        self.max_context: int | None = None
        self.asked: Counter[str] = Counter()
        self._cut_at = -math.inf
        self._client: AsyncOpenAI | None = None

    def open(self) -> None:
        """Make the client; it belongs to the running event loop."""
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (an extra)
        except ImportError as error:
            raise ValueError("servers are reached with the openai package: pip install 'dftune[serve]'.") from error
        self._client = AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,  # counted by ourselves
            timeout=self.timeout_s,
        )
        self.in_flight, self.resume_at, self._cut_at, self.up = 0, 0.0, -math.inf, True

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def is_free(self, now: float) -> bool:
        """Whether another request may be sent."""
        return self.up and self.facts is not None and now >= self.resume_at and self.in_flight < int(self.limit)

    async def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a request; the answer's JSON object.

        Raises:
            RequestError: there is no such answer.
        """
        sent_at = asyncio.get_running_loop().time()
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                assert self._client is not None
                reply = _object(await self._client.post(path, body=dict(body), cast_to=object))
        except Exception as error:
            fault = fault_of(error, self.timeout_s)
            self._adapt(fault, sent_at)
            raise fault from error
        finally:
            self.in_flight -= 1
        self.asked["answered"] += 1
        self.limit = min(self.concurrency, self.limit + 1 / self.limit)
        return reply

    async def get(self, url: str) -> Any:
        """GET the JSON of a path under the base URL, or of a whole URL.

        Raises:
            RequestError: there is none.
        """
        try:
            return await self._get(url)
        except RequestError as fault:
            if fault.kind != "unreachable" or not fault.arrived:
                raise
            return await self._get(url)  # the server had just closed a connection that was kept open

    async def _get(self, url: str) -> Any:
        assert self._client is not None
        timeout_s = min(self.timeout_s, _LIST_TIMEOUT_S)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.get(url, cast_to=object)
        except Exception as error:
            raise fault_of(error, timeout_s) from error

    async def answers(self) -> bool:
        """Whether the server is there: it gives any answer, but not that of a gateway without it."""
        try:
            await self.get("/models")
        except RequestError as fault:
            return fault.status is not None and fault.status not in _NOBODY_BEHIND
        return True

    def lose(self) -> None:
        """Say that the server cannot be reached."""
        if self.up:
            self.up, self.lost_at = False, asyncio.get_running_loop().time()

    def _adapt(self, fault: RequestError, sent_at: float) -> None:
        now = asyncio.get_running_loop().time()
        self.asked[fault.kind] += 1
        if fault.kind == "unreachable":
            self.lose()
        if fault.kind == "busy" and sent_at > self._cut_at:
            self.limit, self._cut_at = max(1.0, self.limit / 2), now
        if fault.retry_after_s is not None:
            self.resume_at = max(self.resume_at, now + fault.retry_after_s)


def _object(reply: object) -> dict[str, Any]:
    if isinstance(reply, str):  # the content type was not JSON's
        try:
            reply = json.loads(reply)
        except ValueError:
            raise RequestError("broken", f"the answer is not JSON: {' '.join(str(reply).split())[:100]!r}") from None
    if error := error_in(reply):
        raise RequestError("broken", f"an error with status 200: {error}")
    if not isinstance(reply, dict):
        raise RequestError("broken", f"the answer is not a JSON object but {type(reply).__name__}")
    return reply


class Pool:
    """Servers that share the load: the least loaded one that is up gets the next request."""

    def __init__(self, endpoints: list[Endpoint], *, outage_s: float) -> None:
        self.endpoints, self.outage_s = endpoints, outage_s
        self._changed = asyncio.Event()
        self.error: Exception | None = None

    def notify(self) -> None:
        """Say that a server has become free, or has come or gone."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def free(self) -> Endpoint:
        """Wait for a server that may be asked.

        Raises:
            RequestError: none was up for ``outage_s``.
            Exception: ``error``, once it is set.
        """
        loop = asyncio.get_running_loop()
        while True:
            if self.error is not None:
                raise self.error
            now = loop.time()
            candidates = [endpoint for endpoint in self.endpoints if endpoint.is_free(now)]
            if candidates:
                return min(candidates, key=lambda endpoint: endpoint.in_flight / endpoint.limit)
            down = not any(endpoint.up for endpoint in self.endpoints)
            if down and now - max(endpoint.lost_at for endpoint in self.endpoints) > self.outage_s:
                raise RequestError("refused", f"no server could be reached for {self.outage_s:g} s")
            later = [e.resume_at - now for e in self.endpoints if e.up and e.resume_at > now]
            try:
                await asyncio.wait_for(self._changed.wait(), min([*later, 0.5]))
            except TimeoutError:
                continue
