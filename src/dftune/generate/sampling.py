"""From logits to tokens, row by row: no row's token depends on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dftune.files import fingerprint

_BLOCK = 256


class RowRandom:
    """Uniform random numbers, one stream a row, that survive a change of the batch.

    The stream of a row is set by the seed and the row's key alone, so a completion is the same in any batch and after a
    restart. Numbers are made on the CPU, so that they are the same on every device.
    """

    def __init__(self, seed: int, keys: Sequence[tuple[str, int]], device: torch.device) -> None:
        self._streams = [
            torch.Generator().manual_seed(int(fingerprint(seed, name, sample), 16)) for name, sample in keys
        ]
        self._device = device
        self._used = _BLOCK
        self._block = torch.empty(0)

    def next(self) -> Tensor:
        """(rows,) float64 in [0, 1): the next number of every row."""
        if self._used == _BLOCK:
            drawn = [torch.rand(_BLOCK, generator=stream, dtype=torch.float64) for stream in self._streams]
            self._block, self._used = torch.stack(drawn).to(self._device), 0
        self._used += 1
        return self._block[:, self._used - 1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._streams = [self._streams[row] for row in rows]
        self._block = self._block[list(rows)]


def pick_tokens(logits: Tensor, *, temperature: float, top_p: float, uniforms: Tensor | None) -> Tensor:
    """Choose a token in every row.

    Inverts the cumulative distribution at ``uniforms``; where ``top_p`` cuts tokens off, the likely ones come first.

    Args:
        logits: (rows, vocabulary).
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of tokens that holds this much probability is drawn from.
        uniforms: (rows,) float64 in [0, 1); None for temperature 0.

    Returns:
        (rows,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    assert uniforms is not None
    probs = torch.softmax(logits.float() / temperature, -1)
    # In float32 the sum over a large vocabulary would be off by more than its rare tokens hold.
    if top_p == 1:
        return _invert(probs.cumsum(-1, dtype=torch.float64), uniforms)
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    cut = cumulative - probs >= top_p  # a token is out when those before it hold top_p already
    cumulative = probs.masked_fill(cut, 0).cumsum(-1, dtype=torch.float64)
    return order.gather(-1, _invert(cumulative, uniforms).unsqueeze(-1)).squeeze(-1)


def _invert(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """(rows,): the first token whose cumulative mass exceeds the number's share of the total."""
    marks = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, marks, right=True).squeeze(-1)
    return found.clamp(max=cumulative.shape[-1] - 1)  # rounding could put a mark on the total
