from pathlib import Path

from dftune.data import examples, negatives
from dftune.data.prompts import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_shows_every_prompt_format_letter_for_letter():
    rows = {}
    for line in PAGE.splitlines():
        cells = [cell.strip().strip("`") for cell in line.replace("\\|", "\ue000").strip("|").split("|")]
        if len(cells) == 4:
            rows[cells[0]] = [cell.replace("\ue000", "|").replace("⏎", "\n") for cell in cells[1:]]
    for name, prompt_format in FORMATS.items():
        prefix = {"": "", " ": "a space"}[prompt_format.completion_prefix]
        assert rows[name] == [prompt_format.template, prefix, prompt_format.end_of_turn or ""]


def test_the_page_explains_every_reason_for_which_a_row_is_dropped():
    reasons = {value for name, value in vars(examples).items() if name.isupper() and isinstance(value, str)}
    assert len(reasons) == 11
    for reason in reasons:
        assert f"`{reason}`" in PAGE


def test_the_page_explains_every_reason_for_which_a_negative_is_dropped():
    reasons = {value for name, value in vars(negatives).items() if name.isupper() and isinstance(value, str)}
    assert len(reasons) == 8
    section = PAGE.partition("## Negatives")[2].partition("\n## ")[0]
    for reason in reasons:
        assert f"`{reason}`" in section
