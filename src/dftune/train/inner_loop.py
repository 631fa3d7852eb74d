"""The policy at the start of an inner loop, as log-probabilities of the examples that the loop will visit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.train.model import ScoredModel
from dftune.train.reference import logps_by_example
from dftune.train.world import ALONE, World


class OldPolicy:
    """Log-probabilities under the policy at the start of the current inner loop; they travel in the checkpoint."""

    def __init__(self) -> None:
        self._logps: dict[str, npt.NDArray[np.float32]] = {}

    def refresh(self, model: ScoredModel, batches: Sequence[MicroBatch], world: World = ALONE) -> None:
        """Start an inner loop: the model as it is now, over the examples of the loop's steps."""
        self._logps = logps_by_example(model, batches, world)

    def of(self, example_ids: Sequence[str]) -> Tensor:
        """Those of these examples, one after another: (tokens,) float32."""
        return torch.from_numpy(np.concatenate([self._logps[name] for name in example_ids]))

    def writer(self) -> Callable[[Path], None]:
        """What writes those of this moment to a safetensors file, also after the next :meth:`refresh`."""
        return partial(_save, self._logps)

    def load(self, path: Path) -> None:
        """Read what a :meth:`writer` wrote."""
        with safe_open(path, framework="pt") as file:
            logps, lengths = file.get_tensor("logps").numpy(), file.get_tensor("lengths").numpy()
            ids = json.loads(file.metadata()["example_ids"])
        self._logps = dict(zip(ids, np.split(logps, np.cumsum(lengths)[:-1]), strict=True))


def _save(of_examples: dict[str, npt.NDArray[np.float32]], path: Path) -> None:
    values = list(of_examples.values())
    tensors = {
        "logps": torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *values])),
        "lengths": torch.tensor([len(value) for value in values], dtype=torch.int64),
    }
    save_file(tensors, path, metadata={"example_ids": json.dumps(list(of_examples))})
