"""Completions as a stage leaves them, made by hand."""

from pathlib import Path

from dftune.data.prompts import FORMATS
from dftune.files import write_json, write_jsonl
from dftune.generate.sets import Completions, read_completions


def row(name, sample, text, verdict="incorrect", *, num_tokens=5, finish="stop", target="7", **more):
    """One completion of the problem ``name``."""
    known = {"id": name, "sample": sample, "problem": f"What of {name}?", "target": target, "completion": text}
    return {**known, "finish_reason": finish, "num_tokens": num_tokens, "verdict": verdict, **more}


def completions(folder: Path, rows, *, prompt_format="plain", kind="rollouts") -> Completions:
    """Written to disk and read back."""
    record = prompt_format if isinstance(prompt_format, dict) else FORMATS[prompt_format].record()
    problems = {one["id"] for one in rows}
    settings = {
        "num_problems": len(problems),
        "num_samples": len(rows) // len(problems),
        "model": "m",
        "model_fingerprint": "0" * 16,
        "prompt_format": record,
        "system": None,
        "sampling": {"temperature": 1.0},
        "grader": "1",
    }
    path = folder / f"{kind}.samples.jsonl"
    write_jsonl(path, rows)
    write_json(path.with_suffix(".json"), settings)
    return read_completions(path, f"dftune generate RECIPE {kind}")
