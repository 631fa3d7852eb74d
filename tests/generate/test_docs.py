import re
from pathlib import Path

from dftune.generate.config import ServerConfig

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")


def test_the_page_lists_every_key_with_its_default():
    listed = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    shown = {None: "null", False: "false", (): "none"}
    defaults = {name: field.default for name, field in ServerConfig.model_fields.items()}
    assert listed == {name: shown.get(value) or f"{value:g}" for name, value in defaults.items()}
