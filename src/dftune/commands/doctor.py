"""``dftune doctor``."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dftune.doctor import Check

_EPILOG = """\
Shows Python, dftune, every required package with its version against the range dftune needs, torch's build and
devices, cores, memory and disk, and which optional parts are installed, each with the command that adds it.
Exits with 1 when something required is missing or out of range, else with 0. Paste its output into a bug report.

examples:
  dftune doctor
  dftune doctor --json
"""

_MARKS = {"ok": "ok", "note": "-", "missing": "MISSING", "wrong": "WRONG"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Look at the installation and the machine."""
    from dftune.doctor import diagnose, is_healthy  # noqa: PLC0415

    checks = diagnose()
    healthy = is_healthy(checks)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(table(checks))
        print("\nEverything required is there." if healthy else "\nSomething required is missing or out of range.")
    return 0 if healthy else 1


def table(checks: list[Check]) -> str:
    """The checks under their headings, aligned."""
    wide = max(len(check.name) for check in checks)
    lines: list[str] = []
    for section, group in itertools.groupby(checks, lambda check: check.section):
        lines += ["", section]
        for check in group:
            lines.append(f"  {_MARKS[check.status]:<7}  {check.name:<{wide}}  {check.found}")
            if check.advice:
                lines.append(f"  {'':<7}  {'':<{wide}}  -> {check.advice}")
    return "\n".join(lines[1:])
