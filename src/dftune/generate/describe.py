"""What was generated, in words and numbers for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BAR = 40


def format_counts(counts: Mapping[str, Any]) -> str:
    """Counts as an aligned text; those within another are set in."""
    lines = list(_lines(counts, ""))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {value:>9}".rstrip() for name, value in lines)


def _lines(counts: Mapping[str, Any], indent: str) -> list[tuple[str, str]]:
    lines = []
    for name, value in counts.items():
        shown = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += [(shown, ""), *_lines(value, indent + "  ")] if value else []
        else:
            lines.append((shown, f"{value:,}"))
    return lines


def format_difficulty(found: Mapping[str, Any]) -> str:
    """The mean pass rate, and a bar for every number of correct samples."""
    num_samples, histogram = found["num_samples"], found["histogram"]
    rate = "none" if found["pass_rate"] is None else f"{100 * found['pass_rate']:.1f} %"
    head = f"pass rate {rate} over {found['num_problems']:,} problems, {num_samples} samples each"
    if found["partly_graded"]:
        head += f"; {found['partly_graded']:,} problems with ungraded completions are not in the bars"
    longest = max(histogram) or 1
    width = len(f"{num_samples} of {num_samples}")
    bars = [
        f"  {f'{correct} of {num_samples}':>{width}}  {count:>7,}  {'#' * round(_BAR * count / longest)}".rstrip()
        for correct, count in enumerate(histogram)
    ]
    return "\n".join([head, *bars])
