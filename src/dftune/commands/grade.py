"""Grade saved completions again, without a model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]
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
described in docs/grading.md. Files are read row by row, so that their size does not matter; what is written
appears at the end, all or nothing.

With --compare-graders nothing is graded again: the other graders in daily use judge the same completions (or the
pairs of a file with `gold` and `prediction`), and the rows where they differ from ours are listed."""
    parser.epilog = """\
examples:
  dftune grade runs/base/evals/step-0/math500.greedy.jsonl
  dftune grade completions.jsonl --strict --show 20     boxed answers only; where the stored verdict differs
  dftune grade runs/*/evals/step-*/*.jsonl --in-place   after an update of the grader
  dftune grade completions.jsonl --compare-graders --limit 500 --output differences.jsonl"""
    parser.add_argument("completions", nargs="+", type=Path, metavar="COMPLETIONS", help="JSONL files of completions")
    parser.add_argument("--strict", action="store_true", help="accept an answer in a box or an answer tag only")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output",
        "--out",
        type=Path,
        metavar="FILE",
        help="where the verdicts go (for one file of completions), or the rows on which graders differ",
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="replace the verdicts inside each file, all or nothing, and write no other",
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N rows whose stored verdict differs")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes for large files (default: one a processor core)"
    )
    parser.add_argument(
        "--compare-graders",
        action="store_true",
        help="judge with Math-Verify (where it is installed), the r1-zero rule and Qwen's rule as well",
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="compare graders on the first N rows only")


def run(args: argparse.Namespace) -> int:
    """Grade every file, write the verdicts, print the summary."""
    from dftune.evaluate.regrade import count_rows  # noqa: PLC0415  (not needed for --help)

    if args.compare_graders:
        return _compare(args)
    if args.limit:
        raise ValueError("--limit goes with --compare-graders; without it every row is graded.")
    if args.output is not None and len(args.completions) > 1:
        raise ValueError(
            f"--output names one file, but there are {len(args.completions)} files of completions. "
            "Leave --output out: each gets its own FILE.verdicts.jsonl."
        )
    own = [path for path in args.completions if path.name.endswith(_OUTPUT_SUFFIX)]
    paths = [path for path in args.completions if path not in own] or args.completions
    if own and paths is not args.completions:
        print(f"not graded, since they hold verdicts and no completions: {', '.join(map(str, own))}\n")
    scored = [path for path in paths if _scored_elsewhere(path)]
    if scored:
        print(f"not graded, since another program scored them: {', '.join(map(str, scored))}\n")
    workers = args.workers or os.cpu_count() or 1
    for path, count in [(path, count_rows(path)) for path in paths if path not in scored]:
        _grade_file(path, count, args, workers)
    return 0


def _scored_elsewhere(path: Path) -> bool:
    """Whether the scores came from lm_eval or alpaca_eval (docs/general-tasks.md); our rules do not apply to those."""
    from dftune.files import read_json  # noqa: PLC0415

    settings = path.with_suffix(".json")
    if not settings.is_file():
        return False
    stored = read_json(settings)
    return isinstance(stored, dict) and (
        stored.get("protocol") == "lm_eval" or stored.get("benchmark") == "alpaca_eval"
    )


def _grade_file(path: Path, count: int, args: argparse.Namespace, workers: int) -> None:
    from dftune.evaluate.grade import GRADER_VERSION  # noqa: PLC0415
    from dftune.evaluate.regrade import Tally, graded_rows, target_of  # noqa: PLC0415
    from dftune.files import read_json, write_json, write_jsonl  # noqa: PLC0415

    version = GRADER_VERSION + ("-strict" if args.strict else "")
    tally = Tally(args.show)

    def lines() -> Iterator[Row]:
        for row, verdict in graded_rows(path, count, strict=args.strict, workers=workers):
            tally.add(row, verdict)
            kept: Row = row if args.in_place else {name: row[name] for name in ("id", "sample") if name in row}
            stamp: Row = {} if args.in_place else {"grader": version}
            yield {**kept, "target": target_of(row), **verdict, **stamp}

    output = path if args.in_place else args.output or path.with_suffix(_OUTPUT_SUFFIX)
    write_jsonl(output, lines())
    settings = path.with_suffix(".json")
    if args.in_place and settings.is_file() and "grader" in (stored := read_json(settings)):
        write_json(settings, {**stored, "grader": version})
    print(tally.summary(path))
    if args.show:
        print(tally.disagreements())
    if not args.in_place:
        print(f"verdicts: {output}")


def _compare(args: argparse.Namespace) -> int:
    from dftune.evaluate.agreement import compare_graders, read_pairs  # noqa: PLC0415
    from dftune.files import write_jsonl  # noqa: PLC0415

    if args.in_place:
        raise ValueError("--compare-graders changes no file; leave --in-place out.")
    pairs = list(islice((pair for path in args.completions for pair in read_pairs(path)), args.limit or None))
    report = compare_graders(pairs, show=args.show or 10)
    print(report.text())
    if args.output is not None:
        write_jsonl(args.output, report.differing)
        print(f"rows on which the graders differ: {args.output}")
    return 0
