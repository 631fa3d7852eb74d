"""From a source to a prepared dataset: read, filter, split, tokenise, mask, write."""

from __future__ import annotations

import json
import platform
import sys
from array import array
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from dftune.data.config import DataConfig
from dftune.data.dataset import (
    LAYOUT,
    Manifest,
    PreparedDataset,
    differing_settings,
    settings_of,
    tokenizer_origin,
)
from dftune.data.encode import (
    Encoder,
    Encoding,
    Progress,
    check_some_left,
    choose_held_out,
    token_statistics,
)
from dftune.data.examples import CONTAMINATED, Example, Ledger, select_examples
from dftune.data.prompts import get_format
from dftune.data.quality import QUALITY_NAME, QualityReport
from dftune.data.sources import open_rows
from dftune.data.spool import Spool
from dftune.data.store import Encoded, existing_parent, find_existing, full_disk_explained, write_dataset
from dftune.data.tokenizer import blank_tokenizer, context_length, load_tokenizer, tokenizer_fingerprint
from dftune.decontaminate.embed import Embedder
from dftune.decontaminate.screen import Contamination, TrainingRow, load_benchmarks, screen
from dftune.environment import available_cores
from dftune.evaluate.benchmarks import Benchmark
from dftune.files import fingerprint
from dftune.recipe import Recipe

_MOST_FOUND = 0.9
"""Share of benchmark problems among the rows from which the source itself is taken for a benchmark."""


def prepare(recipe: Recipe, *, force: bool = False, progress: Progress | None = None) -> Manifest:
    """Prepare the dataset of a recipe in its ``data.prepared`` folder.

    A folder that already holds exactly this is left as it is. The folder appears complete or not at all.

    Args:
        recipe: its ``data`` and ``model`` sections decide the content.
        force: replace a dataset that was prepared with other settings.
        progress: told how far the work is.

    Raises:
        ValueError: the source, a row, the settings or the folder is not what it must be.
        OSError: the disk is full; nothing is left behind.
    """
    report = progress or (lambda *_: None)
    sizes = [0]
    with full_disk_explained(recipe.data.prepared, lambda: max(sizes)):
        return _prepare(recipe, force, report, sizes)


def _prepare(recipe: Recipe, force: bool, report: Progress, sizes: list[int]) -> Manifest:
    scratch, meanwhile = recipe.model.scratch, existing_parent(recipe.data.prepared)
    _check_context(recipe)
    tokenizer = load_tokenizer(recipe.model) if scratch is None else blank_tokenizer()
    prompt_format = get_format(recipe.data.prompt_format, tokenizer)
    prompt_format.end_token_id(tokenizer)  # says now, not after reading, that the format does not suit the tokenizer

    ledger = Ledger()
    rows, data, recognised = open_rows(recipe.data)
    examples, rows_sha256 = select_examples(
        rows,
        data,
        ledger,
        lambda count: report("reading", count, None),
        folder=meanwhile,
        keep_duplicates=data.keep_duplicates,
    )
    sizes.append(examples.num_bytes)
    report("reading", ledger.num_rows, ledger.num_rows)
    check_some_left(len(examples), data, ledger)
    identity = tokenizer_origin(recipe) if scratch else tokenizer_fingerprint(tokenizer)
    content = fingerprint(LAYOUT, settings_of(recipe), prompt_format.fingerprint, identity, rows_sha256)
    benchmarks = _benchmarks(recipe)
    if benchmarks:
        content = fingerprint(content, [benchmark.fingerprint for benchmark in benchmarks])
    if ledger.has_history:
        content = fingerprint(content, prompt_format.conversation_fingerprint(tokenizer))
    existing = find_existing(data.prepared, content, lambda manifest: differing_settings(manifest, recipe), force)
    if existing is not None:
        report("already prepared", 1, 1)
        return existing

    places, contamination = _screened(examples, benchmarks, data, ledger, report)
    _check_is_no_benchmark(len(examples) - len(places), len(examples), contamination, data)
    check_some_left(len(places), data, ledger)
    encoder = Encoder(data, prompt_format, ledger, report, meanwhile)
    if scratch is None:
        encoding = encoder.encode_with(tokenizer, examples, places)
    else:
        tokenizer, encoding = encoder.encode_with_new(scratch.vocab_size, examples, places)
    sizes.append(encoding.num_bytes)
    held_out = choose_held_out(encoding.ids, data.validation)
    manifest = Manifest(
        kind="prepared",
        layout=LAYOUT,
        fingerprint=content,
        settings=settings_of(recipe),
        tokenizer=tokenizer_origin(recipe),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        prompt_format=prompt_format.record(),
        rows_sha256=rows_sha256,
        counts=ledger.counts(),
        truncated=ledger.truncated(),
        contamination={"action": data.decontaminate.action, "benchmarks": contamination.counts()},
        num_train=len(encoding.ids) - len(held_out),
        num_validation=len(held_out),
        tokens=token_statistics(encoding),
        versions=_versions(),
    )
    if recognised is not None:
        manifest["recognised"] = recognised
    if data.columns.negatives is not None:
        manifest["negatives"] = ledger.negative_counts(encoding.num_negatives)
    counts = manifest["counts"]
    num_dropped = sum(dropped["count"] for dropped in counts["dropped"].values())
    assert counts["rows_read"] == len(encoding.ids) + num_dropped, "a row was lost without a count"
    _write(
        recipe,
        manifest,
        tokenizer,
        report,
        examples=examples,
        encoding=encoding,
        held_out=held_out,
        contamination=contamination,
    )
    return manifest


def _write(
    recipe: Recipe,
    manifest: Manifest,
    tokenizer: Any,
    report: Progress,
    *,
    examples: Spool[Example],
    encoding: Encoding,
    held_out: set[str],
    contamination: Contamination,
) -> None:
    """The folder, in one pass over the rows."""
    quality = QualityReport()

    def rows() -> Iterator[tuple[str, Example, Encoded]]:
        for count, (place, encoded) in enumerate(encoding.rows):
            if count % 1000 == 0:
                report("writing", count, len(encoding.rows))
            example = examples[place]
            quality.add(example)
            yield "validation" if example.id in held_out else "train", example, encoded

    def files() -> dict[str, str]:
        report("writing", len(encoding.rows), len(encoding.rows))
        texts = {QUALITY_NAME: json.dumps(quality.finish(), indent=2, ensure_ascii=False) + "\n"}
        if contamination.benchmarks:
            texts |= contamination.files(recipe.name, recipe.data.decontaminate.action)
        return texts

    write_dataset(recipe.data.prepared, manifest, tokenizer, rows(), files)


def _benchmarks(recipe: Recipe) -> list[Benchmark]:
    settings = recipe.data.decontaminate
    if settings.action == "skip":
        return []
    return load_benchmarks(
        [*recipe.evaluate.benchmarks, *(recipe.watch.benchmarks or ()), *settings.benchmarks], recipe.evaluate.data_dir
    )


def _screened(
    examples: Spool[Example], benchmarks: Sequence[Benchmark], data: DataConfig, ledger: Ledger, report: Progress
) -> tuple[Sequence[int], Contamination]:
    """The places of the examples to go on with, and what they have in common with the benchmarks."""
    settings, everything = data.decontaminate, range(len(examples))
    if not benchmarks:
        return everything, Contamination([])
    contamination = screen(
        (TrainingRow(example.id, example.problem, example.answer, example.solution) for example in examples),
        benchmarks,
        workers=available_cores(),
        embed=None if settings.embeddings is None else Embedder(settings.embeddings),
        least_similarity=settings.least_similarity,
        progress=lambda count: report("comparing with benchmarks", count, len(examples)),
    )
    if settings.action == "report" or not contamination.same:
        return everything, contamination
    found = {place: example for place, example in enumerate(examples) if example.id in contamination.same}
    if settings.action == "error":
        pair = next(pair for pair in contamination.pairs if pair["same"])
        first = next(iter(found.values()))
        raise ValueError(
            f"{len(found)} training rows are problems of a benchmark, the first of them {pair['id']!r} "
            f"({first.location}): {pair['benchmark']} {pair['benchmark_id']!r}, {pair['reason']}. "
            "data.decontaminate.action=remove leaves them out, report keeps and counts them."
        )
    for example in found.values():
        ledger.drop(CONTAMINATED, example.location)
        ledger.leave_out_with_row(example.negatives, example.location)
    return array("l", (place for place in everything if place not in found)), contamination


def _check_is_no_benchmark(num_found: int, num_examples: int, contamination: Contamination, data: DataConfig) -> None:
    if num_found < _MOST_FOUND * num_examples:
        return
    shares = {name: len(found["matched"]) / found["rows"] for name, found in contamination.counts().items()}
    name = max(shares, key=lambda each: shares[each], default="")
    if name:
        raise ValueError(
            f"data.source: {data.source} seems to be a benchmark: {num_found} of its {num_examples} rows are problems "
            f"of the benchmarks that the recipe evaluates on, among them {shares[name]:.0%} of {name}. Train on "
            "another source (its training split?), take the benchmark out of the recipe, or set "
            "data.decontaminate.action=report to train on it all the same."
        )


def _check_context(recipe: Recipe) -> None:
    length = context_length(recipe.model)
    if length is not None and recipe.data.max_length > length:
        where = (
            "model.scratch.max_position_embeddings" if recipe.model.scratch else f"the context of {recipe.model.path}"
        )
        raise ValueError(
            f"data.max_length={recipe.data.max_length} is longer than {where}, {length} tokens. "
            f"Set data.max_length to at most {length}."
        )


def _versions() -> dict[str, str]:
    packages = ("dftune", "datasets", "pyarrow", "tokenizers", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def prepared(recipe: Recipe, *, progress: Progress | None = None) -> PreparedDataset:
    """The prepared dataset of a recipe, made first where its folder is not there yet. The source is not read again.

    Raises:
        ValueError: the folder was prepared with other settings.
    """
    if not recipe.data.prepared.exists():
        prepare(recipe, progress=progress)
    dataset = PreparedDataset.load(recipe.data.prepared)
    dataset.check_matches(recipe)
    if unchecked := unchecked_benchmarks(dataset.manifest, recipe):
        print(
            f"Note: the training rows in {recipe.data.prepared} were not checked against {', '.join(unchecked)}. "
            "`dftune prepare RECIPE --force` does it.",
            file=sys.stderr,
        )
    return dataset


def unchecked_benchmarks(manifest: Manifest, recipe: Recipe) -> list[str]:
    """Benchmarks of the recipe that the prepared rows were not checked against."""
    return [
        benchmark.path
        for benchmark in _benchmarks(recipe)
        if benchmark.fingerprint
        not in {found["fingerprint"] for found in manifest["contamination"]["benchmarks"].values()}
    ]
