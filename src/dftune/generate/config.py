"""Where completions come from when not from this process: shared by the sections of a recipe that generate."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dftune.config import Config


def base_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """The base URLs of servers, each once, without a slash at the end.

    Raises:
        ValueError: one is no URL.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not a base URL; expected http://HOST:PORT/v1")
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


BaseUrls = Annotated[tuple[str, ...], AfterValidator(base_urls)]


class ServerConfig(Config):
    """OpenAI-compatible servers, and how much is asked of them."""

    server: BaseUrls = ()
    """Base URLs (http://127.0.0.1:8000/v1) that share the load; none: the model is loaded in this process."""
    served_model: str | None = None
    """Name of the model at the server; null: the model's own path or name, as vLLM and transformers serve it."""
    chat: bool = False
    """Send messages to /chat/completions, rendered by the server's chat template, not prompts to /completions."""
    fixed_sampling: bool = False
    """Allow servers that sample every request as their first one (transformers serve with continuous batching)."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Most requests in flight at each server; fewer when it answers 429 or 5xx."""
    samples_per_request: Annotated[int, Field(ge=1)] = 8
    """Most samples of a problem asked for at once where the server allows it; 1 gives every sample its own seed."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest time for a request from its start to its answer."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """How often a request is tried again; after that it is a failure, and the next start asks again."""
    outage_s: Annotated[float, Field(gt=0)] = 300.0
    """How long to wait when no server can be reached any more, as while one is started again."""
