"""Servers whose weights can be changed, and how it is seen that they were."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.locate import locate
from dftune.evaluate.models import ModelFiles
from dftune.generate.faults import fault_of
from dftune.generate.local import LocalEngine
from dftune.watch.checkpoint_server import OWNER

_TEXT = " ".join(f"{number} times {number} is {number * number}." for number in range(2, 60))
_LENGTHS = (2, 5, 17, 34, 70, 140, 200)  # beyond a block of the prefix cache, which must not be of other weights
_NUM_LIKELIEST = 5
_TOLERANCES = {"float32": 0.001}  # mean absolute difference of log-probabilities, in nats
_ROUNDED = 0.1  # of 16 bits
_NOBODY_BEHIND = (502, 503, 504)
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class Target:
    """The model that servers are to answer with.

    Attributes:
        files: where it is.
        step: of its run.
        fingerprint: of its files.
        prompts: token ids of each prompt that servers are probed with.
        model: loaded here; None where no server has to be compared with it.
        logps: (prompts, vocab) float32, log-probabilities of the next token by it.
        before: the same of the model before.
    """

    files: ModelFiles
    step: int
    fingerprint: str
    prompts: list[list[int]]
    model: Any = None
    logps: Tensor | None = None
    before: Tensor | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder with all weights; an adapter's are written beside the run's evaluations, and deleted again."""
        if self.model is None or self.files.adapter is None:
            yield self.files.folder.resolve()
            return
        run, _ = locate(self.files.place)
        assert run is not None
        path = run.resolve() / "evals" / f".merged-step-{self.step}"
        try:
            self.model.save_pretrained(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


class Connection:
    """To one server."""

    def __init__(self, url: str, model: str, config: EvaluateConfig) -> None:
        from openai import OpenAI  # noqa: PLC0415

        self.url, self.model, self.config = url, model, config
        self.name = re.sub(r"//[^/@]*@", "//", url)
        self.root = url.removesuffix("/v1")
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=config.request_timeout_s)

    def ask(self, path: str, body: dict[str, Any] | None = None, *, outage_s: float | None = None) -> Any:
        """GET, or POST ``body``; waits for a server that is being started again.

        Raises:
            ConnectionError: nobody has answered for ``outage_s``.
            ValueError: the server refuses.
        """
        until = time.monotonic() + (self.config.outage_s if outage_s is None else outage_s)
        while True:
            try:
                if body is None:
                    return self._client.get(path, cast_to=object)
                return self._client.post(path, body=body, cast_to=object)
            except Exception as error:
                fault = fault_of(error, self.config.request_timeout_s)
                if fault.kind != "unreachable" and fault.status not in _NOBODY_BEHIND:
                    raise ValueError(f"{self.name}: {fault.reason}") from error
                if time.monotonic() > until:
                    raise ConnectionError(f"{self.name}: {fault.reason}") from error
            time.sleep(_SECONDS_BETWEEN_LOOKS)


class Server(Connection, ABC):
    """One server whose weights can be changed."""

    @abstractmethod
    def put(self, target: Target, folder: Path) -> None:
        """Have it take on the weights of a model; that it says so proves nothing yet."""

    @abstractmethod
    def doubt(self, target: Target) -> str | None:
        """Why it does not answer with these weights; None where it does."""


class OwnServer(Server):
    """`dftune serve RUN --swap`: it names the files whose weights it has."""

    def put(self, target: Target, folder: Path) -> None:
        """As for `Server`; weights that it has already are not read again."""
        if self.doubt(target) is not None:
            self.ask(f"{self.root}/weights", {"step": target.step})

    def doubt(self, target: Target) -> str | None:
        """As for `Server`."""
        held = self.ask(f"{self.root}/weights")
        if held.get("fingerprint") == target.fingerprint:
            return None
        return f"it has the weights of step {held.get('step')} with fingerprint {held.get('fingerprint')}"


class VllmServer(Server):
    """vLLM with its development routes: its log-probabilities are compared with those of the model loaded here."""

    def __init__(self, url: str, model: str, config: EvaluateConfig) -> None:
        super().__init__(url, model, config)
        try:
            said = json.dumps(self.ask(f"{self.root}/server_info"))
        except ValueError as error:
            raise ValueError(
                f"{self.name} is a vLLM whose weights cannot be changed: start it with VLLM_SERVER_DEV_MODE=1, as "
                "`dftune serve RUN --swap` does."
            ) from error
        found = re.search(r"\bdtype=torch\.(\w+)", said)
        self.tolerance = _TOLERANCES.get(found[1] if found else "", _ROUNDED)
        self.on_cpu = "device_config=cpu" in said

    def put(self, target: Target, folder: Path) -> None:
        """As for `Server`; not where it was seen (0.32.0) to keep a packed copy of the head it was started with."""
        if self.on_cpu and target.model.config.get_text_config().tie_word_embeddings:
            raise ValueError(
                f"{self.name} is vLLM on a CPU, which keeps its output head when the weights of a model with tied "
                "embeddings are changed. Use `dftune serve RUN --swap --transformers`, or leave the server out."
            )
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.ask(f"{self.root}/pause?mode=abort", {})  # while a request runs, the cache is not emptied, with status 200
        try:
            self.ask(f"{self.root}/collective_rpc", asked)
            self.ask(f"{self.root}/reset_prefix_cache", {})
        finally:
            self.ask(f"{self.root}/resume", {})

    def doubt(self, target: Target) -> str | None:
        """As for `Server`."""
        assert target.logps is not None
        seen = self._likeliest(target.prompts)
        off = _distance(seen, target.logps)
        said = f"its log-probabilities are {off:.2g} nats from those of the checkpoint"
        if not off <= self.tolerance:
            return f"{said}, where rounding explains at most {self.tolerance:g}"
        if target.before is not None and 2 * _distance(seen, target.before) < off:
            return f"{said}, and nearer to those of the checkpoint before"
        return None

    def _likeliest(self, prompts: list[list[int]]) -> list[dict[int, float]]:
        """The likeliest next tokens of each prompt, with their log-probabilities."""
        asked = {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0.0}
        reply = self.ask("/completions", {**asked, "logprobs": _NUM_LIKELIEST, "return_tokens_as_token_ids": True})
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        return [
            {
                int(token.removeprefix("token_id:")): logp
                for token, logp in choice["logprobs"]["top_logprobs"][0].items()
            }
            for choice in choices
        ]


def _distance(seen: Sequence[dict[int, float]], logps: Tensor) -> float:
    """Mean absolute difference in nats, over the tokens that a server has named."""
    pairs = [(logp, float(row[token])) for found, row in zip(seen, logps, strict=True) for token, logp in found.items()]
    return sum(abs(logp - own) for logp, own in pairs) / len(pairs)


def meet(url: str, config: EvaluateConfig) -> Server:
    """The server at a base URL.

    Raises:
        ValueError: it does not answer, or its weights cannot be changed.
    """
    server = Connection(url, "", config)
    try:
        listed = server.ask("/models", outage_s=0.0).get("data") or [{}]
    except ConnectionError as error:
        raise ValueError(f"{error}. Start it before the watcher: dftune serve RUN --swap.") from error
    kinds: dict[str, type[Server]] = {OWNER: OwnServer, "vllm": VllmServer}
    kind = kinds.get(str(listed[0].get("owned_by")))
    if kind is None:
        raise ValueError(
            f"{server.name} is neither vLLM nor `dftune serve RUN --swap`: a watcher cannot change its weights."
        )
    return kind(url, str(listed[0]["id"]), config)


@torch.inference_mode()
def next_logps(engine: LocalEngine, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of the token after each prompt.

    Args:
        engine: of the model.
        prompts: token ids, each the beginning of the last.

    Returns:
        (prompts, vocab) float32 on the CPU.
    """
    ids = torch.tensor([list(prompts[-1])], device=engine.device)
    logits: Tensor = engine.model(input_ids=ids, use_cache=False).logits[0, [len(prompt) - 1 for prompt in prompts]]
    return logits.float().log_softmax(-1).cpu()


def probe_prompts(tokenizer: Any, max_context: int | None) -> list[list[int]]:
    """Token ids of the prompts that servers are compared on, each the beginning of the next."""
    ids: list[int] = tokenizer.encode(_TEXT, add_special_tokens=False)
    most = min(len(ids), max_context or len(ids))
    return [ids[:length] for length in _LENGTHS if length < most]
