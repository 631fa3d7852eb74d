"""Sampled negatives beside the solution they stand against, joined by the ids of the problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dftune.data.examples import Example
from dftune.data.messages import as_dicts
from dftune.files import atomic_path, write_jsonl
from dftune.generate.problems import conversation
from dftune.generate.recipe import NegativesConfig
from dftune.generate.sets import EMPTY, TRUNCATED, Completions, Row

REAL, GENERATED = "real", "generated_"
EQUAL, CORRECT, REPEATED = "equal to the solution", "correct", "equal to an earlier one"


def merge_negatives(
    examples: Sequence[Example],
    completions: Completions,
    config: NegativesConfig,
    *,
    keep_truncated: bool = False,
) -> tuple[list[Row], dict[str, Any]]:
    """One row a problem: ``real``, the conversation with its solution, and ``generated_K``, that with sample K.

    Where a completion belongs is told by the id of its problem and the number of its sample, never by the order of
    files or rows. ``equal`` and ``correct`` list the numbers of negatives that equal the solution or grade as correct,
    whether they are left out or not. One that is left out is null.

    Args:
        examples: the problems and their solutions.
        completions: ``num_samples`` of every problem; further ones are not used.
        config: how many samples, and which are left out.
        keep_truncated: keep those that were cut off at the limit of tokens.

    Returns:
        The rows, and how many negatives there are of each kind.
    """
    of_problem: dict[str, dict[int, Row]] = {}
    for found in completions.rows:
        if found["sample"] < config.num_samples:
            of_problem.setdefault(found["id"], {})[found["sample"]] = found
    flagged: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows = []
    for example in examples:
        samples = of_problem[example.id]
        asked = as_dicts(conversation(example, None))
        row: Row = {"id": example.id, "source": example.source, "answer": example.answer}
        row[REAL] = [*asked, {"role": "assistant", "content": example.solution}]
        texts = {number: completions.solution(sample) for number, sample in sorted(samples.items())}
        marks = {
            EQUAL: [number for number, text in texts.items() if text.strip() == example.solution.strip()],
            CORRECT: [number for number in texts if samples[number]["verdict"] == "correct"],
        }
        flagged.update({name: len(numbers) for name, numbers in marks.items()})
        reasons = _reasons(texts, samples, marks, config, keep_truncated=keep_truncated)
        left_out.update(reasons.values())
        for number, text in texts.items():
            answered = [*asked, {"role": "assistant", "content": text}]
            row[f"{GENERATED}{number}"] = None if number in reasons else answered
        rows.append({**row, "equal": marks[EQUAL], "correct": marks[CORRECT]})
    total = len(examples) * config.num_samples
    dropped = sum(left_out.values())
    none_left = sum(all(row[f"{GENERATED}{number}"] is None for number in range(config.num_samples)) for row in rows)
    return rows, {
        "problems": len(rows),
        "negatives": total,
        "kept": total - dropped,
        "flagged": {name: flagged[name] for name in (EQUAL, CORRECT)},
        "left_out": dict(sorted(left_out.items())),
        "problems_without_negative": none_left,
    }


def _reasons(
    texts: Mapping[int, str],
    samples: Mapping[int, Row],
    marks: Mapping[str, Sequence[int]],
    config: NegativesConfig,
    *,
    keep_truncated: bool,
) -> dict[int, str]:
    """Why negatives are left out, by their number: the first reason that holds."""
    found: dict[int, str] = {}
    seen: set[str] = set()
    for number, text in texts.items():
        if not text.strip():
            found[number] = EMPTY
        elif samples[number]["finish_reason"] == "length" and not keep_truncated:
            found[number] = TRUNCATED
        elif config.drop_equal and number in marks[EQUAL]:
            found[number] = EQUAL
        elif config.drop_correct and number in marks[CORRECT]:
            found[number] = CORRECT
        elif config.drop_repeated and text.strip() in seen:
            found[number] = REPEATED
        else:
            seen.add(text.strip())
    return found


def write_merged(path: Path, rows: Sequence[Row]) -> None:
    """Write merged rows as the ending of ``path`` says: ``.parquet`` or ``.jsonl``; all or nothing."""
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    said = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {"id": pa.string(), "source": pa.string(), "answer": pa.string()}
    kinds |= {"equal": pa.list_(pa.int64()), "correct": pa.list_(pa.int64())}
    schema = pa.schema([(name, kinds.get(name, said)) for name in rows[0]])
    with atomic_path(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")
