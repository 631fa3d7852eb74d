"""One run of requests over the servers of an engine: workers, retries, and servers that come and go."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from dftune.files import fingerprint
from dftune.generate.base import Completion, Failure, Request, Sampling
from dftune.generate.endpoint import Endpoint, Pool
from dftune.generate.faults import RequestError
from dftune.generate.probe import Probe, list_models, names_to_try, software_of
from dftune.generate.wire import body, choices_of, completion_of

if TYPE_CHECKING:
    from dftune.generate.client import ServerEngine

_LONGEST_BETWEEN_LOOKS_S = 5.0


@dataclass
class _Job:
    """Samples of one problem that are still to be had, and what has been tried for them."""

    waiting: list[Request]
    attempts: int = 0


class Session:
    """The work of one call, on one event loop."""

    def __init__(self, engine: ServerEngine, sampling: Sampling, emit: Callable[[Completion | Failure], None]) -> None:
        self.engine, self.sampling, self.emit = engine, sampling, emit
        self.path = "/chat/completions" if engine.config.chat else "/completions"
        self.extra_ends = sampling.end_token_ids - engine.end_token_ids
        self.end_texts = engine.end_texts(sampling.end_token_ids)
        self._watchers: dict[Endpoint, asyncio.Task[None]] = {}

    async def run(self, requests: Sequence[Request]) -> None:
        """Probe the servers, then complete all requests; completions and failures are emitted.

        Raises:
            ValueError: nothing can be had of the servers.
        """
        engine = self.engine
        self.pool = Pool(engine.endpoints, outage_s=engine.config.outage_s)
        workers: list[asyncio.Task[None]] = []
        try:
            for endpoint in engine.endpoints:
                endpoint.open()
            await self._meet_all()
            limits = [endpoint.max_context for endpoint in engine.endpoints if endpoint.max_context is not None]
            for request in requests:
                request.room(1, min(limits, default=None))
            jobs = self._jobs(requests)
            num_workers = min(len(jobs), sum(endpoint.concurrency for endpoint in engine.endpoints))
            workers = [asyncio.create_task(self._work(jobs)) for _ in range(num_workers)]
            await asyncio.gather(*workers)
        finally:
            tasks = [*workers, *self._watchers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for endpoint in engine.endpoints:
                await endpoint.close()

    # --- servers ------------------------------------------------------------------------------------

    async def _meet_all(self) -> None:
        """Probe every server that answers; watch for the others.

        Raises:
            ValueError: none answers, or what one answers rules it out.
        """
        endpoints = self.engine.endpoints
        faults = [fault for fault in await asyncio.gather(*map(self._meet, endpoints)) if fault is not None]
        if len(faults) == len(endpoints):
            reasons = "; ".join(
                f"{endpoint.name}: {fault.reason}" for endpoint, fault in zip(endpoints, faults, strict=True)
            )
            raise ValueError(
                f"No server can be used ({reasons}). Start one with `dftune serve MODEL`, or check the base URL: "
                "it usually ends in /v1."
            )
        for endpoint in endpoints:
            if not endpoint.up:
                self.engine.say(f"Note: {endpoint.name} does not answer; it is left out until it does.")
                self._watch(endpoint)

    async def _meet(self, endpoint: Endpoint) -> RequestError | None:
        """Check which model a server has, and probe it; the fault if it does not answer.

        Raises:
            ValueError: it serves another model, does not accept the key, or ignores what cannot be done without.
        """
        engine = self.engine
        try:
            listed = await list_models(endpoint)
            software = await software_of(endpoint, listed)
            if software == "transformers":
                listed = None  # it lists what is in the hub's cache, not what it serves
            names = names_to_try(listed, engine.names, engine.config.served_model, endpoint.name)
            if endpoint.facts is not None and endpoint.probed == self._probed():
                return None
            probe = Probe(endpoint, self.sampling, engine.config.chat, engine.encode, engine.config.max_retries)
            facts = await probe.run(names, software, self.extra_ends)
        except RequestError as fault:
            if fault.kind == "fatal":
                raise ValueError(f"{endpoint.name}: {fault.reason}") from fault
            endpoint.lose()
            return fault
        if facts.fixed_sampling and not engine.config.fixed_sampling:
            raise ValueError(
                f"{endpoint.name} samples every request as its first one, whatever temperature and top_p are asked for "
                "(transformers serve with continuous batching does). Start it without: dftune serve "
                "--no-continuous-batching. Or, if this run is the first to ask this server: fixed_sampling=true."
            )
        missing = [need for need in engine.needs if not getattr(facts, need)]
        if missing:
            raise ValueError(f"{endpoint.name} gives no {' and no '.join(missing)}, which this run needs. Use vLLM.")
        limits = [model["max_model_len"] for model in listed or () if isinstance(model.get("max_model_len"), int)]
        endpoint.max_context = min(limits, default=None)
        endpoint.facts, endpoint.probed, endpoint.up = facts, self._probed(), True
        engine.say(str(facts))
        return None

    def _probed(self) -> tuple[object, ...]:
        """What the probe's findings hang on."""
        return self.sampling.temperature, self.sampling.top_p, bool(self.extra_ends)

    def _watch(self, endpoint: Endpoint) -> None:
        """Look after a server that was lost until it answers again."""
        if endpoint not in self._watchers or self._watchers[endpoint].done():
            self._watchers[endpoint] = asyncio.create_task(self._revive(endpoint))

    async def _revive(self, endpoint: Endpoint) -> None:
        attempt = 0
        try:
            while not (await endpoint.answers() and await self._meet(endpoint) is None):
                await asyncio.sleep(min(endpoint.backoff.seconds(attempt), _LONGEST_BETWEEN_LOOKS_S))
                attempt += 1
        except Exception as error:  # raised where the requests wait
            self.pool.error = error
        else:
            endpoint.up = True
        self.pool.notify()

    # --- requests -----------------------------------------------------------------------------------

    def _jobs(self, requests: Sequence[Request]) -> deque[_Job]:
        """Requests that go together: samples of one problem, where a server gives several at once."""
        together = any(facts.n for facts in self.engine.facts) and self.sampling.temperature > 0
        size = self.engine.config.samples_per_request if together else 1
        jobs: deque[_Job] = deque()
        for _, group in groupby(requests, key=lambda request: (request.id, request.prompt, request.text)):
            samples = list(group)
            jobs += (_Job(samples[start : start + size]) for start in range(0, len(samples), size))
        return jobs

    async def _work(self, jobs: deque[_Job]) -> None:
        while jobs:
            job = jobs.popleft()
            while job.waiting:
                await self._ask(job)

    async def _ask(self, job: _Job) -> None:
        """One attempt: emits what it brings, waits if that is nothing, and gives up after the last."""
        endpoint: Endpoint | None = None
        try:
            endpoint = await self.pool.free()
            completions = await self._complete(endpoint, job.waiting)
        except RequestError as fault:
            await self._after(fault, job, endpoint)
            return
        finally:
            self.pool.notify()
        for completion in completions:
            self.emit(completion)
        job.waiting, job.attempts = job.waiting[len(completions) :], 0

    async def _complete(self, endpoint: Endpoint, requests: Sequence[Request]) -> list[Completion]:
        """Completions of the first requests; fewer than there are where the server gives fewer."""
        facts, first = endpoint.facts, requests[0]
        assert facts is not None
        limit = first.room(first.room(self.sampling.max_tokens, self.engine.max_context), endpoint.max_context)
        num_samples = len(requests) if facts.n else 1
        fields = body(
            first,
            self.sampling,
            facts,
            chat=self.engine.config.chat,
            max_tokens=limit,
            num_samples=num_samples,
            seed=request_seed(self.sampling.seed, first),
            stop=(*self.sampling.stop, *(self.end_texts if facts.end_tokens == "text" else ())),
        )
        choices = choices_of(await endpoint.ask(self.path, fields), num_samples)
        cuts, stops = (*self.sampling.stop, *self.end_texts), facts.stop != "ignored"
        return [
            completion_of(choice, request, max_tokens=limit, stop=cuts, count=self.engine.count, stops=stops)
            for choice, request in zip(choices, requests, strict=False)
        ]

    async def _after(self, fault: RequestError, job: _Job, endpoint: Endpoint | None) -> None:
        """What to do about an attempt that brought nothing.

        Raises:
            ValueError: no other attempt would bring anything either.
        """
        where = f"{endpoint.name}: " if endpoint is not None else ""
        if fault.kind == "fatal":
            raise ValueError(f"{where}{fault.reason}") from fault
        if endpoint is not None and fault.kind == "unreachable":
            self._watch(endpoint)
            if not fault.arrived:  # nothing was asked, so nothing was tried; `outage_s` bounds this
                return
        job.attempts += 1
        if fault.kind == "refused" or job.attempts > self.engine.config.max_retries:
            for request in job.waiting:
                self.emit(Failure(request.id, request.sample, fault.reason))
            job.waiting = []
        elif fault.retry_after_s is None:  # else the server is left alone for so long, and others may be asked
            assert endpoint is not None
            await asyncio.sleep(endpoint.backoff.seconds(job.attempts - 1))


def request_seed(seed: int, request: Request) -> int:
    """The seed of a request: of the run's seed, the problem's id and the (first) sample's index; 31 bits."""
    return int(fingerprint(seed, request.id, request.sample), 16) & 0x7FFFFFFF
