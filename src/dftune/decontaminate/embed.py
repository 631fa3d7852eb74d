"""Hits by meaning: benchmark problems whose embedding is near that of a training row, said in other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data.hub import from_pretrained
from dftune.decontaminate.decide import Problem, same_meaning
from dftune.decontaminate.index import Hit, Index

_KEY = "data.decontaminate.embeddings"
_MAX_TOKENS = 512


class Embedder:
    """Unit vectors for texts: the mean over tokens of a model's last hidden states.

    Args:
        model: folder or id of an encoder that transformers' ``AutoModel`` loads.
        device: where to compute.
        batch_size: texts embedded together.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, model: str, *, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415  (seconds to import)

        self.tokenizer = from_pretrained(AutoTokenizer, model, None, _KEY)
        self.model = from_pretrained(AutoModel, model, None, _KEY, use_safetensors=True).to(device).eval()
        self.device, self.batch_size = device, batch_size
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(texts, width) float32, each row of length 1."""
        parts = [self._embed(texts[start : start + self.batch_size]) for start in range(0, len(texts), self.batch_size)]
        return np.concatenate(parts)

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        import torch  # noqa: PLC0415

        inputs: Any = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            hidden = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return unit


def scan_meaning(
    problems: Iterable[Problem], index: Index, embed: Embedder, *, least_similarity: float
) -> Iterator[list[Hit]]:
    """For every problem, in order, the benchmark rows that are it in other words.

    Args:
        problems: training rows.
        index: the benchmarks.
        embed: the encoder.
        least_similarity: cosine from which a pair is compared; numbers and answers decide (`same_meaning`).
    """
    benchmark = embed([row.problem.text for row in index.rows])
    rows = iter(problems)
    while chunk := list(islice(rows, embed.batch_size)):
        similarity = embed([problem.text for problem in chunk]) @ benchmark.T
        for problem, own in zip(chunk, similarity, strict=True):
            near = np.flatnonzero(own >= least_similarity)
            found = [(place, same_meaning(problem, index.rows[place].problem)) for place in near]
            yield [Hit(index.rows[place], decision) for place, decision in found if decision.same]
