"""Grade saved completions again, without a model."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_TARGETS = ("target", "answer", "gold")
_ROWS_SHOWN = 12
_OUTPUT_SUFFIX = ".verdicts.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dftune grade``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Grade saved completions again, without a model and without torch: extract each answer, compare it with the
reference, print the accuracy with a 95 % interval. Nothing a model wrote is ever executed.

Each file is JSONL, one completion a line, with
  completion          what the model wrote
  target              the reference answer, or a list of alternatives (`gold`, or `answer` where no verdict is stored
                      beside it, will do)
  id                  optional: completions of one problem count as one question in the interval
as `dftune evaluate` writes it. Verdicts go to FILE.verdicts.jsonl; how answers are found and compared is
described in docs/grading.md."""
    parser.epilog = """\
examples:
  dftune grade runs/base/evals/step-0/math500.greedy.jsonl
  dftune grade completions.jsonl --strict --show 20     boxed answers only; where the stored verdict differs
  dftune grade runs/*/evals/step-*/*.jsonl --in-place   after an update of the grader"""
    parser.add_argument("completions", nargs="+", type=Path, metavar="COMPLETIONS", help="JSONL files of completions")
    parser.add_argument("--strict", action="store_true", help="accept an answer in a box or an answer tag only")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output", type=Path, metavar="FILE", help="where the verdicts go (for one file of completions)"
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="replace the verdicts inside each file, all or nothing, and write no other",
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N rows whose stored verdict differs")


def run(args: argparse.Namespace) -> int:
    """Grade every file, write the verdicts, print the summary."""
    from dftune.evaluate.grade import GRADER_VERSION, grade  # noqa: PLC0415  (not needed for --help)
    from dftune.files import read_json, write_json, write_jsonl  # noqa: PLC0415

    if args.output is not None and len(args.completions) > 1:
        raise ValueError(
            f"--output names one file, but there are {len(args.completions)} files of completions. "
            "Leave --output out: each gets its own FILE.verdicts.jsonl."
        )
    own = [path for path in args.completions if path.name.endswith(_OUTPUT_SUFFIX)]
    paths = [path for path in args.completions if path not in own] or args.completions
    if own and paths is not args.completions:
        print(f"not graded, since they hold verdicts and no completions: {', '.join(map(str, own))}\n")
    read = [(path, _read(path)) for path in paths]
    version = GRADER_VERSION + ("-strict" if args.strict else "")
    for path, rows in read:
        verdicts = [
            _verdict(grade(_target(row), row["completion"], strict=args.strict, tolerance=row.get("tolerance")))
            for row in rows
        ]
        print(_summary(path, rows, verdicts))
        if args.show:
            print(_disagreements(rows, verdicts, args.show))
        if args.in_place:
            write_jsonl(
                path, ({**row, "target": _target(row), **verdict} for row, verdict in zip(rows, verdicts, strict=True))
            )
            settings = path.with_suffix(".json")
            if settings.is_file() and "grader" in (stored := read_json(settings)):
                write_json(settings, {**stored, "grader": version})
        else:
            output = args.output or path.with_suffix(_OUTPUT_SUFFIX)
            write_jsonl(output, (_line(row, verdict, version) for row, verdict in zip(rows, verdicts, strict=True)))
            print(f"verdicts: {output}")
    return 0


def _read(path: Path) -> list[Row]:
    """The rows of a file, each with a completion and a reference.

    Raises:
        ValueError: the file is missing or empty, a line is no JSON object, or a row lacks a column.
    """
    from dftune.files import read_jsonl  # noqa: PLC0415

    if not path.is_file():
        raise ValueError(f"{path} is not there. Pass a JSONL file of completions, such as dftune evaluate writes.")
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path} is empty; expected one completion a line.")
    for index, row in enumerate(rows):
        problem = _problem(row)
        if problem:
            raise ValueError(
                f"{path}, line {_line_number(path, index)}: {problem}. Expected `completion` (text) and `target` "
                f"(text, or a list of texts); this row has {', '.join(sorted(row)) or 'no columns'}."
            )
    return rows


def _problem(row: Row) -> str:
    if not isinstance(row.get("completion"), str):
        return "`completion` is " + ("missing" if "completion" not in row else "not text")
    name = _target_column(row)
    if name is None:
        return "`target` is missing"
    value = row[name]
    listed = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return "" if isinstance(value, str) or listed else f"`{name}` is neither text nor a list of texts"


def _line_number(path: Path, index: int) -> int:
    filled = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    return filled[index]


def _target_column(row: Row) -> str | None:
    """Beside a verdict, ``answer`` is what was extracted, not the reference."""
    return next((name for name in _TARGETS if name in row and not (name == "answer" and "verdict" in row)), None)


def _target(row: Row) -> str | list[str]:
    target: str | list[str] = row[_target_column(row) or "target"]
    return target


def _verdict(verdict: Any) -> Row:
    return {name: getattr(verdict, name) for name in ("answer", "verdict", "rule", "stage", "reason")}


def _line(row: Row, verdict: Row, version: str) -> Row:
    kept: Row = {name: row[name] for name in ("id", "sample") if name in row}
    return {**kept, "target": _target(row), **verdict, "grader": version}


def _summary(path: Path, rows: Sequence[Row], verdicts: Sequence[Row]) -> str:
    """Accuracy with its interval, then how answers were found and why verdicts fell."""
    from dftune.evaluate.metrics import accuracy_estimate  # noqa: PLC0415

    graded: dict[Any, list[float]] = defaultdict(list)
    for index, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if verdict["verdict"] != "ungraded":
            graded[str(row.get("id", f"\0{index}"))].append(float(verdict["verdict"] == "correct"))
    num_graded = sum(map(len, graded.values()))
    ungraded = f"{len(rows) - num_graded} ungraded"
    count = (
        f"n = {num_graded}" if num_graded == len(graded) else f"n = {len(graded)} problems, {num_graded} completions"
    )
    lines = [str(path)]
    if graded:
        estimate = accuracy_estimate([[sum(x) / len(x)] for x in graded.values()], num_completions=num_graded)
        interval = f"95 % interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        lines.append(f"accuracy {100 * estimate.mean:.1f} %  ({interval}, {count}, {ungraded})")
    else:
        lines.append(f"no accuracy: {ungraded}")
    lines += ["", *_table("extraction rule", (str(verdict["rule"] or "none") for verdict in verdicts), verdicts)]
    lines += ["", *_table("reason", (str(verdict["reason"]) for verdict in verdicts), verdicts), ""]
    return "\n".join(lines)


def _table(title: str, keys: Iterable[str], verdicts: Sequence[Row]) -> list[str]:
    totals: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for key, verdict in zip(keys, verdicts, strict=True):
        totals[key] += 1
        correct[key] += verdict["verdict"] == "correct"
    shown = totals.most_common(_ROWS_SHOWN)
    rest = len(verdicts) - sum(count for _, count in shown)
    width = min(60, max(len(title), *(len(key) for key, _ in shown)))
    lines = [f"  {title:<{width}}  {'count':>7}  {'correct':>7}"]
    lines += [f"  {key[:width]:<{width}}  {count:>7}  {correct[key]:>7}" for key, count in shown]
    return [*lines, f"  {'(others)':<{width}}  {rest:>7}"] if rest else lines


def _disagreements(rows: Sequence[Row], verdicts: Sequence[Row], limit: int) -> str:
    """Rows whose stored verdict is another one."""
    differing = [
        (index, row, verdict)
        for index, (row, verdict) in enumerate(zip(rows, verdicts, strict=True), 1)
        if "verdict" in row and row["verdict"] != verdict["verdict"]
    ]
    if not any("verdict" in row for row in rows):
        return "no verdicts are stored in this file, so there is nothing to disagree with"
    lines = [f"{len(differing)} verdicts differ from the stored ones" + (f"; the first {limit}:" if differing else "")]
    for index, row, verdict in differing[:limit]:
        lines += [
            f"  {row.get('id', f'row {index}')}: {row['verdict']} -> {verdict['verdict']} ({verdict['reason']})",
            f"    target {_short(_target(row))}",
            f"    answer {_short(verdict['answer'])}  [{verdict['rule'] or 'none'}]",
        ]
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
