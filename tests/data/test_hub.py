"""Models by name: what comes with code of its own is refused, and the code is not run."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from dftune.data.hub import from_pretrained


@pytest.fixture
def with_code(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "of-its-own",
                "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
            }
        )
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'has-run')!r}, 'w')\nclass Own: pass\n")
    return folder


@pytest.mark.parametrize("loader", [AutoConfig, AutoModelForCausalLM])
def test_code_that_comes_with_a_model_is_refused_and_not_run(with_code, loader, monkeypatch):
    def ask(question: str = "") -> str:
        raise AssertionError(f"somebody was asked at the terminal: {question}")

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(ValueError, match=r"code of its own \(auto_map.*dftune runs no code out of a model"):
        from_pretrained(loader, str(with_code), None, "model.path")
    assert not (with_code.parent / "has-run").exists()
