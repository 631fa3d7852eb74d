"""Every command of docs/generated-data.md runs, in the order of the page, on a part of the data."""

import re
import shlex
from pathlib import Path

import pytest

from dftune.cli import main
from dftune.config import key_names
from dftune.generate.recipe import NegativesConfig
from dftune.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "generated-data.md").read_text(encoding="utf-8")
FEW = ["generate.problems.limit=24", "generate.batch_size=32"]
SHORT = ["train.steps=2", "train.epochs=null", "train.batch_size=4", "train.threads=1", "data.validation=2"]
SHORT += ["evaluate.benchmarks=[recipes/examples/data/arithmetic-test.jsonl:3]", "evaluate.max_tokens=40"]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if "generate.server=" not in line]


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(tmp_path, monkeypatch, capfd):
    for name in ("recipes", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert {words[0] for words in found} == {"generate", "grade", "train"}
    for words in found:
        small = {"generate": FEW + SHORT, "train": SHORT, "grade": []}[words[0]]
        assert main([*words, *small]) == 0, (words, capfd.readouterr().err)
    names = ["negatives", "negatives-ref-free", "offline"]
    names += [f"offline-{name}" for name in ("dynamic-ft", "iw-sft", "dpo", "iw-sft-q")]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        name if name.startswith("offline-") else f"arithmetic-{name}" for name in names
    }


def test_the_page_names_the_keys_of_the_section_and_their_defaults():
    known = set(key_names(Recipe))
    named = set(re.findall(r"generate\.[a-z_.]*[a-z]", PAGE)) - {"generate.server"}
    assert {name for name in named if name not in known} == set()
    (sampling,) = re.findall(r"^\| temperature, top_p, top_k, max_tokens \| (.*?) \|", PAGE, re.MULTILINE)
    config = NegativesConfig()
    values = (config.temperature, config.top_p, config.top_k, config.max_tokens)
    assert sampling == ", ".join(map(str, values))
