"""The scripts of docs/integrations.md, run as they stand."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.integrations.tiny import load_model

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
REQUIRES = [(), ("accelerate",), ("trl", "peft")]


def test_there_are_three_scripts():
    assert len(SCRIPTS) == len(REQUIRES)


@pytest.mark.parametrize(
    ("script", "requires"), list(zip(SCRIPTS, REQUIRES, strict=True)), ids=["loop", "transformers", "trl"]
)
def test_a_script_runs_as_it_stands_and_trains(script, requires, folder, tmp_path, monkeypatch):
    for module in requires:
        pytest.importorskip(module)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names: dict = {"__name__": "script"}
    exec(compile(script, "integrations.md", "exec"), names)
    model = names["model"] if "model" in names else names["trainer"].model
    before, after = (
        torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (load_model(folder), model.cpu())
    )
    assert torch.isfinite(after).all()
    assert 0 < (after - before).abs().max() < 0.1
