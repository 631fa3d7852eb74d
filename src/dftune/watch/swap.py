"""One engine for one checkpoint after another: servers that are given its weights (docs/watch.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.locate import locate
from dftune.evaluate.models import ModelFiles
from dftune.generate.base import Completion, IncompleteError, Request, Sampling
from dftune.generate.client import ServerEngine, load_server_engine
from dftune.watch.engine import PersistentEngine
from dftune.watch.weights import Server, Target, VllmServer, meet, next_logps, probe_prompts

Say = Callable[[str], None]

_SECONDS_BETWEEN_CHECKS = 30.0
_MOST_LOSSES = 5


class _LostError(Exception):
    """A server may have answered with other weights."""


class SwappedEngine(ServerEngine):
    """Servers that complete prompts with the weights of one model, which they are given first.

    Completions are handed over once the servers were seen to have these weights still: every half minute, at the end,
    and never when a connection was lost since. Others are thrown away and asked for again.
    """

    weights: ServedCheckpoints
    target: Target

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_done: Callable[[Sequence[Completion]], None] | None = None,
    ) -> list[Completion]:
        """As for `ServerEngine`.

        Raises:
            ValueError: also: a server does not take on the weights, or does not keep them.
            ConnectionError: a server is gone for longer than ``outage_s``.
            IncompleteError: some requests failed for good; all others were delivered.
        """
        finished: dict[tuple[str, int], Completion] = {}

        def deliver(completions: Sequence[Completion]) -> None:
            finished.update({(done.id, done.sample): done for done in completions})
            if completions and on_done is not None:
                on_done(completions)

        losses = 0
        with self.target.folder() as folder:
            while left := [one for one in requests if (one.id, one.sample) not in finished]:
                self.weights.put(self.target, folder)
                before = len(finished)
                try:
                    self._generate_confirmed(left, sampling, deliver)
                except _LostError as error:
                    losses = 0 if len(finished) > before else losses + 1
                    if losses == _MOST_LOSSES:
                        raise ValueError(f"{error}, {losses} times in a row. Is another watcher using it?") from error
                    self.say(f"{error}: what it has answered since is thrown away, and it is given the weights again")
        return [finished[request.id, request.sample] for request in requests]

    def _generate_confirmed(
        self, requests: Sequence[Request], sampling: Sampling, deliver: Callable[[Sequence[Completion]], None]
    ) -> None:
        held: list[Completion] = []
        losses, checked = self.asked["unreachable"], time.monotonic()

        def receive(completions: Sequence[Completion]) -> None:
            held.extend(completions)
            if self.asked["unreachable"] > losses or time.monotonic() - checked > _SECONDS_BETWEEN_CHECKS:
                confirm()

        def confirm() -> None:
            nonlocal checked
            if self.asked["unreachable"] > losses:
                raise _LostError("a connection to the server was lost")
            self.weights.check(self.target, _LostError)
            deliver(list(held))
            held.clear()
            checked = time.monotonic()

        try:
            super().generate(requests, sampling, receive)
        except IncompleteError:
            confirm()
            raise
        confirm()


class ServedCheckpoints:
    """Gives the engine of a model: servers that take on its weights when they are asked for completions.

    Args:
        config: names the servers.

    Attributes:
        num_loaded: always 0: no model is loaded to generate with.
        num_swapped: how often servers were given weights.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.num_loaded = self.num_swapped = 0
        self._local = PersistentEngine()
        self._before: Tensor | None = None
        self._made: SwappedEngine | None = None

    @cached_property
    def servers(self) -> list[Server]:
        """The servers, met when they are first wanted.

        Raises:
            ValueError: one does not answer, or its weights cannot be changed.
        """
        return [meet(url, self.config) for url in self.config.server]

    def __call__(
        self,
        files: ModelFiles,
        tokenizer: Any,
        config: EvaluateConfig,
        *,
        batch_size: int,
        device: str,
        dtype: str,
        say: Say,
    ) -> SwappedEngine:
        """The engine of a model of a run.

        Raises:
            ValueError: the model cannot be loaded here.
        """
        _, step = locate(files.place)
        assert step is not None
        engine = load_server_engine(config, files.named, tokenizer, folder=files.folder, say=say, kind=SwappedEngine)
        assert isinstance(engine, SwappedEngine)
        engine.names = [server.model for server in self.servers]
        if self._made is not None:
            engine.endpoints = self._made.endpoints  # with what the probe has found
        prompts = probe_prompts(tokenizer, engine.max_context)
        engine.weights, engine.target = self, Target(files, step, files.fingerprint(), prompts)
        if any(isinstance(server, VllmServer) for server in self.servers):
            local = self._local(files, tokenizer, config, batch_size=batch_size, device=device, dtype=dtype, say=say)
            engine.target.model, engine.target.before = local.model, self._before
            engine.target.logps = self._before = next_logps(local, prompts)
        self._made = engine
        return engine

    def put(self, target: Target, folder: Path) -> None:
        """Give every server the weights of a model.

        Raises:
            ValueError: a server does not take them on, or says that it has and answers with others.
            ConnectionError: a server is gone.
        """
        for server in self.servers:
            server.put(target, folder)
        self.num_swapped += 1
        self.check(target, ValueError)

    def check(self, target: Target, error: type[Exception]) -> None:
        """Raise ``error`` unless every server answers with the weights of a model."""
        for server in self.servers:
            if (doubt := server.doubt(target)) is not None:
                raise error(f"{server.name} does not answer with the weights of step {target.step}: {doubt}")
