"""Training sets that were generated: read from completions on disk, written with a manifest that says from what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from dftune.data.prompts import PromptFormat
from dftune.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from dftune.recipe import Recipe

Row = dict[str, Any]

NOT_GRADED = "ungraded"
TRUNCATED = "cut off at max_tokens"
EMPTY = "empty"
_NEEDED = ("id", "sample", "problem", "target", "completion", "finish_reason", "num_tokens", "verdict")
_OF_SETTINGS = ("model", "model_fingerprint", "prompt_format", "system", "sampling", "num_problems", "num_samples")


@dataclass(frozen=True)
class Completions:
    """The completions of a stage as they lie on disk.

    Attributes:
        path: the file.
        rows: in the order of problems and samples.
        settings: how they were made.
    """

    path: Path
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]

    @cached_property
    def prompt_format(self) -> PromptFormat:
        """That they were sampled with."""
        return PromptFormat.from_record(self.settings["prompt_format"])

    def solution(self, row: Row) -> str:
        """A completion as a solution: without what the prompt format puts around every solution."""
        known = self.prompt_format
        text: str = row["completion"]
        return text.removeprefix(known.completion_prefix).removesuffix(known.completion_suffix)

    def usable(self, *, keep_truncated: bool) -> tuple[dict[str, list[Row]], Counter[str]]:
        """Rows that may be trained on by problem, each with its ``solution``; how many may not, by reason."""
        found: dict[str, list[Row]] = {}
        left_out: Counter[str] = Counter()
        for row in self.rows:
            of_problem = found.setdefault(row["id"], [])
            solution = self.solution(row)
            if row["finish_reason"] == "length" and not keep_truncated:
                left_out[TRUNCATED] += 1
            elif not solution.strip():
                left_out[EMPTY] += 1
            else:
                of_problem.append({**row, "solution": solution})
        return found, left_out

    def origin(self) -> dict[str, Any]:
        """For a manifest: what a set was made from."""
        kept = {key: self.settings[key] for key in _OF_SETTINGS if key in self.settings}
        return {"file": self.path.name, "sha256": sha256_file(self.path), **kept, "grader": self.settings["grader"]}


def output_folder(recipe: Recipe) -> Path:
    """Where the generated files of a recipe go."""
    return recipe.generate.folder or Path("generated") / recipe.name


def read_completions(path: Path, command: str) -> Completions:
    """The completions of a stage; no model is needed.

    Args:
        path: ``FOLDER/KIND.samples.jsonl``.
        command: that makes them, for messages.

    Raises:
        ValueError: they are missing, incomplete or broken.
    """
    settings_path = path.with_suffix(".json")
    if not path.is_file() or not settings_path.is_file():
        raise ValueError(f"there are no completions {path} (and {settings_path.name}) yet. Make them: {command}")
    settings, rows = read_json(settings_path), read_jsonl(path, partial_last_line=True)
    for number, row in enumerate(rows, 1):
        if missing := [name for name in _NEEDED if name not in row]:
            raise ValueError(
                f"{path}, row {number} of the completions: it has no {', no '.join(missing)}; found "
                f"{', '.join(row) or 'nothing'}. Restore the file, or make it again: {command} --overwrite"
            )
    wanted = settings["num_problems"] * settings["num_samples"]
    if len({(row["id"], row["sample"]) for row in rows}) < wanted:
        raise ValueError(
            f"{path} holds {len(rows)} of {wanted} completions, and a set of part of them would pass for the whole. "
            f"Make the rest: {command}"
        )
    return Completions(path, tuple(rows), settings)


def question(row: Row) -> str | list[dict[str, str]]:
    """The problem cell of a row: a text, or the messages up to the last question where there are earlier ones."""
    history = row.get("history")
    return [*history, {"role": "user", "content": row["problem"]}] if history else row["problem"]


def distinct(rows: Sequence[Row]) -> Iterator[Row]:
    """Each text once, white space aside: the row where it comes first."""
    seen = set()
    for row in rows:
        text = " ".join(row["solution"].split())
        if text not in seen:
            seen.add(text)
            yield row


def write_set(
    path: Path,
    rows: Sequence[Row],
    *,
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a set as JSONL and its manifest ``NAME.manifest.json`` beside it; the same from the same, byte for byte.

    Returns:
        The manifest.

    Raises:
        ValueError: the set would be empty.
    """
    if not rows:
        raise ValueError(
            f"nothing is left for {path}: {', '.join(f'{value} {key}' for key, value in counts.items())}. "
            "Sample more (num_samples), raise max_tokens, or begin with a better model."
        )
    write_jsonl(path, rows)
    return write_manifest(path, len(rows), origin=origin, settings=settings, counts=counts)


def write_manifest(
    path: Path,
    num_rows: int,
    *,
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``NAME.manifest.json`` beside a file that is there."""
    manifest = {
        "kind": "generated",
        "set": path.stem,
        "file": path.name,
        "sha256": sha256_file(path),
        "num_rows": num_rows,
        "from": dict(origin),
        "settings": dict(settings),
        "counts": dict(counts),
        "dftune_version": metadata.version("dftune"),
    }
    write_json(path.with_name(f"{path.stem}.manifest.json"), manifest)
    return manifest
