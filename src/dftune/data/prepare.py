"""From a source to a prepared dataset: read, filter, split, tokenise, mask, write."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data import negatives
from dftune.data.config import DataConfig
from dftune.data.conversations import Row, Turns, split_turns
from dftune.data.dataset import (
    LAYOUT,
    Manifest,
    PreparedDataset,
    differing_settings,
    settings_of,
    tokenizer_origin,
)
from dftune.data.examples import (
    BEYOND_LIMIT,
    CONTAMINATED,
    CUT_AWAY,
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
from dftune.data.truncation import CUT_NEGATIVE, Cut, cut_left, cut_right
from dftune.decontaminate.embed import Embedder
from dftune.decontaminate.screen import Contamination, TrainingRow, load_benchmarks, screen
from dftune.environment import available_cores
from dftune.evaluate.benchmarks import Benchmark
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
    CUT_AWAY: negatives.NEGATIVE_CUT_AWAY,
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
    content = fingerprint(LAYOUT, settings_of(recipe), prompt_format.fingerprint, identity, rows_sha256)
    benchmarks = _benchmarks(recipe)
    if benchmarks:
        content = fingerprint(content, [benchmark.fingerprint for benchmark in benchmarks])
    if any(example.history for example in examples):
        content = fingerprint(content, prompt_format.conversation_fingerprint(tokenizer))
    existing = find_existing(data.prepared, content, lambda manifest: differing_settings(manifest, recipe), force)
    if existing is not None:
        report("already prepared", 1, 1)
        return existing

    examples, contamination = _screened(examples, benchmarks, data, ledger, report)
    _check_some_left(len(examples), data, ledger)
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
        layout=LAYOUT,
        fingerprint=content,
        settings=settings_of(recipe),
        tokenizer=tokenizer_origin(recipe),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        prompt_format=prompt_format.record(),
        rows_sha256=rows_sha256,
        counts=ledger.counts(),
        truncated=ledger.truncated(),
        contamination={"action": data.decontaminate.action, "benchmarks": contamination.counts()},
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
    files = contamination.files(recipe.name, data.decontaminate.action) if benchmarks else {}
    write_dataset(data.prepared, manifest, tokenizer, {"train": train, "validation": validation}, files)
    return manifest


def _benchmarks(recipe: Recipe) -> list[Benchmark]:
    settings = recipe.data.decontaminate
    if settings.action == "skip":
        return []
    return load_benchmarks(
        [*recipe.evaluate.benchmarks, *(recipe.watch.benchmarks or ()), *settings.benchmarks], recipe.evaluate.data_dir
    )


def _screened(
    examples: list[Example], benchmarks: Sequence[Benchmark], data: DataConfig, ledger: Ledger, report: Progress
) -> tuple[list[Example], Contamination]:
    """The examples to go on with, and what they have in common with the benchmarks."""
    settings = data.decontaminate
    if not benchmarks:
        return examples, Contamination([])
    contamination = screen(
        (TrainingRow(example.id, example.problem, example.answer, example.solution) for example in examples),
        benchmarks,
        workers=available_cores(),
        embed=None if settings.embeddings is None else Embedder(settings.embeddings),
        least_similarity=settings.least_similarity,
        progress=lambda count: report("comparing with benchmarks", count, len(examples)),
    )
    found = [example for example in examples if example.id in contamination.same]
    if settings.action == "report" or not found:
        return examples, contamination
    if settings.action == "error":
        pair = next(pair for pair in contamination.pairs if pair["same"])
        raise ValueError(
            f"{len(found)} training rows are problems of a benchmark, the first of them {pair['id']!r} "
            f"({found[0].location}): {pair['benchmark']} {pair['benchmark_id']!r}, {pair['reason']}. "
            "data.decontaminate.action=remove leaves them out, report keeps and counts them."
        )
    for example in found:
        ledger.drop(CONTAMINATED, example.location)
        ledger.leave_out_with_row(example.negatives, example.location)
    return [example for example in examples if example.id not in contamination.same], contamination


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
    """min, mean, median, p95, max and sum of the tokens in prompts, completions, both, and negatives if any.

    Completions are what is trained on; whatever else a row holds is prompt.
    """
    completions = np.array([item.num_supervised for item in encoded])
    totals = np.array([len(item.tokens) for item in encoded])
    parts = {"prompt": totals - completions, "completion": completions, "total": totals}
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
    cut: dict[str, list[str]] = field(default_factory=dict)
    """What was cut, by id of the example that is kept."""


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
        blank = blank_tokenizer()
        refused_negatives: dict[str, dict[int, str]] = {}
        while True:
            chosen = [example for example in examples if example.id not in refused][: self.data.limit]
            _check_some_left(len(chosen), self.data, self.ledger, refused)
            held_out = choose_held_out([example.id for example in chosen], self.data.validation)
            texts = [text for example in chosen if example.id not in held_out for text in self._texts(example, blank)]
            self.report("training the tokenizer", 0, None)
            tokenizer = train_tokenizer(texts, vocab_size)
            encoding = self._encode(tokenizer, chosen, None)
            refused_negatives |= encoding.refused_negatives
            if not encoding.refused:
                self._account(examples, _Encoding(encoding.encoded, refused, refused_negatives, encoding.cut))
                return tokenizer, encoding.encoded
            refused |= encoding.refused

    def _texts(self, example: Example, tokenizer: Any) -> list[str]:
        turns = split_turns(self.prompt_format, tokenizer, example.messages, self._turns)
        return [text for turn in turns for text in turn]

    @property
    def _turns(self) -> Turns:
        # Negatives answer the last question, so there only its answer can be held against them.
        return "last" if self.data.columns.negatives is not None else self.data.turns

    def _encode(self, tokenizer: Any, examples: Sequence[Example], limit: int | None) -> _Encoding:
        encoder = BatchEncoder(self.prompt_format, tokenizer)
        bos = tokenizer.bos_token_id
        found = _Encoding()
        for start in range(0, len(examples), _BATCH):
            self.report("tokenising", start, len(examples))
            batch = examples[start : start + _BATCH]
            rows = self._rows(encoder, batch)
            others = iter(encoder.completions([text for example in batch for _, text in example.negatives]))
            for example, whole in zip(batch, rows, strict=True):
                if limit is not None and len(found.encoded) == limit:
                    break
                own = {number: next(others) for number, _ in example.negatives}
                cut, reason = self._fit(whole, encoder.end, bos)
                row = whole if cut is None else cut.row
                fit, unfit = self._fit_and_unfit(row, own, encoder.end)
                if reason is None:
                    found.refused_negatives[example.id] = unfit
                    reason = NO_NEGATIVE if own and not fit else None
                if reason is not None:
                    found.refused[example.id] = reason
                    continue
                found.encoded.append(Encoded(example, np.array(row.ids, dtype=np.int32), row.spans, fit))
                shortened = [CUT_NEGATIVE for number, ids in fit if len(ids) < len(own[number])]
                if cut is not None or shortened:
                    found.cut[example.id] = [*([cut.what] if cut is not None else []), *shortened]
        self._check_lengths(found, examples)
        self.report("tokenising", len(examples), len(examples))
        return found

    def _rows(self, encoder: BatchEncoder, batch: Sequence[Example]) -> list[Row]:
        try:
            return encoder.rows([example.messages for example in batch], self._turns)
        except ValueError:
            for example in batch:  # which one it is
                try:
                    encoder.rows([example.messages], self._turns)
                except ValueError as error:
                    raise ValueError(f"{example.location}: {error}") from None
            raise

    def _fit(self, row: Row, end: int, bos: int | None) -> tuple[Cut | None, str | None]:
        """The row cut to the length allowed, None where that is not needed; and why it cannot be used, if so."""
        first = row.spans[0][0]
        if first == 0 or any(stop - start < 2 for start, stop in row.spans):
            return None, NOTHING_TO_LEARN  # the first token of a row has nothing to be predicted from
        if any(end in row.ids[start : stop - 1] for start, stop in row.spans):
            return None, END_INSIDE  # the model would be trained to go on after its end token
        if len(row.ids) <= self.data.max_length:
            return None, None
        if self.data.truncation == "left":
            cut = cut_left(row, self.data.max_length, bos)
            return cut, None if cut is not None else TOO_LONG
        if self.data.truncation == "right":
            cut = cut_right(row, self.data.max_length)
            return cut, None if cut is not None else CUT_AWAY
        return None, TOO_LONG

    def _fit_and_unfit(
        self, row: Row, completions: dict[int, list[int]], end: int
    ) -> tuple[tuple[tuple[int, npt.NDArray[np.int32]], ...], dict[int, str]]:
        fit, unfit = [], {}
        prompt, solution = row.ids[: row.spans[-1][0]], row.ids[row.spans[-1][0] :]
        for number, ids in completions.items():
            whole = Row(prompt + ids, ((len(prompt), len(prompt) + len(ids)),))
            cut, reason = self._fit(whole, end, None)
            # A prompt belongs to all completions of its row, so it is not cut further for a long negative.
            if cut is not None and self.data.truncation == "left":
                cut, reason = None, TOO_LONG
            kept = ids if cut is None else cut.row.ids[len(prompt) :]
            if reason is not None:
                unfit[number] = _OF_NEGATIVE[reason]
            elif cut is not None and kept == solution:
                unfit[number] = negatives.EQUAL
            else:
                fit.append((number, np.array(kept, np.int32)))
        return tuple(fit), unfit

    def _check_lengths(self, found: _Encoding, examples: Sequence[Example]) -> None:
        too_long = [name for name, reason in found.refused.items() if reason == TOO_LONG]
        too_long += [
            negatives.negative_id(name, number)
            for name, reasons in found.refused_negatives.items()
            for number, reason in reasons.items()
            if reason == negatives.NEGATIVE_TOO_LONG
        ]
        if not too_long or self.data.truncation != "error":
            return
        num_negatives = sum(len(example.negatives) for example in examples)
        total = f"{len(examples)} examples" + (f" and {num_negatives} negatives" if num_negatives else "")
        raise ValueError(
            f"{len(too_long)} of {total} have more than data.max_length={self.data.max_length} "
            f"tokens in prompt and completion: {_some(too_long)}. "
            "Raise data.max_length, or set data.truncation=drop to leave them out, left to cut the prompt, or right to "
            "cut the completion."
        )

    def _account(self, examples: Sequence[Example], encoding: _Encoding) -> None:
        kept = {item.example.id for item in encoding.encoded}
        for example in examples:
            reason = None if example.id in kept else encoding.refused.get(example.id, BEYOND_LIMIT)
            if reason is not None:
                self.ledger.drop(reason, example.location)
            for what in encoding.cut.get(example.id, ()):
                self.ledger.count_cut(what, example.location)
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
    if unchecked := unchecked_benchmarks(dataset.manifest, recipe):
        print(
            f"Note: the training rows in {recipe.data.prepared} were not checked against {', '.join(unchecked)}. "
            "`dftune prepare RECIPE --force` does it.",
            file=sys.stderr,
        )
    return dataset


def unchecked_benchmarks(manifest: Manifest, recipe: Recipe) -> list[str]:
    """Benchmarks of the recipe that the prepared rows were not checked against."""
    return [
        benchmark.path
        for benchmark in _benchmarks(recipe)
        if benchmark.fingerprint
        not in {found["fingerprint"] for found in manifest["contamination"]["benchmarks"].values()}
    ]
