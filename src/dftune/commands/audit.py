"""Check published result tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dftune audit``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Check published result tables: what can be recomputed is recomputed, and what cannot be so is listed.

Reads Markdown (pipe tables in any text file), CSV and TSV, and checks
  averages      columns and rows of averages
  gains         columns and rows of differences, and "+1.2" beside a score
  granularity   a score on n questions with s samples each is a multiple of 1 / (n s), as printed
  claims        sentences such as "X achieves +15.66, 5.9x larger than Y's +2.09" against the cells
  bold          bold cells that another row of their group exceeds
  repeats       one model and method with different scores in two tables
  noise         best and second best that cannot be told apart with so many questions

docs/audit.md says how each is done, which sentences are read, and how claims are written down in a file.
Exit status: 0 where no error was found, 1 where one was; with --strict warnings count too."""
    parser.epilog = """\
examples:
  dftune audit README.md
  dftune audit results.csv --samples 16 --questions HMMT=30
  dftune audit paper.md --claims claims.yaml --json audit.json"""
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="Markdown or other text, .csv, .tsv")
    parser.add_argument(
        "--samples",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="samples a question (default: what the text says, such as avg@16, else 1, 4, 8, 16, 32 and 64 are tried)",
    )
    parser.add_argument(
        "--questions",
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="numbers of questions of benchmarks that dftune does not know (`dftune evaluate --list`)",
    )
    parser.add_argument("--claims", type=Path, metavar="FILE", help="YAML file of further claims")
    parser.add_argument("--no-text", action="store_true", help="leave sentences alone")
    parser.add_argument("--no-noise", action="store_true", help="do not list differences within the noise")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON; - prints them in place of the list")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where that is an error."""
    from dftune.audit import Options, audit, read  # noqa: PLC0415
    from dftune.audit.findings import as_json, listing  # noqa: PLC0415
    from dftune.files import write_json  # noqa: PLC0415

    options = Options(
        samples=_samples(args.samples),
        questions=_questions(args.questions),
        claims=args.claims,
        text=not args.no_text,
        noise=not args.no_noise,
    )
    found = [finding for path in args.tables for finding in audit(read(path), options)]
    if args.json == "-":
        json.dump(as_json(found), sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print(listing(found))
        if args.json:
            write_json(Path(args.json), as_json(found))
    bad = ("error", "warning") if args.strict else ("error",)
    return int(any(finding.severity in bad for finding in found))


def _samples(given: list[int]) -> tuple[int, ...]:
    if any(not 1 <= samples <= 1024 for samples in given):
        raise ValueError(f"--samples {' '.join(map(str, given))}: expected numbers from 1 to 1024.")
    return tuple(given)


def _questions(given: list[str]) -> dict[str, int]:
    found = {}
    for entry in given:
        name, equals, size = entry.rpartition("=")
        if not equals or not name or not size.isdecimal() or not 1 <= int(size) <= 1_000_000:
            raise ValueError(f"--questions {entry!r}: expected NAME=N, such as HMMT=30.")
        found[name] = int(size)
    return found
