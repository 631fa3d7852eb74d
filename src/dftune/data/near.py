"""Near duplicates among many texts: MinHash signatures on disk, compared within buckets, in bounded memory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"[^\W\u3040-\u9fff]+|[\u3040-\u9fff]")  # Han and Kana are written without spaces
_SHINGLE = 3
_NUM_HASHES, _NUM_BANDS = 64, 16
_ROWS = _NUM_HASHES // _NUM_BANDS
_CHUNK = 8192
_NUM_SHOWN = 5

THRESHOLD = 0.8
"""Estimated Jaccard similarity of the word shingles from which two texts are near duplicates."""

Signature = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class NearDuplicates:
    """What was found.

    Attributes:
        num_rows: texts that are a near duplicate of an earlier one, directly or through others.
        num_groups: groups of near duplicates.
        pairs: indices of the first pairs and their estimated similarity.
    """

    num_rows: int
    num_groups: int
    pairs: tuple[tuple[int, int, float], ...]


class Signatures:
    """MinHash signatures of texts (Broder 1997), 256 bytes each, in an unnamed file.

        P(signatures agree in a place) = |A and B| / |A or B|

    A and B are the sets of three words in a row of two texts, case and punctuation aside. The standard error of the
    estimate is at most 0.0625. Texts are compared where all four values of one of sixteen bands are equal: at a
    similarity of 0.8 that misses 2 in 10,000 pairs.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, 2**63, (_NUM_HASHES, 1), dtype=np.uint64) * 2 + 1
        self._offsets = rng.integers(0, 2**63, (_NUM_HASHES, 1), dtype=np.uint64)
        self._mix = rng.integers(1, 2**63, _SHINGLE, dtype=np.uint64) * 2 + 1
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)
        self._waiting: list[Signature] = []
        self._num = 0

    def add(self, text: str) -> None:
        """Take one text; it need not be kept."""
        self._waiting.append(self.signature(text))
        self._num += 1
        if len(self._waiting) > _CHUNK:
            self._flush()

    def signature(self, text: str) -> Signature:
        """(64,) uint32: the smallest value of each hash function over the shingles."""
        words = np.array([crc32(word.encode("utf-8", "replace")) for word in _WORD.findall(text.lower())], np.uint64)
        if len(words) < _SHINGLE:
            words = np.pad(words, (0, _SHINGLE - len(words)))
        last = len(words) - _SHINGLE + 1
        shingles = sum(words[place : place + last] * self._mix[place] for place in range(_SHINGLE))
        values = (shingles[None] * self._factors + self._offsets) >> np.uint64(32)
        return values.min(axis=1).astype(np.uint32)  # type: ignore[no-any-return]

    def duplicates(self, threshold: float = THRESHOLD) -> NearDuplicates:
        """The near duplicates among all texts taken."""
        if self._num < 2:
            return NearDuplicates(0, 0, ())
        table = self._table()
        parents = np.arange(self._num, dtype=np.int32)
        shown: dict[tuple[int, int], float] = {}
        for band in range(_NUM_BANDS):
            for left, right in _candidates(_band_keys(table, band)):
                agreement = (table[left] == table[right]).mean(axis=1)
                near = agreement >= threshold
                for one, other, share in zip(left[near].tolist(), right[near].tolist(), agreement[near], strict=True):
                    _join(parents, one, other)
                    _show(shown, (one, other), float(share))
        joined = np.flatnonzero(parents != np.arange(self._num))
        roots = np.array([_root(parents, int(place)) for place in joined], np.int64)
        pairs = tuple((*pair, round(share, 2)) for pair, share in sorted(shown.items()))
        return NearDuplicates(len(roots), len(np.unique(roots)), pairs)

    def _table(self) -> npt.NDArray[np.uint32]:
        """(texts, 64) uint32: in memory where they are few, mapped from the file otherwise."""
        if self._num == len(self._waiting):
            return np.stack(self._waiting)
        self._flush()
        return np.memmap(self._file, np.uint32, "r", shape=(self._num, _NUM_HASHES))

    def _flush(self) -> None:
        for signature in self._waiting:
            self._file.write(signature.tobytes())
        self._waiting.clear()
        self._file.flush()


def _band_keys(table: npt.NDArray[np.uint32], band: int) -> npt.NDArray[np.uint64]:
    keys = np.zeros(len(table), np.uint64)
    for start in range(0, len(table), _CHUNK):
        part = table[start : start + _CHUNK, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64)
        for column in range(_ROWS):
            keys[start : start + _CHUNK] = (
                keys[start : start + _CHUNK] * np.uint64(0x9E3779B97F4A7C15) + part[:, column]
            )
    return keys


def _candidates(keys: npt.NDArray[np.uint64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs (earlier, later) of equal keys: each text with the first of its bucket and with the one before it."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    starts = np.maximum.accumulate(np.where(np.concatenate([[False], same]), 0, np.arange(len(keys))))
    later = np.flatnonzero(same) + 1
    for first in range(0, len(later), _CHUNK):
        part = later[first : first + _CHUNK]
        yield order[starts[part]], order[part]
        inner = part[starts[part] != part - 1]
        if len(inner):
            yield order[inner - 1], order[inner]


def _join(parents: npt.NDArray[np.int32], one: int, other: int) -> None:
    first, second = _root(parents, one), _root(parents, other)
    if first != second:
        parents[max(first, second)] = min(first, second)


def _root(parents: npt.NDArray[np.int32], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _show(shown: dict[tuple[int, int], float], pair: tuple[int, int], share: float) -> None:
    shown[pair] = share
    if len(shown) > _NUM_SHOWN:
        del shown[max(shown)]


def similarity(one: str, other: str) -> float:
    """The exact Jaccard similarity of two texts' shingles, which the signatures estimate."""
    sets = [_shingles(text) for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _shingles(text: str) -> set[Sequence[str]]:
    words = _WORD.findall(text.lower())
    words += [""] * (_SHINGLE - len(words))
    return {tuple(words[place : place + _SHINGLE]) for place in range(len(words) - _SHINGLE + 1)}
