"""Adapters of LoRA are evaluated merged into their base."""

import json
from pathlib import Path

import pytest
import torch
from tests.chains import make_tokenizer, save_chain
from transformers import AutoModelForCausalLM

from dftune.data.prompts import FORMATS
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.locate import plan
from dftune.evaluate.models import find_files
from dftune.evaluate.runner import evaluate
from dftune.train.config import LoraConfig
from dftune.train.lora import Adapter

pytest.importorskip("peft")
CONFIG = EvaluateConfig(max_tokens=12, protocol="greedy", prompt_format="plain")


def save_adapter(base, folder, seed):
    """An adapter that has moved far from its start; also the merged model, by dftune's own sum."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = Adapter(model, LoraConfig(rank=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(seed)
    for value in adapter.weights().values():
        value.add_(0.5 * torch.randn(value.shape, generator=generator))
    adapter.save(folder)
    return adapter.merged()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with an adapter alone in each checkpoint, and the final model merged."""
    monkeypatch.chdir(tmp_path)
    save_chain(Path("base"), {"\n": {"7": 0.6, "8": 0.4}, "7": {"8": 0.6, "7": 0.4}, "8": {"7": 0.6, "8": 0.4}})
    folder = Path("runs/lora")
    for step in (2, 4):
        save_adapter("base", folder / f"checkpoints/step-{step}/adapter", step).save_pretrained(f"merged-{step}")
        make_tokenizer().save_pretrained(f"merged-{step}")
    save_adapter("base", folder / "adapter", 5).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    prompt_format = {"name": "plain", "fingerprint": FORMATS["plain"].fingerprint}
    (folder / "manifest.json").write_text(json.dumps({"name": "l", "kind": "train", "prompt_format": prompt_format}))
    (folder / "events.jsonl").write_text('{"kind": "train", "step": 5, "time": 0.0}\n')
    (folder / "recipe.yaml").write_text("model: {path: base}\n")
    Path("sums.jsonl").write_text("".join(json.dumps({"problem": f"{i}?", "answer": "7"}) + "\n" for i in range(3)))
    return folder


def completions(model, output, step):
    (summary,) = evaluate(model, ["sums.jsonl"], CONFIG, output, step=step)
    return [json.loads(line)["completion"] for line in summary.completions.read_text().splitlines()]


def test_every_checkpoint_of_an_adapter_is_found(run):
    assert [(one.model, one.step) for one in plan("runs/lora", all_checkpoints=True)] == [
        ("runs/lora/checkpoints/step-2/adapter", 2),
        ("runs/lora/checkpoints/step-4/adapter", 4),
        ("runs/lora/model", 5),
    ]
    assert plan("runs/lora/checkpoints/step-4")[0].model == "runs/lora/checkpoints/step-4/adapter"


def test_an_adapter_writes_what_the_merged_model_writes(run):
    texts = {}
    for step in (2, 4):
        (one,) = plan("runs/lora", step=step)
        texts[step] = completions(one.model, one.output, one.step)
        assert texts[step] == completions(f"merged-{step}", Path(f"out-{step}"), 0)
    assert texts[2] != texts[4] != completions("base", Path("out-base"), 0)


def test_the_fingerprint_follows_base_and_adapter(run):
    second, fourth = (find_files(f"runs/lora/checkpoints/step-{step}/adapter") for step in (2, 4))
    assert second.fingerprint() == find_files("runs/lora/checkpoints/step-2/adapter").fingerprint()
    config = json.loads((second.adapter / "adapter_config.json").read_text())
    before = second.fingerprint()
    (second.adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "moved"}))
    assert second.fingerprint() == before
    (second.adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
    base = find_files("base")
    assert len({second.fingerprint(), before, fourth.fingerprint(), base.fingerprint()}) == 4


def test_an_adapter_from_elsewhere_names_its_base_and_a_missing_base_is_explained(run):
    lone = Path("lone")
    save_adapter("base", lone, 7)
    assert find_files("lone").folder == Path("base")
    assert len(completions("lone", Path("out"), 0)) == 3
    config = json.loads((lone / "adapter_config.json").read_text())
    (lone / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "no/such/base"}))
    with pytest.raises(ValueError, match=r"lone is an adapter, and its base is not there\. There is no .*no/such/base"):
        find_files("lone")
    (lone / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name the base model"):
        find_files("lone")
