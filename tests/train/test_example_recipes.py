"""The example recipes with negatives run as they stand, from a copy of the repository's root, for a few steps."""

import filecmp
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.train.runs import rows_of

from dftune.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "recipes" / "examples"
OBJECTIVES = {
    "arithmetic-discriminative-ft": ("discriminative_ft", False),
    "arithmetic-discriminative-ft-ref-free": ("discriminative_ft", True),
    "arithmetic-dpo": ("dpo", None),
}
PAGES = {"discriminative_ft": "discriminative_ft.md", "dpo": "dpo.md"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where the recipes find what they name, and their runs do no harm; prepared data are shared."""
    path = tmp_path_factory.mktemp("root")
    for name in ("recipes", "src"):
        (path / name).symlink_to(ROOT / name)
    return path


def test_the_data_are_what_the_script_writes(tmp_path):
    script = ROOT / "scripts" / "make_example_data.py"
    spec = importlib.util.spec_from_file_location("make_example_data", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["arithmetic-negatives.jsonl", "arithmetic-test.jsonl"]
    assert filecmp.cmpfiles(tmp_path, EXAMPLES / "data", names, shallow=False)[0] == names


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_prepares_trains_and_evaluates(root, name):
    small = ["train.steps=3", "train.epochs=null", "train.batch_size=8", "train.threads=1", "data.validation=8"]
    small += ["evaluate.benchmarks=[recipes/examples/data/arithmetic-test.jsonl:3]", "evaluate.max_tokens=40"]
    command = [sys.executable, "-m", "dftune", "train", f"recipes/examples/{name}.yaml", *small]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = root / "runs" / name
    manifest = read_json(folder / "manifest.json")
    objective, ref_free = OBJECTIVES[name]
    assert manifest["objective"]["name"] == objective
    assert manifest["objective"]["options"].get("ref_free") == ref_free
    assert (manifest["reference"] is None) == bool(ref_free)
    assert manifest["data"]["negatives"]["per_row"] == {"min": 2, "max": 2}
    rows = rows_of(folder, "train")
    assert sorted(rows) == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows.values())
    (completions,) = (folder / "evals" / "step-3").glob("*.jsonl")
    assert len(read_jsonl(completions)) == 3


def test_every_example_with_negatives_is_tried_and_described():
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in EXAMPLES.glob("*.yaml")}
    with_negatives = {name for name, recipe in recipes.items() if "negatives" in recipe["data"].get("columns", {})}
    generated = {name for name, recipe in recipes.items() if "generate" in recipe}  # docs/generated-data.md
    assert with_negatives - generated == set(OBJECTIVES)
    for name, (objective, _) in OBJECTIVES.items():
        page = (ROOT / "docs" / "objectives" / PAGES[objective]).read_text(encoding="utf-8")
        assert f"dftune train recipes/examples/{name}.yaml" in page
