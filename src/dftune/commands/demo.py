"""``dftune demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
A tiny Qwen2 that the package carries is fine-tuned with sft and with dynamic_ft on the same demonstrations in the same
order, in two regimes and two seeds each, evaluated on held-out problems, and compared in a report:

  noisy         demonstrations in the model's own notation, half of them with one result that is ten too high
  new-notation  right demonstrations in a notation that the model has never met

Whatever comes out is reported as it is.

examples:
  dftune demo
  dftune demo --output /tmp/demo --workers 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write (default runs/demo)")
    parser.add_argument("--workers", type=int, help="runs side by side (default: the cores, at most 4)")
    parser.add_argument("--overwrite", action="store_true", help="start anew instead of taking up what is there")


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    import shutil  # noqa: PLC0415

    from dftune.demo.run import run_demo  # noqa: PLC0415

    if args.overwrite and args.output.exists():
        if not (args.output / "data" / "arithmetic.jsonl").is_file():
            raise ValueError(f"{args.output} is not a folder of the demo; it will not be deleted.")
        shutil.rmtree(args.output)
    run_demo(args.output, workers=args.workers)
    return 0
