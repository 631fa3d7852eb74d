"""From parts of a text to token ids, so that parts put end to end are the text again and no token spans two of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

_SPACES = ("\u2581", "\u0120")
"""How pieces show a space: SentencePiece's, byte-level BPE's."""
_ANCHORS = ("\n", ".", "a", "0", "\u00e9")


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


class TextEncoder:
    """Encodes texts that begin a row, and texts that go on from what is there already.

    Many tokenizers (SentencePiece models, byte-level ones with ``add_prefix_space``) put a space before whatever they
    are given. At the beginning of a row that is what every server does too, and it is left as it is. In the middle it
    would be a space that nobody wrote: ``Answer:`` and `` 4`` end to end would read ``Answer:  4``. There the text is
    encoded behind an anchor whose tokens are taken off again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bos: int | None = tokenizer.bos_token_id if adds_bos(tokenizer) else None

    @cached_property
    def _anchors(self) -> list[tuple[str, list[int]]] | None:
        """Texts to encode behind, and their ids; None where the tokenizer adds no space."""
        if not self._spaced("a", 0):
            return None
        texts = [*self._tokenizer.all_special_tokens, *_ANCHORS]
        leads = self._ids(texts)
        return [pair for pair in zip(texts, leads, strict=True) if self._is_anchor(*pair)]

    def beginnings(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that begin a row, each as the tokenizer encodes it, with one beginning-of-sequence token."""
        bos = self._bos
        return [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in self._ids(texts)]

    def continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids that, put behind any others, add exactly these texts.

        Raises:
            ValueError: the tokenizer cannot encode a text without a space before it.
        """
        if self._anchors is None:
            return self._ids(texts)
        found: list[list[int] | None] = [[] if text == "" else None for text in texts]
        for anchor, lead in self._anchors:
            left = [place for place, ids in enumerate(found) if ids is None]
            for place, ids in zip(left, self._ids([anchor + texts[place] for place in left]), strict=True):
                found[place] = self._behind(lead, ids)
        for text, done in zip(texts, found, strict=True):
            if done is None:
                raise ValueError(
                    f"the tokenizer puts a space before every text, and {text[:60]!r} could not be encoded without. "
                    "Load it with add_prefix_space=False, or leave this row out."
                )
        return [ids for ids in found if ids is not None]

    def after_token(self, token_id: int, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow a special token, as the tokenizer encodes them there."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        whole = self._ids([token + text for text in texts])
        if all(ids[:1] == [token_id] for ids in whole):
            return [ids[1:] for ids in whole]
        return self.continuations(texts)

    def _is_anchor(self, text: str, lead: list[int]) -> bool:
        """Whether what comes behind a text gets no space and keeps its own; some special tokens swallow it."""
        behind = [self._behind(lead, ids) for ids in self._ids([text + probe for probe in ("a", " a", "\na")])]
        if any(ids is None for ids in behind) or len({tuple(ids or ()) for ids in behind}) < len(behind):
            return False
        return not self._spaced(text + "a", len(lead))

    def _spaced(self, text: str, place: int) -> bool:
        """Whether the token at this place begins with a space."""
        pieces = self._tokenizer.convert_ids_to_tokens(self._ids([text])[0])
        return bool(pieces[place:]) and pieces[place].startswith(_SPACES)

    @staticmethod
    def _behind(lead: list[int], ids: list[int]) -> list[int] | None:
        return ids[len(lead) :] if ids[: len(lead)] == lead else None

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return ids
