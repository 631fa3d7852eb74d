"""``dftune objectives``."""

from __future__ import annotations

import argparse
import json
from typing import Any

_EPILOG = """\
For each objective: what it computes a token, sequence or group; the unit by which its sum is divided, once per
optimizer step; what it needs beyond log p; its options with their defaults; where it comes from. p is the model's
probability of the target token, q the frozen reference's, sg[] a stop-gradient. docs/objectives/NAME.md has the rest.

A recipe names one under `objective`, with its options beside the name. An objective of your own is a function
decorated with @objective from dftune.objectives, named path/to/file.py:function.

examples:
  dftune objectives
  dftune objectives power iw_sft
  dftune objectives my_losses.py:squared
  dftune objectives --json | jq '.[].name'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("names", nargs="*", metavar="NAME", help="show these alone; a name or path/to/file.py:function")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """List the objectives."""
    from dftune.objectives.registry import OBJECTIVES  # noqa: PLC0415

    rows = [describe(name) for name in args.names or OBJECTIVES]
    print(json.dumps(rows, indent=2) if args.json else table(rows))
    return 0


def describe(name: str) -> dict[str, Any]:
    """What there is to know of an objective with its default options."""
    from dftune.objectives.registry import get_objective, options_model  # noqa: PLC0415

    bound = get_objective(name)
    schema = options_model(bound.function).model_json_schema()["properties"] if bound.options else {}
    return {
        "name": name,
        "formula": bound.entry.formula,
        "unit": bound.unit,
        "needs": sorted(bound.needs),
        "needs_follow_options": callable(bound.entry.needs),
        "separable": bound.separable,
        "stateful": bound.stateful,
        "options": {key: {"default": value, "allowed": _allowed(schema[key])} for key, value in bound.options.items()},
        "paper": bound.entry.paper,
        "summary": next(iter((bound.function.__doc__ or "").strip().splitlines()), ""),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The objectives one below the other: name and formula, then the rest."""
    lines: list[str] = []
    for row in rows:
        needs = ", ".join(row["needs"]) or "nothing beyond log p"
        needs += " with these options" if row["needs_follow_options"] else ""
        state = "; keeps a state by example" if row["stateful"] else ""
        lines += [
            f"{row['name']}   {row['formula']}".rstrip(),
            f"  {row['summary']} {row['paper']}".rstrip(),
            f"  unit: {row['unit']}; adds up over: {row['separable']}; needs: {needs}{state}",
        ]
        wide = max((len(f"{key}: {_yaml(option['default'])}") for key, option in row["options"].items()), default=0)
        for key, option in row["options"].items():
            shown = f"{key}: {_yaml(option['default'])}"
            lines.append(f"    {shown:<{wide}}   {option['allowed']}".rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def _yaml(value: Any) -> str:
    return json.dumps(value).strip('"')


def _allowed(schema: dict[str, Any]) -> str:
    """Values that an option may have, in words, read from its JSON schema."""
    parts = [_allowed(part) for part in schema.get("anyOf", ())]
    if parts:
        return " or ".join(part for part in parts if part)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    names = {"boolean": "true | false", "null": "null", "number": "a number", "integer": "a whole number"}
    return ", ".join(limits) or names.get(schema.get("type", ""), "")
