"""The two result files of a benchmark: how the completions were made, and one line a completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from dftune.evaluate.benchmarks import Benchmark, Problem
from dftune.evaluate.protocols import stored_protocols
from dftune.files import append_jsonl, ends_whole, fingerprint, locked, read_json, read_jsonl, write_json, write_jsonl

Row = dict[str, Any]

# Where things lay, what is read off the completions, and how many there are, make no other completions.
_FREE = {
    *("model", "benchmark_path", "trained_prompt_format", "grader", "seconds", "prompt_format.name"),
    *("benchmark_fingerprint", "num_problems", "num_samples", "protocols", "by", "gold_problems"),
}
_FREE_SECTIONS = ("server.",)
_SHOWN = 5


def content_key(model_fingerprint: str, prompt: str, sampling: Mapping[str, Any], sample: int) -> str:
    """What a completion follows from: model, prompt, sampling parameters, and which sample it is. 16 hex digits."""
    return fingerprint(model_fingerprint, fingerprint(prompt), sampling, sample)


class Results:
    """``BENCHMARK.SAMPLING.json`` and ``.jsonl``. Rows are appended, so a kill loses at most the last line.

    Attributes:
        path: the completions.
        settings: how they were made, and for how many problems and samples.
        rows: by problem id and sample.
        was_cut: a kill had left half a line, whose completion is missing.
    """

    beside: ClassVar[str] = " Samples of another temperature can stand beside it under another --label."
    """What else can be done where the settings differ."""

    def __init__(self, folder: Path, benchmark: str, sampling: str) -> None:
        self.path = folder / f"{benchmark}.{sampling}.jsonl"
        self.settings_path = folder / f"{benchmark}.{sampling}.json"
        self.settings: dict[str, Any] = {}
        self.rows: dict[tuple[str, int], Row] = {}
        self.was_cut = False
        self._stale = False  # what is on disk is not what is in ``rows``

    def locked(self) -> AbstractContextManager[None]:
        """Hold the files against a second writer, from before they are read.

        Raises:
            BusyError: another process holds them; names its host and process id.
        """
        return locked(self.path.with_name(f".{self.path.stem}.lock"), str(self.path))

    def open(
        self,
        settings: Mapping[str, Any],
        benchmark: Benchmark,
        render: Callable[[Problem], str],
        regrade: Callable[[Row], Row],
        *,
        overwrite: bool = False,
    ) -> None:
        """Take up what is there, whatever its number of problems and samples. Nothing is written before `begin`.

        A file only grows: asked for fewer problems or samples than it holds, it stays as it is. Completions are graded
        again where the grader has another version or the benchmark another answer; that needs no model.

        Args:
            settings: how completions are made, as docs/run-folder.md lists it.
            benchmark: the problems asked for, and the source that they are the beginning of.
            render: turns a problem into the prompt.
            regrade: gives a row its verdict.
            overwrite: pay no heed to what is there.

        Raises:
            ValueError: the files there were made with other settings, for other problems or prompts, or would become
                uneven; the message says what differs.
        """
        there = self.path.is_file() and not overwrite  # settings alone have made no completion yet
        before = read_json(self.settings_path) if there and self.settings_path.is_file() else None
        self._stale = overwrite
        if there and before is None:
            raise ValueError(
                f"{self.path} is there without {self.settings_path.name}, so how it was made is not known. "
                "Move it away, or replace it with --overwrite."
            )
        if before is not None:
            check_same(self.path, before, {**_of(benchmark), **settings}, self.beside)
        self.settings = self._grown(before, settings, benchmark)
        if before is not None:
            self.was_cut = not ends_whole(self.path)
            rows = read_jsonl(self.path, partial_last_line=True)
            self._take_up(rows, benchmark, render, regrade, stale=before["grader"] != settings["grader"])
        self.settings["seconds"] = before["seconds"] if before else 0.0

    def begin(self) -> None:
        """Write what `open` decided, completions first where they are thrown away: they must not be left alone."""
        if self._stale and not self.rows:
            self.path.unlink(missing_ok=True)
        elif self._stale:
            write_jsonl(self.path, self.rows.values())
        self._stale = False
        self._save_settings()

    def _grown(
        self, before: Mapping[str, Any] | None, settings: Mapping[str, Any], benchmark: Benchmark
    ) -> dict[str, Any]:
        """The settings of the file that is to be: the larger of what is there and what is asked for."""
        asked, num_samples = len(benchmark.rows), settings["num_samples"]
        if before is None:
            return {**_of(benchmark), **settings}
        there = (before["num_problems"], before["num_samples"])
        if (asked - there[0]) * (num_samples - there[1]) < 0:
            raise ValueError(
                f"{self.path} is meant for {there[0]} problems with {there[1]} samples each; {num_samples} for {asked} "
                "problems would make it uneven. Ask for at least as many of both, or choose another --output."
            )
        grown = {**_of(benchmark.first(max(asked, there[0]))), **settings}
        if asked < there[0]:  # what is said of all problems stays
            kept = {"benchmark_path": before["benchmark_path"], "gold_problems": before.get("gold_problems", [])}
            grown |= {key: value for key, value in kept.items() if key in grown}
        return grown | {
            "num_samples": max(num_samples, there[1]),
            "protocols": list(dict.fromkeys([*(one.name for one in stored_protocols(before)), *settings["protocols"]])),
            "by": list(dict.fromkeys([*before.get("by", ()), *settings.get("by", ())])),
        }

    def _take_up(
        self,
        rows: Sequence[Row],
        benchmark: Benchmark,
        render: Callable[[Problem], str],
        regrade: Callable[[Row], Row],
        *,
        stale: bool,
    ) -> None:
        """Keep the rows whose key is that of a completion we would make, grading again what needs it."""
        problems = {problem.id: problem for problem in benchmark.source}
        prompts = {problem.id: render(problem) for problem in benchmark.source}
        self._check_rows(rows, problems, prompts)
        current = []
        for row in rows:
            problem = problems[row["id"]]
            changed = (row["target"], row.get("tolerance")) != (problem.target, problem.tolerance)
            current.append(regrade({**row, **reference(problem)}) if stale or changed else row)
        self._stale = current != list(rows)
        self._remember(current)

    def _check_rows(self, rows: Sequence[Row], problems: Mapping[str, Problem], prompts: Mapping[str, str]) -> None:
        unknown = list(dict.fromkeys(str(row["id"]) for row in rows if row["id"] not in problems))
        if unknown:
            raise ValueError(
                f"{self.path} holds completions of {len(unknown)} problems that this benchmark does not have "
                f"({', '.join(unknown[:_SHOWN])}{', ...' if len(unknown) > _SHOWN else ''}). It was made for another "
                "benchmark of the same name: choose another --output, or --overwrite."
            )
        other = [row for row in rows if not self._same_key(row, prompts[row["id"]])]
        if other:
            raise ValueError(
                f"{self.path} holds {len(other)} completions of another prompt, the first being that of "
                f"{other[0]['id']!r}: the benchmark's text has changed. Choose another --output, or --overwrite."
            )

    def _same_key(self, row: Row, prompt: str) -> bool:
        if "key" not in row:  # files from before there were keys
            return bool(row["prompt"] == prompt)
        return bool(row["key"] == self.key(prompt, row["sample"]))

    def key(self, prompt: str, sample: int) -> str:
        """The content key of a completion in this file."""
        return content_key(str(self.settings["model_fingerprint"]), prompt, self.settings["sampling"], sample)

    def append(self, rows: Sequence[Row]) -> None:
        """Add completions."""
        append_jsonl(self.path, rows)
        self._remember(rows)

    def replace(self, rows: Sequence[Row]) -> None:
        """Put other versions of completions in the place of those that are there; `begin` writes them."""
        self._remember(rows)
        self._stale = True

    def _remember(self, rows: Iterable[Row]) -> None:
        self.rows.update({(row["id"], row["sample"]): row for row in rows})

    def add_seconds(self, seconds: float) -> None:
        """Count time of generation."""
        self.settings["seconds"] = round(self.settings["seconds"] + seconds, 3)
        self._save_settings()

    def _save_settings(self) -> None:
        write_json(self.settings_path, self.settings)

    def finish(self, ids: Sequence[str]) -> None:
        """Put the completions in the order of the benchmark; they were saved in the order in which they ended."""
        place = {name: index for index, name in enumerate(ids)}
        ordered = sorted(self.rows.values(), key=lambda row: (place[row["id"]], row["sample"]))
        if ordered != list(self.rows.values()) or not self.path.is_file():
            write_jsonl(self.path, ordered)
            self.rows = {(row["id"], row["sample"]): row for row in ordered}


def check_same(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any], beside: str = "") -> None:
    """Compare the settings that results were made with to those asked for.

    Raises:
        ValueError: they would give other completions; each that differs is named.
    """
    then, now = _flatten(before), _flatten(settings)
    changed = [key for key in {**then, **now} if not _is_free(key) and then.get(key) != now.get(key)]
    if changed:
        listed = "\n".join(f"  {key}: {then.get(key)!r} there, {now.get(key)!r} asked for" for key in changed)
        raise ValueError(
            f"{path} holds completions made with other settings:\n{listed}\n"
            f"Use the same ones to continue it, --overwrite to replace it, or another --output.{beside}"
        )


def reference(problem: Problem) -> Row:
    """What a row holds of its problem for the grader."""
    return {"target": problem.target, **({} if problem.tolerance is None else {"tolerance": problem.tolerance})}


def _of(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "benchmark_path": benchmark.path,
        "benchmark_fingerprint": benchmark.fingerprint,
        "num_problems": len(benchmark.rows),
    }


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_SECTIONS)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
