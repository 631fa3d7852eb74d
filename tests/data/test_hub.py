"""Models by name: what comes with code of its own is refused, and the code is not run."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dftune.data.hub import from_pretrained
from dftune.data.tokenizer import blank_tokenizer
from tests.tiny import make_model


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


def test_code_beside_a_model_that_transformers_knows_is_not_run(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    blank_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'has-run')!r}, 'w')\nclass Own: pass\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"auto_map": classes}))
    found = from_pretrained(AutoModelForCausalLM, str(folder), None, "model.path")
    assert type(found).__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert type(from_pretrained(AutoTokenizer, str(folder), None, "model.path")).__module__.startswith("transformers.")
    assert not (tmp_path / "has-run").exists()


def test_models_that_several_threads_load_at_once_are_whole_and_later_ones_too(tmp_path):
    """Loads of transformers that overlap leave its classes changed: heads are untied, and have no weights."""
    make_model("qwen2").save_pretrained(tmp_path)
    tie_weights, together = PreTrainedModel.tie_weights, threading.Barrier(4)

    def load(dtype):
        together.wait()
        return [
            from_pretrained(AutoModelForCausalLM, str(tmp_path), None, "model.path", dtype=dtype) for _ in range(10)
        ]

    with ThreadPoolExecutor(4) as pool:
        models = [model for some in pool.map(load, [torch.float32, torch.bfloat16] * 2) for model in some]
    assert PreTrainedModel.tie_weights is tie_weights
    assert torch.get_default_dtype() == torch.float32
    for model in models:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
