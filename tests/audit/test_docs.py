"""The page on the audit shows what the command prints of the page's own table."""

from pathlib import Path

from dftune.audit import audit, read
from dftune.audit.findings import listing

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_page_shows_what_the_command_prints():
    shown = PAGE.read_text(encoding="utf-8").partition("```text\n")[2].partition("```\n")[0]
    assert shown == listing(audit(read(PAGE))) + "\n"
