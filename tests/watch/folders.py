r"""Run folders whose checkpoints answer \boxed{7} or \boxed{8}, whatever they are asked."""

import json
import time
from pathlib import Path

from tests.chains import save_chain

from dftune.data.prompts import FORMATS
from dftune.files import append_jsonl, read_jsonl, write_json, write_text

BOX = r"\boxed{"
TARGETS = {"sums/1": "7", "sums/2": "8", "sums/3": "7", "sums/4": "7"}
RIGHT = {"7": 0.75, "8": 0.25}
"""Accuracy of a model that always gives this answer."""


def always(answer: str) -> dict[str, dict[str, float]]:
    return {before: {after: 1.0} for before, after in zip("\n" + BOX + answer, BOX + answer + "}", strict=True)}


def write_problems(path: Path) -> Path:
    rows = [
        {"id": name, "problem": f"{index} + {index}?", "answer": TARGETS[name]} for index, name in enumerate(TARGETS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class FakeTraining:
    """Writes what a training run writes, when it is told to."""

    def __init__(self, path: Path, problems: Path, **sections) -> None:
        self.path = path
        evaluate = {"benchmarks": [str(problems)], "max_tokens": 20}
        path.mkdir(parents=True)
        write_text(path / "recipe.yaml", json.dumps({"name": path.name, "evaluate": evaluate, **sections}))
        manifest = {"name": path.name, "kind": "train", "prompt_format": FORMATS["plain"].record()}
        hardware = {"device": "cpu", "num_threads": 1}
        write_json(path / "manifest.json", {**manifest, "hardware": hardware})
        self.log("start", 0, num_steps=100, resumed=False)

    def log(self, kind: str, step: int, **fields) -> None:
        append_jsonl(self.path / "events.jsonl", [{"kind": kind, "step": step, "time": time.time(), **fields}])

    def checkpoint(self, step: int, answer: str, nll: float | None = None) -> Path:
        if nll is not None:
            self.log("validation", step, nll=nll)
        folder = self.path / "checkpoints" / f"step-{step}"
        aside = folder.with_name(f".incomplete-{folder.name}")
        save_chain(aside / "model", always(answer))
        aside.rename(folder)
        self.log("checkpoint", step, path=f"checkpoints/step-{step}")
        return folder

    def end(self, step: int, answer: str) -> None:
        self.log("train", step, loss=1.0, nll=1.0, tokens_per_s=1.0)
        save_chain(self.path / "model", always(answer))
        self.log("end", step, status="finished", message="")

    def evaluations(self) -> list[tuple[int, float]]:
        rows = read_jsonl(self.path / "events.jsonl")
        return [(row["step"], row["accuracy"]) for row in rows if row["kind"] == "evaluation"]
