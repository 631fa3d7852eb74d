"""Examples tokenised and masked, cut or refused where they are too long, and accounted for."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data import negatives
from dftune.data.config import DataConfig
from dftune.data.conversations import Row, Turns, split_turns
from dftune.data.examples import (
    BEYOND_LIMIT,
    CUT_AWAY,
    END_INSIDE,
    NO_NEGATIVE,
    NOTHING_TO_LEARN,
    TOO_LONG,
    Example,
    Ledger,
)
from dftune.data.prompts import PromptFormat
from dftune.data.spool import Spool
from dftune.data.store import Encoded
from dftune.data.tokenizer import BatchEncoder, blank_tokenizer, train_tokenizer
from dftune.data.truncation import CUT_NEGATIVE, Cut, cut_left, cut_right

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


@dataclass
class Encoding:
    """Tokenised examples, on disk, and what became of the others. Places are those in the list of examples."""

    rows: Spool[tuple[int, Encoded]]
    """Place and tokens of every example that is kept, in the order of the source."""
    ids: list[str] = field(default_factory=list)
    """Of those."""
    num_supervised: array[int] = field(default_factory=lambda: array("l"))
    num_tokens: array[int] = field(default_factory=lambda: array("l"))
    num_negatives: array[int] = field(default_factory=lambda: array("l"))
    negative_lengths: array[int] = field(default_factory=lambda: array("l"))
    num_bytes: int = 0
    """About what they need in the tables."""
    kept: bytearray = field(default_factory=bytearray)
    """By place, 1 where the example is kept."""
    refused: dict[int, str] = field(default_factory=dict)
    """Reason by place."""
    refused_negatives: dict[int, dict[int, str]] = field(default_factory=dict)
    """Reason by place and number, for the examples that are fit themselves."""
    cut: dict[int, list[str]] = field(default_factory=dict)
    """What was cut, by place of the example that is kept."""

    def add(self, place: int, example: Example, row: Encoded) -> None:
        """Keep a tokenised example."""
        self.rows.append((place, row))
        self.kept[place] = 1
        self.ids.append(example.id)
        lengths = [len(tokens) for _, tokens in row.negatives]
        self.num_supervised.append(row.num_supervised)
        self.num_tokens.append(len(row.tokens))
        self.num_negatives.append(len(lengths))
        self.negative_lengths.extend(lengths)
        # 4 bytes an id, 1 of mask
        self.num_bytes += 5 * len(row.tokens) + 4 * sum(lengths) + len(example.problem) + len(example.solution)


@dataclass(frozen=True)
class Encoder:
    """Tokenises the examples of a recipe.

    Attributes:
        data: the settings.
        prompt_format: how they are rendered.
        ledger: counts what is left out.
        report: told how far the work is.
        folder: where much data is kept meanwhile.
    """

    data: DataConfig
    prompt_format: PromptFormat
    ledger: Ledger
    report: Progress
    folder: Path | None = None

    def encode_with(self, tokenizer: Any, examples: Spool[Example], places: Sequence[int]) -> Encoding:
        """Tokenise with a tokenizer that is given; up to ``data.limit`` examples pass."""
        encoding = self._encode(tokenizer, examples, places, self.data.limit)
        self._account(examples, places, encoding)
        return encoding

    def encode_with_new(self, vocab_size: int, examples: Spool[Example], places: Sequence[int]) -> tuple[Any, Encoding]:
        """Tokenise with a tokenizer trained on exactly the examples that will be trained on, not on their negatives.

        Which examples are too long depends on the tokenizer, and the tokenizer on which are left: whatever is refused
        leaves for good, and the rest starts over. It ends, since every round but the last refuses something; two or
        three rounds are usual.
        """
        refused: dict[int, str] = {}
        refused_negatives: dict[int, dict[int, str]] = {}
        while True:
            chosen = [place for place in places if place not in refused][: self.data.limit]
            check_some_left(len(chosen), self.data, self.ledger, refused)
            held_out = choose_held_out([examples[place].id for place in chosen], self.data.validation)
            self.report("training the tokenizer", 0, None)
            tokenizer = train_tokenizer(self._texts(examples, chosen, held_out), vocab_size)
            encoding = self._encode(tokenizer, examples, chosen, None)
            refused_negatives |= encoding.refused_negatives
            if not encoding.refused:
                encoding.refused, encoding.refused_negatives = refused, refused_negatives
                self._account(examples, places, encoding)
                return tokenizer, encoding
            refused |= encoding.refused

    def _texts(self, examples: Spool[Example], places: Sequence[int], held_out: set[str]) -> Iterator[str]:
        blank = blank_tokenizer()
        for place in places:
            example = examples[place]
            if example.id not in held_out:
                for turn in split_turns(self.prompt_format, blank, example.messages, self._turns):
                    yield from turn

    @property
    def _turns(self) -> Turns:
        # Negatives answer the last question, so there only its answer can be held against them.
        return "last" if self.data.columns.negatives is not None else self.data.turns

    def _encode(self, tokenizer: Any, examples: Spool[Example], places: Sequence[int], limit: int | None) -> Encoding:
        encoder = BatchEncoder(self.prompt_format, tokenizer)
        bos = tokenizer.bos_token_id
        found = Encoding(Spool(self.folder), kept=bytearray(len(examples)))
        for start in range(0, len(places), _BATCH):
            self.report("tokenising", start, len(places))
            batch = {place: examples[place] for place in places[start : start + _BATCH]}
            rows = self._rows(encoder, list(batch.values()))
            others = iter(encoder.completions([text for example in batch.values() for _, text in example.negatives]))
            for (place, example), whole in zip(batch.items(), rows, strict=True):
                if limit is not None and len(found.rows) == limit:
                    break
                own = {number: next(others) for number, _ in example.negatives}
                self._take(found, place, example, whole=whole, own=own, end=encoder.end, bos=bos)
        self._check_lengths(found, examples, places)
        self.report("tokenising", len(places), len(places))
        return found

    def _take(
        self,
        found: Encoding,
        place: int,
        example: Example,
        *,
        whole: Row,
        own: dict[int, list[int]],
        end: int,
        bos: int | None,
    ) -> None:
        """Keep a tokenised example, or note why not."""
        cut, reason = self._fit(whole, end, bos)
        row = whole if cut is None else cut.row
        fit, unfit = self._fit_and_unfit(row, own, end)
        if reason is None:
            if unfit:
                found.refused_negatives[place] = unfit
            reason = NO_NEGATIVE if own and not fit else None
        if reason is not None:
            found.refused[place] = reason
            return
        found.add(place, example, Encoded(np.array(row.ids, dtype=np.int32), row.spans, fit))
        shortened = [CUT_NEGATIVE for number, ids in fit if len(ids) < len(own[number])]
        if cut is not None or shortened:
            found.cut[place] = [*([cut.what] if cut is not None else []), *shortened]

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

    def _check_lengths(self, found: Encoding, examples: Spool[Example], places: Sequence[int]) -> None:
        if self.data.truncation != "error":
            return
        too_long = [examples[place].id for place, reason in found.refused.items() if reason == TOO_LONG]
        too_long += [
            negatives.negative_id(examples[place].id, number)
            for place, reasons in found.refused_negatives.items()
            for number, reason in reasons.items()
            if reason == negatives.NEGATIVE_TOO_LONG
        ]
        if not too_long:
            return
        num_negatives = sum(len(examples[place].negatives) for place in places)
        total = f"{len(places)} examples" + (f" and {num_negatives} negatives" if num_negatives else "")
        raise ValueError(
            f"{len(too_long)} of {total} have more than data.max_length={self.data.max_length} "
            f"tokens in prompt and completion: {_some(too_long)}. "
            "Raise data.max_length, or set data.truncation=drop to leave them out, left to cut the prompt, or right to "
            "cut the completion."
        )

    def _account(self, examples: Spool[Example], places: Sequence[int], encoding: Encoding) -> None:
        for place in places:
            reason = None if encoding.kept[place] else encoding.refused.get(place, BEYOND_LIMIT)
            unfit = encoding.refused_negatives.get(place, {})
            if reason is None and not unfit and place not in encoding.cut:
                continue
            example = examples[place]
            if reason is not None:
                self.ledger.drop(reason, example.location)
            for what in encoding.cut.get(place, ()):
                self.ledger.count_cut(what, example.location)
            if reason in (None, NO_NEGATIVE):
                for number, why in unfit.items():
                    self.ledger.drop_negative(why, number, example.location)
            else:
                self.ledger.leave_out_with_row(example.negatives, example.location)
        check_some_left(len(encoding.rows), self.data, self.ledger)


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
    return set(heapq.nsmallest(count, ids, key=lambda name: (hashlib.sha256(name.encode()).digest(), name)))


def token_statistics(encoding: Encoding) -> dict[str, dict[str, float]]:
    """min, mean, median, p95, max and sum of the tokens in prompts, completions, both, and negatives if any.

    Completions are what is trained on; whatever else a row holds is prompt.
    """
    completions, totals, others = (
        np.frombuffer(lengths, np.dtype("l")) if lengths else np.zeros(0, int)
        for lengths in (encoding.num_supervised, encoding.num_tokens, encoding.negative_lengths)
    )
    parts = {"prompt": totals - completions, "completion": completions, "total": totals}
    if len(others):
        parts["negative"] = others
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


def check_some_left(num_left: int, data: DataConfig, ledger: Ledger, refused: dict[int, str] | None = None) -> None:
    """Check that there is something to go on with.

    Raises:
        ValueError: there is not; says what became of the rows.
    """
    if num_left:
        return
    if not ledger.num_rows:
        raise ValueError(f"data.source: {data.source} holds no rows.")
    reasons = [ledger.summary(), *_tally(refused or {})]
    raise ValueError(
        f"data.source: none of the {ledger.num_rows} rows of {data.source} is left: "
        f"{', '.join(filter(None, reasons))}. Loosen the filters of the data section (max_length={data.max_length})."
    )


def _tally(refused: dict[int, str]) -> Iterator[str]:
    for reason in dict.fromkeys(refused.values()):
        yield f"{list(refused.values()).count(reason)} {reason}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMED])
    return shown + (f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else "")
