"""Compare runs: one HTML file, and tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``dftune report``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Compare runs: who answers more questions, by how much, and whether that is more than noise.

Reads run folders (recipe, metrics, completions with verdicts) and writes four files:
  report.html  verdict, result table with 95 % intervals, curves, token probabilities, completions side by
               side. One file, opens from disk, needs no network.
  report.md    the verdict and the tables.
  report.csv   one line a condition and benchmark.
  report.tex   the result table for LaTeX.

Runs whose recipes differ in nothing but the seed count as replicates of one condition. The base model is the
evaluation at step 0, or a run of `dftune evaluate` on the model that training started from."""
    parser.epilog = """\
examples:
  dftune report runs                          every run in runs/
  dftune report runs/sft-* runs/dynamic_ft-*  these runs
  dftune report studies/mine                  every cell of a study, into studies/mine/report
  dftune report runs --serve                  follow runs that are still going, page through all completions
  dftune report runs --output reports/monday --title "Does it help at 1.5B?\""""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUNS",
        help="run folders, or folders that hold run folders",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the files go (default: the folder that holds the runs; for a single run, the run itself; for a "
        "study or a sweep, its folder report)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="serve the report at a loopback address, and write it again when a page is loaded and runs have changed",
    )
    parser.add_argument("--port", type=int, default=8008, help="of --serve; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--title", help="heading of the report (default: the names of what is compared)")


def run(args: argparse.Namespace) -> int:
    """Write the report, print its table and where it is."""
    from dftune import report  # noqa: PLC0415  (jinja2 and yaml are not needed for --help)

    output = args.output or _default_output(args.runs)
    if args.serve:
        return _serve(args.runs, output, args.title, args.port)
    found = report.read(args.runs, args.title)
    paths = found.write(output)
    print(found.summary())
    for note in found.notes:
        print(f"note: {note}")
    print(f"\nReport: {paths.html}")
    return 0


def _serve(runs: list[Path], output: Path, title: str | None, port: int) -> int:
    from dftune.report.serve import ReportServer  # noqa: PLC0415

    with ReportServer(runs, output, title, port) as server:
        print(f"Report: {server.address} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _default_output(runs: list[Path]) -> Path:
    from dftune.report.load import is_collection  # noqa: PLC0415

    if len(runs) == 1:
        return runs[0] / "report" if is_collection(runs[0]) else runs[0]
    return runs[0].resolve().parent
