"""Benchmarks whose problems some runs were trained on, seen a second time without these problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dftune.report.conditions import column_of
from dftune.report.load import Evaluation, Run, inner


class _Version(NamedTuple):
    """A benchmark by name and fingerprint."""

    benchmark: str
    fingerprint: str


def trained_on(run: Run) -> Mapping[str, frozenset[str]]:
    """Ids of the problems among the training rows, by benchmark; empty where they were removed or not looked for."""
    found = inner(run.manifest, "data", "contamination", "benchmarks")
    if inner(run.manifest, "data", "contamination", "action") != "report" or not isinstance(found, Mapping):
        return {}
    return {str(name): frozenset(map(str, own["matched"])) for name, own in found.items() if own["matched"]}


def with_clean_views(runs: Sequence[Run]) -> list[Run]:
    """The runs, each evaluation on a flagged benchmark followed by itself without the flagged questions.

    A question is flagged for all runs if one run was trained on it, so that conditions are compared on the same ones.
    A benchmark of which nothing would be left has no second view.
    """
    flagged: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, ids in trained_on(run).items():
            flagged[name] |= ids
    asked: dict[_Version, set[str]] = defaultdict(set)
    for run in runs:
        for one in run.evaluations:
            if one.benchmark in flagged:
                asked[_version(one)] |= {str(row["id"]) for row in one.completions}
    without = {version: ids & flagged[version.benchmark] for version, ids in asked.items()}
    without = {version: ids for version, ids in without.items() if ids and ids < asked[version]}
    return [
        replace(run, evaluations=tuple(view for one in run.evaluations for view in _views(one, without)))
        for run in runs
    ]


def _version(evaluation: Evaluation) -> _Version:
    column = column_of(evaluation)
    return _Version(column.benchmark, column.fingerprint)


def _views(evaluation: Evaluation, without: Mapping[_Version, set[str]]) -> list[Evaluation]:
    left_out = without.get(_version(evaluation))
    if not left_out:
        return [evaluation]
    settings = {**evaluation.settings, "num_problems": int(evaluation.settings["num_problems"]) - len(left_out)}
    kept = tuple(row for row in evaluation.completions if str(row["id"]) not in left_out)
    clean = replace(evaluation, settings=settings, completions=kept, without=tuple(sorted(left_out)))
    return [evaluation, clean]
