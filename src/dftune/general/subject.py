"""The model that general tasks are for, and the run folder that their results go into."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.evaluate.models import begin_output, check_output, find_files
from dftune.generate.load import choose_device, choose_dtype, load_engine, load_tokenizer

if TYPE_CHECKING:
    from dftune.generate.local import LocalEngine


class Subject:
    """A model folder, loaded when it is first needed."""

    def __init__(
        self, model: str, output: Path, *, step: int, device: str = "auto", dtype: str = "auto", batch_size: int = 64
    ) -> None:
        """Find the model, and see that the run folder is for it.

        Args:
            model: folder of a Hugging Face checkpoint or of a LoRA adapter, or a model id of the hub.
            output: a run folder; one without ``manifest.json`` becomes one of kind ``evaluate``.
            step: optimizer steps of the model, which names the folder of the results.
            device: ``auto``, ``cpu``, ``cuda``...
            dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 on the CPU.
            batch_size: completions generated together.

        Raises:
            ValueError: no such model or device, or the folder holds evaluations of another model.
        """
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.files = find_files(model)
        self.output, self.step = output, step
        self._batch_size = batch_size
        self.model = {"path": model, "fingerprint": self.files.fingerprint()}
        check_output(output, self.files.place, self.model["fingerprint"])

    @property
    def results(self) -> Path:
        """Where result files go."""
        return self.output / "evals" / f"step-{self.step}"

    @property
    def settings(self) -> dict[str, Any]:
        """What every result file says of the model."""
        return {
            "model": self.model["path"],
            "model_fingerprint": self.model["fingerprint"],
            "step": self.step,
            "engine": "local",
            "precision": self.dtype,
        }

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model."""
        return load_tokenizer(self.files.folder)

    @cached_property
    def engine(self) -> LocalEngine:
        """The model, loaded."""
        return load_engine(
            self.files.folder,
            adapter=self.files.adapter,
            device=self.device,
            dtype=self.dtype,
            batch_size=self._batch_size,
        )

    def begin(self) -> None:
        """Write the manifest, unless there is one."""
        begin_output(self.output, self.model, self.files.folder, self.tokenizer, self.device)


def to_stderr(message: str) -> None:
    """Say something that is not the result."""
    print(message, file=sys.stderr)
