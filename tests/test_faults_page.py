"""The page on faults names tests that are there, at least one for every fault."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_test_that_the_page_names_is_there():
    tests = {
        path: {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        for path, _ in NAMED
    }
    assert len(NAMED) > 30
    assert [f"{path}::{name}" for path, name in NAMED if name not in tests[path]] == []


def test_every_fault_names_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("| fault |", "|---"))]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.split(" | ")[-1]] == []
