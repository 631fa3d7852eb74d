"""Benchmarks that are known by name: where they are published, how many rows they have, what their columns are called.

The files themselves are not shipped: they are read from a folder of local copies, or fetched from the Hugging Face hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA_DIR_VARIABLE = "DFTUNE_DATA"


@dataclass(frozen=True)
class NamedBenchmark:
    """A published benchmark.

    Attributes:
        name: as the command line and result files call it.
        hub: dataset id on the Hugging Face hub.
        split: of the dataset.
        sizes: numbers of rows of the known releases; any other number is an error.
        configs: configurations to read one after another; empty stands for the default one.
        columns: our name of a column by theirs, where they differ and it matters.
        about: one line.
    """

    name: str
    hub: str
    split: str
    sizes: tuple[int, ...]
    about: str
    configs: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

NAMED: dict[str, NamedBenchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        NamedBenchmark(
            "math500",
            "HuggingFaceH4/MATH-500",
            "test",
            (500,),
            "MATH-500: 500 problems of the MATH test set (Lightman et al. 2023), by subject and level",
            columns={"unique_id": "id"},
        ),
        NamedBenchmark(
            "math",
            "EleutherAI/hendrycks_math",
            "test",
            (5000,),
            "the whole MATH test set (Hendrycks et al. 2021), by subject and level",
            configs=_MATH_SUBJECTS,
            columns={"type": "subject"},
        ),
        NamedBenchmark(
            "minerva_math",
            "math-ai/minervamath",
            "test",
            (272,),
            "272 questions of MIT OpenCourseWare (Lewkowycz et al. 2022), by course",
        ),
        NamedBenchmark(
            "olympiadbench",
            "Hothan/OlympiadBench",
            "train",
            (675, 674),
            "English competition problems of OlympiadBench without images (He et al. 2024); releases have 675 or 674",
            configs=("OE_TO_maths_en_COMP",),
            columns={
                "subfield": "subject",
                "final_answer": "answer",
                "error": "abs_error",
                "is_multiple_answer": "multiple",
            },
        ),
        NamedBenchmark("aime24", "HuggingFaceH4/aime_2024", "train", (30,), "AIME 2024, both papers"),
        NamedBenchmark("aime25", "math-ai/aime25", "test", (30,), "AIME 2025, both papers"),
        NamedBenchmark("amc23", "math-ai/amc23", "test", (40,), "AMC 12 of 2023, answers as numbers"),
        NamedBenchmark(
            "gsm8k",
            "openai/gsm8k",
            "test",
            (1319,),
            "grade school word problems (Cobbe et al. 2021)",
            configs=("main",),
        ),
    )
}


def local_copy(name: str, data_dir: Path | None) -> Path | None:
    """The file of a named benchmark in a folder of local copies: NAME.jsonl, NAME_test.jsonl or NAME/test.jsonl.

    Args:
        name: of the benchmark.
        data_dir: the folder; None stands for the one that the environment variable DFTUNE_DATA names, if any.

    Raises:
        ValueError: the folder is not there.
    """
    folder = data_dir or (Path(os.environ[DATA_DIR_VARIABLE]) if os.environ.get(DATA_DIR_VARIABLE) else None)
    if folder is None:
        return None
    folder = folder.expanduser()
    if not folder.is_dir():
        given = "--data-dir (evaluate.data_dir)" if data_dir else f"the environment variable {DATA_DIR_VARIABLE}"
        raise ValueError(f"{given} names {folder}, which is no folder. It should hold {name}.jsonl.")
    return next((folder / path for path in local_names(name) if (folder / path).is_file()), None)


def local_names(name: str) -> tuple[str, ...]:
    """Where a local copy may lie, relative to the folder of copies."""
    return (f"{name}.jsonl", f"{name}_test.jsonl", f"{name}/test.jsonl")


def describe_benchmarks() -> str:
    """One entry a benchmark: rows, where it comes from, what it is."""
    width = max(map(len, NAMED))
    lines = []
    for item in NAMED.values():
        sizes = " or ".join(f"{size:,}" for size in item.sizes)
        source = item.hub + (f" ({', '.join(item.configs)})" if item.configs else "") + f", {item.split}"
        lines += [f"  {item.name:<{width}}  {sizes:>10}  {item.about}", f"  {'':<{width}}  {'':>10}  hub: {source}"]
    return "\n".join(lines)
