from pathlib import Path
from typing import get_args

from dftune.data import examples, negatives, truncation
from dftune.data.own_format import FormatConfig
from dftune.data.prompts import FORMATS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "data.md").read_text(encoding="utf-8")
FORMATS_PAGE = (DOCS / "prompt-formats.md").read_text(encoding="utf-8")


def test_the_page_shows_every_prompt_format_letter_for_letter():
    rows = {}
    for line in FORMATS_PAGE.splitlines():
        cells = [cell.strip().strip("`") for cell in line.replace("\\|", "\ue000").strip("|").split("|")]
        if len(cells) == 4:
            rows[cells[0]] = [cell.replace("\ue000", "|").replace("⏎", "\n") for cell in cells[1:]]
    for name, prompt_format in FORMATS.items():
        prefix = {"": "", " ": "a space"}[prompt_format.completion_prefix]
        assert rows[name] == [prompt_format.template, prefix, prompt_format.end_of_turn or ""]


def test_the_page_names_the_stop_strings_and_every_key_of_a_format():
    stops = [stop for prompt_format in FORMATS.values() for stop in prompt_format.stop]
    assert len(stops) == 3
    for stop in stops:
        assert f"`{stop}`".replace("\n", "⏎") in FORMATS_PAGE
    for key in FormatConfig.model_fields:
        assert f"`{key}`" in FORMATS_PAGE


def test_the_page_explains_every_way_of_cutting_a_row():
    section = PAGE.partition("## Too long")[2].partition("\n## ")[0].replace("\n", " ")
    named = {value for name, value in vars(truncation).items() if name.startswith("CUT_")}
    assert len(named) == 4
    for what in (*named, *get_args(truncation.Truncation)):
        assert f"`{what}`" in section


def test_the_page_explains_every_reason_for_which_a_row_is_dropped():
    reasons = {value for name, value in vars(examples).items() if name.isupper() and isinstance(value, str)}
    assert len(reasons) == 13
    for reason in reasons:
        assert f"`{reason}`" in PAGE


def test_the_page_explains_every_reason_for_which_a_negative_is_dropped():
    reasons = {value for name, value in vars(negatives).items() if name.isupper() and isinstance(value, str)}
    assert len(reasons) == 9
    section = PAGE.partition("## Negatives")[2].partition("\n## ")[0]
    for reason in reasons:
        assert f"`{reason}`" in section
