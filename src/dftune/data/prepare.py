"""From a source to a prepared dataset: read, filter, split, tokenise, mask, write."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data import negatives
from dftune.data.config import DataConfig
from dftune.data.dataset import (
    Manifest,
    PreparedDataset,
    differing_settings,
    settings_of,
    tokenizer_origin,
)
from dftune.data.examples import (
    BEYOND_LIMIT,
    END_INSIDE,
    NO_NEGATIVE,
    NOTHING_TO_LEARN,
    TOO_LONG,
    Example,
    Ledger,
    select_examples,
)
from dftune.data.prompts import PromptFormat, get_format
from dftune.data.sources import read_rows
from dftune.data.store import Encoded, find_existing, write_dataset
from dftune.data.tokenizer import (
    BatchEncoder,
    blank_tokenizer,
    context_length,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from dftune.files import fingerprint
from dftune.recipe import Recipe

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much is done, and of how much where that is known."""

_BATCH = 1000
_NUM_NAMED = 5
_OF_NEGATIVE = {
    NOTHING_TO_LEARN: negatives.NEGATIVE_NOTHING_TO_SCORE,
    END_INSIDE: negatives.NEGATIVE_END_INSIDE,
    TOO_LONG: negatives.NEGATIVE_TOO_LONG,
}


def prepare(recipe: Recipe, *, force: bool = False, progress: Progress | None = None) -> Manifest:
    """Prepare the dataset of a recipe in its ``data.prepared`` folder.

    A folder that already holds exactly this is left as it is. The folder appears complete or not at all.

    Args:
        recipe: its ``data`` and ``model`` sections decide the content.
        force: replace a dataset that was prepared with other settings.
        progress: told how far the work is.

    Raises:
        ValueError: the source, a row, the settings or the folder is not what it must be.
        OSError: the disk is full; nothing is left behind.
    """
    report = progress or (lambda *_: None)
    data, scratch = recipe.data, recipe.model.scratch
    _check_context(recipe)
    tokenizer = load_tokenizer(recipe.model) if scratch is None else blank_tokenizer()
    prompt_format = get_format(data.prompt_format, tokenizer)
    prompt_format.end_token_id(tokenizer)  # says now, not after reading, that the format does not suit the tokenizer

    ledger = Ledger()
    examples, rows_sha256 = select_examples(read_rows(data), data, ledger, lambda count: report("reading", count, None))
    report("reading", ledger.num_rows, ledger.num_rows)
    _check_some_left(len(examples), data, ledger)
    identity = tokenizer_origin(recipe) if scratch else tokenizer_fingerprint(tokenizer)
    content = fingerprint(settings_of(recipe), prompt_format.fingerprint, identity, rows_sha256)
    existing = find_existing(data.prepared, content, lambda manifest: differing_settings(manifest, recipe), force)
    if existing is not None:
        report("already prepared", 1, 1)
        return existing

    task = _Task(data, prompt_format, ledger, report)
    if scratch is None:
        encoded = task.encode_with(tokenizer, examples)
    else:
        tokenizer, encoded = task.encode_with_new(scratch.vocab_size, examples)
    held_out = choose_held_out([item.example.id for item in encoded], data.validation)
    train = [item for item in encoded if item.example.id not in held_out]
    validation = [item for item in encoded if item.example.id in held_out]
    manifest = Manifest(
        kind="prepared",
        fingerprint=content,
        settings=settings_of(recipe),
        tokenizer=tokenizer_origin(recipe),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        prompt_format={"name": data.prompt_format, "fingerprint": prompt_format.fingerprint},
        rows_sha256=rows_sha256,
        counts=ledger.counts(),
        num_train=len(train),
        num_validation=len(validation),
        tokens=token_statistics(encoded),
        versions=_versions(),
    )
    if data.columns.negatives is not None:
        manifest["negatives"] = ledger.negative_counts([len(item.negatives) for item in encoded])
    counts = manifest["counts"]
    num_dropped = sum(dropped["count"] for dropped in counts["dropped"].values())
    assert counts["rows_read"] == len(train) + len(validation) + num_dropped, "a row was lost without a count"
    report("writing", 0, None)
    write_dataset(data.prepared, manifest, tokenizer, {"train": train, "validation": validation})
    return manifest


def choose_held_out(ids: Sequence[str], count: int) -> set[str]:
    """The ids to hold out: those with the smallest SHA-256, whatever their order.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if count >= len(ids):
        raise ValueError(
            f"data.validation={count} leaves nothing to train on: rows that passed the filters: {len(ids)}. "
            "Lower data.validation, or loosen the filters (data.max_length among them)."
        )
    return set(sorted(ids, key=lambda name: (hashlib.sha256(name.encode()).digest(), name))[:count])


def token_statistics(encoded: Sequence[Encoded]) -> dict[str, dict[str, float]]:
    """min, mean, median, p95, max and sum of the tokens in prompts, completions, both, and negatives if any."""
    prompts = np.array([item.num_prompt for item in encoded])
    totals = np.array([len(item.tokens) for item in encoded])
    parts = {"prompt": prompts, "completion": totals - prompts, "total": totals}
    others = [len(tokens) for item in encoded for _, tokens in item.negatives]
    if others:
        parts["negative"] = np.array(others)
    return {
        name: {
            "min": int(lengths.min()),
            "mean": round(float(lengths.mean()), 2),
            "median": float(np.median(lengths)),
            "p95": float(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
            "sum": int(lengths.sum()),
        }
        for name, lengths in parts.items()
    }


@dataclass
class _Encoding:
    encoded: list[Encoded] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Reason by id."""
    refused_negatives: dict[str, dict[int, str]] = field(default_factory=dict)
    """Reason by id and number, for every example that is fit itself."""


@dataclass(frozen=True)
class _Task:
    data: DataConfig
    prompt_format: PromptFormat
    ledger: Ledger
    report: Progress

    def encode_with(self, tokenizer: Any, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenise with a tokenizer that is given; up to ``data.limit`` examples pass."""
        encoding = self._encode(tokenizer, examples, self.data.limit)
        self._account(examples, encoding)
        return encoding.encoded

    def encode_with_new(self, vocab_size: int, examples: Sequence[Example]) -> tuple[Any, list[Encoded]]:
        """Tokenise with a tokenizer trained on exactly the examples that will be trained on, not on their negatives.

        Which examples are too long depends on the tokenizer, and the tokenizer on which are left: whatever is refused
        leaves for good, and the rest starts over. It ends, since every round but the last refuses something; two or
        three rounds are usual.
        """
        refused: dict[str, str] = {}
        refused_negatives: dict[str, dict[int, str]] = {}
        while True:
            chosen = [example for example in examples if example.id not in refused][: self.data.limit]
            _check_some_left(len(chosen), self.data, self.ledger, refused)
            held_out = choose_held_out([example.id for example in chosen], self.data.validation)
            texts = [text for example in chosen if example.id not in held_out for text in self._texts(example)]
            self.report("training the tokenizer", 0, None)
            tokenizer = train_tokenizer(texts, vocab_size)
            encoding = self._encode(tokenizer, chosen, None)
            refused_negatives |= encoding.refused_negatives
            if not encoding.refused:
                self._account(examples, _Encoding(encoding.encoded, refused, refused_negatives))
                return tokenizer, encoding.encoded
            refused |= encoding.refused

    def _texts(self, example: Example) -> tuple[str, str]:
        return self.prompt_format.render(example.problem), self.prompt_format.completion_prefix + example.solution

    def _encode(self, tokenizer: Any, examples: Sequence[Example], limit: int | None) -> _Encoding:
        encoder = BatchEncoder(self.prompt_format, tokenizer)
        found = _Encoding()
        for start in range(0, len(examples), _BATCH):
            self.report("tokenising", start, len(examples))
            batch = examples[start : start + _BATCH]
            rows = encoder.encode([example.problem for example in batch], [example.solution for example in batch])
            others = iter(encoder.completions([text for example in batch for _, text in example.negatives]))
            for example, (prompt, completion) in zip(batch, rows, strict=True):
                if limit is not None and len(found.encoded) == limit:
                    break
                own = {number: next(others) for number, _ in example.negatives}
                reason = self._reason_to_refuse(prompt, completion, encoder.end)
                fit, unfit = self._fit_and_unfit(prompt, own, encoder.end)
                if reason is None:
                    found.refused_negatives[example.id] = unfit
                    reason = NO_NEGATIVE if own and not fit else None
                if reason is not None:
                    found.refused[example.id] = reason
                else:
                    tokens = np.array(prompt + completion, dtype=np.int32)
                    found.encoded.append(Encoded(example, tokens, len(prompt), fit))
        self._check_lengths(found, examples)
        self.report("tokenising", len(examples), len(examples))
        return found

    def _fit_and_unfit(
        self, prompt: list[int], completions: dict[int, list[int]], end: int
    ) -> tuple[tuple[tuple[int, npt.NDArray[np.int32]], ...], dict[int, str]]:
        reasons = {number: self._reason_to_refuse(prompt, ids, end) for number, ids in completions.items()}
        fit = [(number, np.array(ids, np.int32)) for number, ids in completions.items() if reasons[number] is None]
        return tuple(fit), {number: _OF_NEGATIVE[reason] for number, reason in reasons.items() if reason is not None}

    def _check_lengths(self, found: _Encoding, examples: Sequence[Example]) -> None:
        too_long = [name for name, reason in found.refused.items() if reason == TOO_LONG]
        too_long += [
            negatives.negative_id(name, number)
            for name, reasons in found.refused_negatives.items()
            for number, reason in reasons.items()
            if reason == negatives.NEGATIVE_TOO_LONG
        ]
        if not too_long or self.data.on_too_long == "drop":
            return
        num_negatives = sum(len(example.negatives) for example in examples)
        total = f"{len(examples)} examples" + (f" and {num_negatives} negatives" if num_negatives else "")
        raise ValueError(
            f"{len(too_long)} of {total} have more than data.max_length={self.data.max_length} "
            f"tokens in prompt and completion: {_some(too_long)}. "
            "Raise data.max_length, or set data.on_too_long=drop to leave them out."
        )

    def _reason_to_refuse(self, prompt: list[int], completion: list[int], end: int) -> str | None:
        if not prompt or len(completion) < 2:  # the first token of a row has nothing to be predicted from
            return NOTHING_TO_LEARN
        if end in completion[:-1]:  # the model would be trained to go on after its end token
            return END_INSIDE
        if len(prompt) + len(completion) > self.data.max_length:
            return TOO_LONG
        return None

    def _account(self, examples: Sequence[Example], encoding: _Encoding) -> None:
        kept = {item.example.id for item in encoding.encoded}
        for example in examples:
            reason = None if example.id in kept else encoding.refused.get(example.id, BEYOND_LIMIT)
            if reason is not None:
                self.ledger.drop(reason, example.location)
            if reason in (None, NO_NEGATIVE):
                for number, why in encoding.refused_negatives[example.id].items():
                    self.ledger.drop_negative(why, number, example.location)
            else:
                self.ledger.leave_out_with_row(example.negatives, example.location)
        _check_some_left(len(encoding.encoded), self.data, self.ledger)


def _check_context(recipe: Recipe) -> None:
    length = context_length(recipe.model)
    if length is not None and recipe.data.max_length > length:
        where = (
            "model.scratch.max_position_embeddings" if recipe.model.scratch else f"the context of {recipe.model.path}"
        )
        raise ValueError(
            f"data.max_length={recipe.data.max_length} is longer than {where}, {length} tokens. "
            f"Set data.max_length to at most {length}."
        )


def _check_some_left(num_left: int, data: DataConfig, ledger: Ledger, refused: dict[str, str] | None = None) -> None:
    if num_left:
        return
    if not ledger.num_rows:
        raise ValueError(f"data.source: {data.source} holds no rows.")
    reasons = [ledger.summary(), *_tally(refused or {})]
    raise ValueError(
        f"data.source: none of the {ledger.num_rows} rows of {data.source} is left: "
        f"{', '.join(filter(None, reasons))}. Loosen the filters of the data section (max_length={data.max_length})."
    )


def _tally(refused: dict[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(refused.values()):
        yield f"{list(refused.values()).count(reason)} {reason}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMED])
    return shown + (f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else "")


def _versions() -> dict[str, str]:
    packages = ("dftune", "datasets", "pyarrow", "tokenizers", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def prepared(recipe: Recipe, *, progress: Progress | None = None) -> PreparedDataset:
    """The prepared dataset of a recipe, made first where its folder is not there yet. The source is not read again.

    Raises:
        ValueError: the folder was prepared with other settings.
    """
    if not recipe.data.prepared.exists():
        prepare(recipe, progress=progress)
    dataset = PreparedDataset.load(recipe.data.prepared)
    dataset.check_matches(recipe)
    return dataset
