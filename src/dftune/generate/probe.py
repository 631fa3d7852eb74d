"""What a server does with what it is asked: found out before anything depends on it.

Servers answer 200 and ignore parts of a request, so nothing is believed that was not seen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dftune.generate.base import Request, Sampling
from dftune.generate.endpoint import Endpoint
from dftune.generate.faults import RequestError
from dftune.generate.wire import Choice, ServerFacts, body, choices_of

_TEXT = "Once there was a"
_TOKENS = 16
_SEEDS = (20250813, 1161)
_HOT = 2.0


async def list_models(endpoint: Endpoint) -> list[dict[str, Any]] | None:
    """What ``/models`` lists; None where the server has no such list.

    Raises:
        RequestError: nobody answers, or the key is not accepted.
    """
    try:
        reply = await endpoint.get("/models")
    except RequestError as fault:
        if fault.status in (None, 401, 403, 502, 503, 504):
            raise
        return None
    data = reply.get("data") if isinstance(reply, dict) else None
    listed = [model for model in data if isinstance(model, dict) and model.get("id")] if isinstance(data, list) else []
    return listed or None


def names_to_try(
    listed: Sequence[dict[str, Any]] | None, names: Sequence[str], served_model: str | None, url: str
) -> list[str]:
    """By which names the model may be known to a server.

    Args:
        listed: what `list_models` found.
        names: the model's path and name here.
        served_model: the name the user gave, if any.
        url: for messages.

    Raises:
        ValueError: the server serves other models.
    """
    wanted = [served_model] if served_model is not None else list(names)
    if listed is None:
        return wanted
    for model in listed:
        if model["id"] in wanted or (served_model is None and model.get("root") in wanted):
            return [str(model["id"])]
    serves = ", ".join(str(model["id"]) for model in listed[:10])
    hint = f" If that is the same model, say so: served_model={listed[0]['id']}." if served_model is None else ""
    raise ValueError(f"{url} serves {serves}, not {wanted[0]}.{hint}")


async def software_of(endpoint: Endpoint, listed: Sequence[dict[str, Any]] | None) -> str | None:
    """``vllm`` or ``sglang`` by the owner of the model, ``transformers`` by its routes; else None."""
    owner = str(listed[0].get("owned_by", "")).lower() if listed else ""
    if owner in ("vllm", "sglang"):
        return owner
    try:
        described = await endpoint.get(endpoint.url.removesuffix("/v1") + "/openapi.json")
    except RequestError:
        return None
    routes = described.get("paths", {}) if isinstance(described, dict) else {}
    return "transformers" if {"/load_model", "/reset", "/v1/systemone"} <= set(routes) else None


@dataclass(frozen=True)
class Probe:
    """Asks a server a handful of short questions.

    Attributes:
        endpoint: the server.
        sampling: of the run. The first request carries it, since `transformers serve` with continuous batching keeps
            the sampling of its first request for all that follow.
        chat: messages rather than prompts.
        encode: text to token ids.
        max_retries: of a question that must be answered.
    """

    endpoint: Endpoint
    sampling: Sampling
    chat: bool
    encode: Callable[[str], list[int]]
    max_retries: int

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/chat/completions" if self.chat else "/completions"

    async def run(self, names: Sequence[str], software: str | None, end_tokens: Collection[int]) -> ServerFacts:
        """Find out what there is to know.

        Args:
            names: of the model, to be tried in this order.
            software: from `software_of`.
            end_tokens: those of ``sampling`` that are not the served model's own.

        Raises:
            ValueError: the server ignores the temperature, top_k or the limit on tokens, or has no such model.
            RequestError: it does not answer.
        """
        facts, first = await self._named(names, software)
        texts, seed = await self._sampled(facts, first.text)
        stops = [first.text[len(first.text) // 2]] if len(first.text) > 1 else []
        if self.sampling.temperature > 0 and not seed:
            stops = [char for char, _ in Counter("".join(texts)).most_common(4)]
        n, logprobs, tokens, stop = await asyncio.gather(
            self._takes_n(facts), self._gives_logprobs(facts), self._takes_tokens(facts), self._stops(facts, stops)
        )
        how: Literal["model", "ids", "text"] = "model"
        if end_tokens:
            how = "ids" if software else "text"
        fixed = await self._keeps_sampling(facts)
        if not fixed:
            await self._check_top_k(facts)
        seen: dict[str, Any] = {"n": n, "logprobs": logprobs, "token_prompts": tokens, "stop": stop, "seed": seed}
        return replace(facts, **seen, fixed_sampling=fixed, end_tokens=how)

    async def _named(self, names: Sequence[str], software: str | None) -> tuple[ServerFacts, Choice]:
        last: RequestError | None = None
        for name in names:
            facts = ServerFacts(self.endpoint.name, name, software)
            try:
                try:
                    first = await self._ask(facts)
                except RequestError as fault:
                    if fault.kind != "refused" or "max_completion_tokens" not in fault.reason:
                        raise
                    facts = replace(facts, limit_key="max_completion_tokens")
                    first = await self._ask(facts)
            except RequestError as fault:
                if fault.kind != "refused" and fault.status != 404:
                    raise
                last = fault
                continue
            num_tokens = first.num_tokens
            if (num_tokens or 0) > _TOKENS or (num_tokens is None and len(self.encode(first.text)) > 2 * _TOKENS):
                raise ValueError(
                    f"{self.endpoint.name} ignores {facts.limit_key}: asked for at most {_TOKENS} tokens, it gave "
                    f"{num_tokens or 'more'}. What is truncated could not be known. Use another server."
                )
            return facts, first
        assert last is not None
        raise ValueError(f"{self.endpoint.name} does not serve {' or '.join(names)}: {last.reason}")

    async def _sampled(self, facts: ServerFacts, first: str) -> tuple[list[str], bool | None]:
        """Four texts (three at temperature 0), and whether those of one seed are equal.

        Raises:
            ValueError: the texts do not depend on the temperature as they should.
        """
        ignored = f"{facts.url} ignores the temperature"
        hint = "Start it afresh (transformers serve may keep the sampling of its first request), or use vLLM."
        if self.sampling.temperature == 0:
            texts = [first, *await self._texts(facts, _SEEDS)]
            if len(set(texts)) == 3:
                raise ValueError(f"{ignored}: asked three times at temperature 0, it gave three texts. {hint}")
            return texts, None
        texts = [first, *await self._texts(facts, (_SEEDS[0], _SEEDS[1], _SEEDS[1]))]
        if len(set(texts)) > 1:
            return texts, texts[0] == texts[1] and texts[2] == texts[3]
        if len(set(await self._texts(facts, _SEEDS, temperature=_HOT, top_p=1.0))) == 1:
            raise ValueError(
                f"{ignored}: samples of different seeds at temperature {self.sampling.temperature:g} are all the same, "
                f"and at {_HOT:g} too. {hint}"
            )
        return texts, None

    async def _keeps_sampling(self, facts: ServerFacts) -> bool:
        """Whether temperature 0 is ignored after the run's own: three texts where there should be one."""
        if self.sampling.temperature == 0:
            return False
        return len(set(await self._texts(facts, (*_SEEDS, 0), temperature=0.0))) == 3

    async def _check_top_k(self, facts: ServerFacts) -> None:
        """Where the run uses top_k: at top_k 1 the likeliest token is all there is, whatever the temperature and seed.

        Raises:
            ValueError: it is refused or ignored.
        """
        if self.sampling.top_k is None or self.sampling.temperature == 0:
            return
        try:
            texts = await self._texts(facts, (*_SEEDS, 0), temperature=_HOT, top_p=1.0, top_k=1)
            said = f"at top_k 1 and temperature {_HOT:g} it gave {len(set(texts))} texts for three seeds"
        except RequestError as fault:
            if fault.kind != "refused":
                raise
            texts, said = [], fault.reason
        if len(set(texts)) != 1:
            raise ValueError(
                f"{facts.url} does not heed top_k, which this run asks for ({said}). Set top_k to null, or use vLLM, "
                "SGLang or the model in this process."
            )

    async def _texts(self, facts: ServerFacts, seeds: Sequence[int], **sampling: Any) -> list[str]:
        """One text a seed, asked for together."""
        probe = replace(self, sampling=replace(self.sampling, **sampling)) if sampling else self
        return [choice.text for choice in await asyncio.gather(*(probe._ask(facts, seed=seed) for seed in seeds))]

    async def _takes_n(self, facts: ServerFacts) -> bool | None:
        if self.sampling.temperature == 0:
            return None  # there is no use for it, and some servers refuse it
        reply = await self._try(facts, num_samples=2)
        return reply is not None and len(reply) == 2

    async def _gives_logprobs(self, facts: ServerFacts) -> bool:
        reply = await self._try(replace(facts, logprobs=True))
        return reply is not None and reply[0].logps is not None

    async def _takes_tokens(self, facts: ServerFacts) -> bool:
        if self.chat:
            return False
        return await self._try(replace(facts, token_prompts=True), check_prompt=True) is not None

    async def _stops(self, facts: ServerFacts, stops: Sequence[str]) -> Literal["cut", "kept", "ignored"] | None:
        reply = await self._try(facts, stop=stops) if stops else None
        if reply is None:
            return None
        text = reply[0].text
        found = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        if found is None:
            return "cut"
        return "kept" if found == len(text) - 1 else "ignored"

    async def _try(self, facts: ServerFacts, **options: Any) -> list[Choice] | None:
        """The answer to a question that the server may refuse; None if it does."""
        try:
            return await self._choices(facts, max_retries=min(1, self.max_retries), **options)
        except RequestError as fault:
            if fault.status in (401, 403):
                raise
            return None

    async def _ask(self, facts: ServerFacts, **options: Any) -> Choice:
        return (await self._choices(facts, max_retries=self.max_retries, **options))[0]

    async def _choices(
        self,
        facts: ServerFacts,
        *,
        max_retries: int,
        num_samples: int = 1,
        seed: int = _SEEDS[0],
        check_prompt: bool = False,
        **options: Any,
    ) -> list[Choice]:
        request = Request("probe", tuple(self.encode(_TEXT)), text=_TEXT)
        fields = body(
            request,
            self.sampling,
            facts,
            chat=self.chat,
            max_tokens=_TOKENS,
            num_samples=num_samples,
            seed=seed,
            **options,
        )
        for attempt in range(max_retries + 1):
            try:
                reply = await self.endpoint.ask(self.path, fields)
                choices = choices_of(reply, num_samples)
            except RequestError as fault:
                hung = fault.kind == "busy" and fault.status is None
                if fault.kind in ("fatal", "refused") or hung or attempt == max_retries:
                    raise
                await asyncio.sleep(fault.retry_after_s or self.endpoint.backoff.seconds(attempt))
                continue
            usage = reply.get("usage") or {}
            if check_prompt and usage.get("prompt_tokens", len(request.prompt)) != len(request.prompt):
                raise RequestError("refused", "the prompt's token ids were not taken as such")
            return choices
        raise AssertionError  # the last attempt returns or raises
