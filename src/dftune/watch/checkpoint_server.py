"""A server whose weights are those of one checkpoint of a run after another (`dftune serve RUN --swap`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.locate import models_of
from dftune.evaluate.models import find_files
from dftune.generate.base import Completion, Request, Sampling
from dftune.generate.load import choose_device, choose_dtype, load_tokenizer
from dftune.generate.local import LocalEngine
from dftune.generate.serve import LOOPBACK
from dftune.watch.engine import PersistentEngine

OWNER = "dftune"
_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n"}
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Weights:
    """What a server answers with: a step of its run, and the fingerprint of that model's files."""

    step: int
    fingerprint: str


@dataclass(eq=False)
class _Asked:
    request: Request
    sampling: Sampling
    done: Completion | Exception | None = None


class CheckpointServer(ThreadingHTTPServer):
    """Completes prompts as the local engine does, with the weights of one model of a run.

    ``GET /health`` and ``/v1/models``, ``POST /v1/completions`` as OpenAI has them (one completion a request, no
    log-probabilities; a field that is not known is refused). ``POST /weights {"step": N}`` takes on the weights of step
    N of the run, and ``GET /weights`` says which they are. A step is all that can be named: no path comes from outside.
    Requests that wait while the model computes are then computed together.

    Args:
        run: the run folder.
        host: address to listen at.
        port: likewise; 0 takes a free one.
        device: computed on.
        batch_size: most completions computed together.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, run: Path, *, host: str = LOOPBACK, port: int = 0, device: str = "auto", batch_size: int = 64
    ) -> None:
        self.run, self.batch_size = run, batch_size
        self.device = choose_device(device)
        self.weights: Weights | None = None
        self._make = PersistentEngine()
        self._engine: LocalEngine | None = None
        self._model = threading.Lock()  # whoever holds it computes, or changes the weights
        self._waiting: list[_Asked] = []
        self._list = threading.Lock()  # for the list above
        super().__init__((host, port), _Handler)
        self.url = f"http://{host}:{self.server_port}/v1"

    def put(self, step: int) -> Weights:
        """Take on the weights of a step of the run.

        Raises:
            LookupError: the run has no such model now.
            ValueError: it cannot be loaded.
        """
        with self._model:
            there = models_of(self.run)
            if step not in there:
                raise LookupError(f"{self.run} has no model of step {step}; it has {sorted(there) or 'none'}.")
            files = find_files(str(there[step]))
            self.weights, self._engine = None, None
            taken = Weights(step, files.fingerprint())
            self._engine = self._make(
                files,
                load_tokenizer(files.folder),
                EvaluateConfig(),
                batch_size=self.batch_size,
                device=self.device,
                dtype=choose_dtype("auto", self.device),
                say=print,
            )
            self.weights = taken
        return taken

    def complete(self, fields: Mapping[str, Any]) -> tuple[Completion, int]:
        """The completion that the body of a request asks for, and the number of tokens of its prompt.

        Raises:
            ValueError: the request is wrong.
            LookupError: there are no weights yet.
        """
        if (engine := self._engine) is None:
            raise LookupError("There are no weights yet: POST /weights, as `dftune watch RUN --server` does.")
        asked = _parse(fields, engine)
        with self._list:
            self._waiting.append(asked)
        with self._model:
            if asked.done is None:
                self._compute(asked)
        if isinstance(asked.done, Exception):
            raise asked.done
        assert asked.done is not None
        return asked.done, len(asked.request.prompt)

    def _compute(self, first: _Asked) -> None:
        """Complete ``first``, and with it what waits and can be computed in one batch: samples of other seeds."""
        batch = {first.request.id: first}
        with self._list:
            for other in self._waiting:
                if other.sampling == first.sampling and len(batch) < self.batch_size:
                    batch.setdefault(other.request.id, other)
            self._waiting = [asked for asked in self._waiting if batch.get(asked.request.id) is not asked]
        try:
            if self._engine is None:
                raise LookupError("The weights could not be changed, and there are none now.")
            done = self._engine.generate([asked.request for asked in batch.values()], first.sampling)
        except Exception as error:  # answered, to all of them
            for asked in batch.values():
                asked.done = error
        else:
            for asked, completion in zip(batch.values(), done, strict=True):
                asked.done = completion


def _parse(fields: Mapping[str, Any], engine: LocalEngine) -> _Asked:
    """A request of `/v1/completions`; at a temperature its id is its seed, which is all that a sample hangs on."""
    if unknown := fields.keys() - _FIELDS:
        raise ValueError(
            f"this server does not know {', '.join(sorted(unknown))}; it takes {', '.join(sorted(_FIELDS))}"
        )
    if fields.get("n", 1) != 1:
        raise ValueError("this server gives one completion a request: n must be 1")
    prompt, stop = fields.get("prompt"), fields.get("stop") or ()
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        raise ValueError("prompt must be a text or a list of token ids, and not empty")
    if not all(0 <= one < engine.model.config.get_text_config().vocab_size for one in ids):
        raise ValueError("prompt has token ids that the model does not know")
    sampling = Sampling(
        max_tokens=fields.get("max_tokens", 16),
        temperature=fields.get("temperature", 1.0),
        top_p=fields.get("top_p", 1.0),
        top_k=fields.get("top_k"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        end_token_ids=engine.end_token_ids,
    )
    seed = fields.get("seed")
    request = Request("", tuple(ids))
    request.room(1, engine.max_context)
    own = str(seed) if sampling.temperature > 0 and seed is not None else f"{id(request):x}"
    return _Asked(Request(own, tuple(ids)), sampling)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CheckpointServer

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer({"status": "ok"})
        elif self.path == "/v1/models":
            self._answer(
                {"object": "list", "data": [{"id": str(self.server.run), "object": "model", "owned_by": OWNER}]}
            )
        elif self.path == "/weights":
            self._answer(_shown(self.server.weights))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path}")

    def do_POST(self) -> None:
        try:
            fields = self._body()
            if self.path == "/weights":
                self._answer(_shown(self.server.put(fields["step"])))
            elif self.path == "/v1/completions":
                self._answer(_completion(*self.server.complete(fields), str(self.server.run)))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
        except LookupError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except (TypeError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _body(self) -> dict[str, Any]:
        size = int(self.headers.get("Content-Length", 0))
        if self.headers.get_content_type() != "application/json" or size > _MOST_BYTES:
            self.close_connection = True  # a page in a browser cannot send this type to another site unasked
            raise ValueError(f"expected application/json of at most {_MOST_BYTES} bytes")
        fields = json.loads(self.rfile.read(size))
        if not isinstance(fields, dict):
            raise ValueError("expected a JSON object")
        return fields

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer({"error": {"message": message}}, status)

    def _answer(self, value: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about single requests."""


def _shown(weights: Weights | None) -> dict[str, Any]:
    return {"step": None, "fingerprint": None} if weights is None else asdict(weights)


def _completion(done: Completion, num_prompt: int, model: str) -> dict[str, Any]:
    choice = {"index": 0, "text": done.text, "finish_reason": done.finish_reason, "logprobs": None}
    choice["stop_reason"] = done.stop_string or None
    usage = {"prompt_tokens": num_prompt, "completion_tokens": done.num_tokens}
    return {"object": "text_completion", "model": model, "choices": [choice], "usage": usage}
