"""Generation by OpenAI-compatible servers, as the local engine does it in process (docs/generation.md)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dftune.data.tokens import adds_bos
from dftune.files import read_json
from dftune.generate.base import Completion, Failure, IncompleteError, Request, Sampling
from dftune.generate.bridge import drive
from dftune.generate.config import ServerConfig
from dftune.generate.endpoint import Endpoint
from dftune.generate.faults import Backoff
from dftune.generate.session import Session
from dftune.generate.wire import ServerFacts


class ServerEngine:
    """Servers that complete prompts; the load is shared by all of them.

    Every request is one HTTP request, or one for several samples of a problem where the server gives them. A request
    that failed is tried again (429, 5xx, time limit, lost connection, answer that makes no sense) and becomes a
    `Failure` at last, never a completion.
    """

    def __init__(
        self,
        config: ServerConfig,
        names: Sequence[str],
        tokenizer: Any,
        *,
        end_token_ids: Collection[int] = (),
        max_context: int | None = None,
        needs: Collection[str] = (),
        backoff: Backoff | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            config: the servers, and how much is asked of them.
            names: by which the model may be known to them (its path, its hub id), the likeliest first.
            tokenizer: the model's.
            end_token_ids: tokens at which the served model ends by itself, besides the tokenizer's end-of-sequence.
            max_context: most tokens of prompt and completion together; a server's own limit is used where it is lower.
            needs: what the run cannot do without: ``logprobs``, ``seed``.
            backoff: waiting times between attempts.
            say: told what a user should know; default, print to stderr.

        Raises:
            ValueError: there is no server.
        """
        if not config.server:
            raise ValueError(
                "There is no server to ask. Give --server http://HOST:PORT/v1, or start one: dftune serve."
            )
        self.config, self.names, self.tokenizer = config, list(names), tokenizer
        self.max_context, self.needs = max_context, tuple(needs)
        self.say = say or _say
        self.endpoints = [
            Endpoint(
                url, concurrency=config.concurrency, timeout_s=config.request_timeout_s, backoff=backoff or Backoff()
            )
            for url in config.server
        ]
        self._end_token_ids = frozenset({*end_token_ids, tokenizer.eos_token_id} - {None})

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end any text of the model."""
        return self._end_token_ids

    @property
    def facts(self) -> list[ServerFacts]:
        """What the probe found, for every server that has been probed."""
        return [endpoint.facts for endpoint in self.endpoints if endpoint.facts is not None]

    @property
    def asked(self) -> Counter[str]:
        """Requests so far, those of the probe included, by outcome: ``answered`` or the kind of fault."""
        return sum((endpoint.asked for endpoint in self.endpoints), Counter())

    def describe(self) -> dict[str, Any]:
        """For the manifest: which servers there were, and what they do with what they are asked."""
        return {"chat": self.config.chat, "servers": [facts.as_dict() for facts in self.facts]}

    def probe(self, sampling: Sampling) -> list[ServerFacts]:
        """Find out what the servers do with requests of this sampling; `generate` does so itself where needed.

        Raises:
            ValueError: no server can be reached, one serves another model or does not accept the key, or one ignores
                what cannot be done without.
        """
        self._run([], sampling, lambda items: None)
        return self.facts

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_done: Callable[[Sequence[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request.

        Args:
            requests: what to complete.
            sampling: how.
            on_done: called in this thread with completions as they come, in any order, so that they can be saved.

        Returns:
            The completions in the order of the requests.

        Raises:
            ValueError: as for `probe`; or a prompt leaves no room in the context.
            IncompleteError: some requests failed for good; all others were delivered.
        """
        finished: dict[tuple[str, int], Completion] = {}
        failures: list[Failure] = []
        prepared = [self._prepare(request) for request in requests]
        if not prepared:
            return []

        def receive(items: list[Completion | Failure]) -> None:
            completions = [item for item in items if isinstance(item, Completion)]
            failures.extend(item for item in items if isinstance(item, Failure))
            finished.update({(done.id, done.sample): done for done in completions})
            if completions and on_done is not None:
                on_done(completions)

        self._run(prepared, sampling, receive)
        if failures:
            raise _incomplete(failures, len(requests))
        return [finished[request.id, request.sample] for request in requests]

    def _run(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_items: Callable[[list[Completion | Failure]], None],
    ) -> None:
        def work(emit: Callable[[Completion | Failure], None]) -> Coroutine[Any, Any, None]:
            return Session(self, sampling, emit).run(requests)

        drive(work, on_items)

    def count(self, text: str) -> int:
        """Tokens of a completion."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, as a server makes them of a prompt."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=True)
        return ids

    def end_texts(self, token_ids: Collection[int]) -> tuple[str, ...]:
        """Those of the end tokens that have a text of their own, by it."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        texts = (self.tokenizer.decode([index]) for index in sorted(token_ids) if index in special)
        return tuple(text for text in texts if text)

    def _prepare(self, request: Request) -> Request:
        """The request, checked, with its prompt as text too."""
        if not request.prompt and not request.text and not request.messages:
            raise ValueError(f"the prompt of {request.id!r} is empty; a completion needs at least one token before it.")
        request.room(1, self.max_context)
        if request.text or request.messages:
            return request
        ids = request.prompt
        if adds_bos(self.tokenizer) and ids[:1] == (self.tokenizer.bos_token_id,):
            ids = ids[1:]  # the server adds it
        return replace(request, text=self.tokenizer.decode(list(ids)))


def load_server_engine(
    config: ServerConfig,
    model: str,
    tokenizer: Any,
    *,
    folder: Path | None = None,
    kind: type[ServerEngine] = ServerEngine,
    **options: Any,
) -> ServerEngine:
    """Servers that serve ``model``.

    Args:
        config: the servers, and how much is asked of them.
        model: path or hub id, as the user gave it.
        tokenizer: the model's.
        folder: the model's files, where they are here: its end tokens and its context are read off them.
        kind: of engine.
        options: as for `ServerEngine`.

    Raises:
        ValueError: there is no server in ``config``.
    """
    names = [model]
    ends: list[int] = []
    context = None
    if folder is not None:
        names += [str(folder), str(folder.resolve())]
        ends = _listed(_read(folder / "generation_config.json").get("eos_token_id"))
        settings = _read(folder / "config.json")
        context = settings.get("text_config", settings).get("max_position_embeddings")
    return kind(
        config, list(dict.fromkeys(names)), tokenizer, **{"end_token_ids": ends, "max_context": context, **options}
    )


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path) if path.is_file() else {}
    return values


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _incomplete(failures: Sequence[Failure], num_requests: int) -> IncompleteError:
    (reason, times), *_ = Counter(failure.reason for failure in failures).most_common(1)
    return IncompleteError(
        f"{len(failures)} of {num_requests} requests failed, and what was delivered is kept. "
        f"The commonest reason ({times}): {reason}. Run the same command again: it asks for the missing ones only.",
        failures,
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr)
