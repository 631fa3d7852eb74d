"""Generation in this process: transformers models, left-padded batches, a key-value cache, one loop for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dftune.generate.base import Completion, Request, Sampling
from dftune.generate.sampling import RowRandom, pick_tokens, token_stats

_CONTEXT_TOKENS = 4


@dataclass
class _Row:
    request: Request
    limit: int
    tokens: list[int] = field(default_factory=list)
    done: bool = False


class LocalEngine:
    """A model and its tokenizer, ready to complete prompts."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        stats: bool = True,
    ) -> None:
        """Take a loaded model.

        Args:
            model: a causal language model of transformers.
            tokenizer: its tokenizer.
            device: where to compute; the model is moved there.
            batch_size: completions generated together.
            stats: fill in mean log-probability and entropy of completions.
        """
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.stats = stats

    @property
    def max_context(self) -> int | None:
        """Most tokens of prompt and completion together, or None where the model sets no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end any text of this model: the tokenizer's, and those its generation config adds."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        return frozenset(end for end in (self.tokenizer.eos_token_id, *ends) if end is not None)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_done: Callable[[Sequence[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request.

        Prompts of similar length are put in one batch, long ones first, so that too large a batch fails at once. A
        completion is cut to what the model's context leaves.

        Args:
            requests: what to complete.
            sampling: how.
            on_done: called with completions as they are finished, in that order, so that they can be saved.

        Returns:
            The completions in the order of the requests.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context, the device's memory does not suffice, or the
                model computes NaN.
        """
        rows = [_Row(request, self._limit(request, sampling)) for request in requests]
        rows.sort(key=lambda row: (-len(row.request.prompt), row.request.id, row.request.sample))
        finished: dict[tuple[str, int], Completion] = {}

        def deliver(completions: Sequence[Completion]) -> None:
            finished.update({(done.id, done.sample): done for done in completions})
            if on_done is not None:
                on_done(completions)

        for start in range(0, len(rows), self.batch_size):
            try:
                self._complete_batch(rows[start : start + self.batch_size], sampling, deliver)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{self.device} has too little memory for batches of {self.batch_size} completions of up to "
                    f"{sampling.max_tokens} tokens. Lower --batch-size (evaluate.batch_size); what is done is kept."
                ) from error
        return [finished[request.id, request.sample] for request in requests]

    def _limit(self, request: Request, sampling: Sampling) -> int:
        if not request.prompt:
            raise ValueError(f"the prompt of {request.id!r} is empty; a completion needs at least one token before it.")
        return request.room(sampling.max_tokens, self.max_context)

    @torch.inference_mode()
    def _complete_batch(
        self, rows: list[_Row], sampling: Sampling, on_done: Callable[[Sequence[Completion]], None]
    ) -> None:
        random = None
        if sampling.temperature > 0:
            random = RowRandom(sampling.seed, [(row.request.id, row.request.sample) for row in rows], self.device)
        inputs, mask = self._pad(rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = None
        sums = torch.zeros(2, len(rows), dtype=torch.float64, device=self.device)  # of log-probability, of entropy
        while rows:
            output = self.model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            if cache is None and output.logits.isnan().any():
                raise ValueError("the model's logits are NaN: its weights are damaged, or training it diverged.")
            cache = output.past_key_values
            logits = output.logits[:, -1].float()
            chosen = pick_tokens(
                logits,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                uniforms=None if random is None else random.next(),
            )
            if self.stats:
                sums += token_stats(logits, chosen)
            done = self._advance(rows, chosen.tolist(), sampling, sums)
            if done:
                on_done(done)
            kept = [index for index, row in enumerate(rows) if not row.done]
            if not kept:
                return
            inputs, positions = chosen.unsqueeze(-1), positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
            # Dropping rows copies the cache once, which every step does anyway to make room for the new token.
            if 8 * len(kept) <= 7 * len(rows):
                index = torch.tensor(kept, device=self.device)
                inputs, positions, mask, sums = inputs[index], positions[index], mask[index], sums[:, index]
                cache.reorder_cache(index)
                rows = [rows[row] for row in kept]
                if random is not None:
                    random.keep(kept)

    def _pad(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """(rows, longest prompt) int64: token ids with the padding on the left, and 1 where a token is real."""
        width = max(len(row.request.prompt) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            prompt = torch.tensor(row.request.prompt)
            ids[index, width - len(prompt) :] = prompt
            mask[index, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _advance(
        self, rows: Sequence[_Row], chosen: Sequence[int], sampling: Sampling, sums: Tensor
    ) -> list[Completion]:
        """Append a token to every unfinished row; return what that finished."""
        ends: dict[int, tuple[str, Literal["stop", "length"], str]] = {}
        unfinished = []
        for index, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if row.done:
                continue
            row.tokens.append(token)
            if token in sampling.end_token_ids:
                ends[index] = (self._text(row.request, row.tokens[:-1]), "stop", "")
            else:
                unfinished.append(index)
        stopped = self._stopped([rows[index] for index in unfinished], sampling.stop)
        for index, found in zip(unfinished, stopped, strict=True):
            row = rows[index]
            if found is not None:
                ends[index] = (found[0], "stop", found[1])
            elif len(row.tokens) == row.limit:
                ends[index] = (self._text(row.request, row.tokens), "length", "")
        if not ends:
            return []
        means = sums[:, list(ends)].T.tolist() if self.stats else [(None, None)] * len(ends)
        return [self._finish(rows[index], *end, stats) for (index, end), stats in zip(ends.items(), means, strict=True)]

    def _finish(
        self, row: _Row, text: str, reason: Literal["stop", "length"], stop: str, sums: Sequence[float | None]
    ) -> Completion:
        row.done = True
        num_tokens = len(row.tokens)
        logp, entropy = (None if total is None else total / num_tokens for total in sums)
        return Completion(row.request.id, row.request.sample, text, reason, num_tokens, logp, entropy, stop)

    def _stopped(self, rows: Sequence[_Row], stop: Sequence[str]) -> list[tuple[str, str] | None]:
        """The text before the first stop string, and that, for every row that has come to one; None for the others."""
        if not stop or not rows:
            return [None] * len(rows)
        # A token holds at least one byte, so a stop string just completed lies within this many tokens.
        # Only rows with one there are decoded in full.
        reach = max(len(string.encode()) for string in stop) + _CONTEXT_TOKENS
        tails = self._decode([row.tokens[-reach:] for row in rows])
        found: list[tuple[str, str] | None] = []
        for row, tail in zip(rows, tails, strict=True):
            text = self._text(row.request, row.tokens) if any(string in tail for string in stop) else ""
            cuts = [(cut, string) for string in stop if (cut := text.find(string)) >= 0]
            found.append((text[: min(cuts)[0]], min(cuts)[1]) if cuts else None)
        return found

    def _text(self, request: Request, tokens: Sequence[int]) -> str:
        """What the tokens add to the prompt. Some tokenizers drop a space at the start of whatever they decode."""
        context = list(request.prompt[-_CONTEXT_TOKENS:])
        before, whole, alone = self._decode([context, [*context, *tokens], list(tokens)])
        return whole[len(before) :] if whole.startswith(before) else alone

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(
            sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return texts
