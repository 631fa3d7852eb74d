"""The tables of docs/memory.md and docs/scale.md are what the arithmetic gives for the published shapes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from dftune.train.config import LoraConfig
from dftune.train.memory import Setting, activations_per_token, estimate, shape_of

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
SCALE = PAGE.with_name("scale.md")
GB = 1e9
# Of the models' config.json: hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
PUBLISHED = {
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True, 1_543_714_304),
    "7B": (3584, 18944, 28, 28, 4, 152_064, False, 7_615_616_512),
    "32B": (5120, 27648, 64, 40, 8, 152_064, False, 32_763_876_352),
}


def shape(name: str, lora: LoraConfig | None = None):
    hidden, intermediate, layers, heads, kv_heads, vocab, tied, _ = PUBLISHED[name]
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config), lora)


def state_row(name: str) -> str:
    found, cells = shape(name), []
    for ranks in (1, 8, 32):
        how = {"strategy": "fsdp", "sync_each_micro_batch": True} if ranks > 1 else {}
        setting = Setting(8192, gradient_checkpointing="full", ranks=ranks, **how)
        memory = estimate(found, setting)
        cells.append(
            f"{memory.lasting / GB:.1f} + {(memory.total - memory.lasting) / GB:.1f} = {memory.total / GB:.1f}"
        )
    return f"| {name} | {' | '.join(cells)} |"


def activation_row(name: str) -> str:
    found = shape(name)
    kinds = ("none", "selective", "full")
    cells = [8192 * activations_per_token(found, Setting(8192, gradient_checkpointing=kind)) / GB for kind in kinds]
    return f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def adapter_row(name: str) -> str:
    found, cells = shape(name, LoraConfig(rank=16)), []
    for quantize in (False, True):
        setting = Setting(8192, gradient_checkpointing="full", lora=True, quantize=quantize)
        memory = estimate(found, setting)
        cells.append(
            f"{memory.lasting / GB:.1f} + {(memory.total - memory.lasting) / GB:.1f} = {memory.total / GB:.1f}"
        )
    return f"| {name} | {' | '.join(cells)} |"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_s_rows_are_what_the_arithmetic_gives(name):
    page = PAGE.read_text(encoding="utf-8")
    for row in (state_row(name), activation_row(name), adapter_row(name)):
        assert row in page


SHARDED = Setting(8192, gradient_checkpointing="full", strategy="fsdp", ranks=8, sync_each_micro_batch=True)


@pytest.mark.parametrize(
    ("start", "setting"),
    [
        ("| 1.5B | 8 |", Setting(8192, strategy="ddp", ranks=8)),
        ("| 7B | 8 |", replace(SHARDED, gradient_checkpointing="selective")),
        ("| 7B | 4 x 8 |", replace(SHARDED, gradient_checkpointing="selective", ranks=32, replicas=4)),
        ("| 32B | 4 x 8 |", replace(SHARDED, ranks=32)),
        ("| 32B | 8 | the same: too", SHARDED),
        ("| 32B | 8 | the same, and `cpu_offload", replace(SHARDED, cpu_offload=True)),
        ("| 32B | 8 | `strategy: fsdp`", replace(SHARDED, lora=True, sync_each_micro_batch=False)),
    ],
)
def test_what_the_page_on_scale_says_of_a_setting_is_what_the_arithmetic_gives(start, setting):
    (line,) = [line for line in SCALE.read_text(encoding="utf-8").splitlines() if line.startswith(start)]
    found = estimate(shape(line.split("|")[1].strip(), LoraConfig(rank=16) if setting.lora else None), setting)
    rest = found.total - found.lasting
    assert line.endswith(f"| {found.lasting / GB:.1f} + {rest / GB:.1f} = {found.total / GB:.1f} |")
    assert found.total < 0.95 * 80e9 or "too much for 80 GB" in line
    if setting.cpu_offload:
        assert f"{found.offloaded / GB:.1f} GB more a process in CPU memory" in line


def test_the_lines_of_the_page_on_scale_add_up_to_its_7b_run():
    page = SCALE.read_text(encoding="utf-8")
    table = page[page.index("| what | how | GB |") :].split("\n\n")[0].splitlines()[2:]
    sizes = {line.split("|")[1].strip(): float(line.split("|")[3]) for line in table}
    found = estimate(shape("7B"), SHARDED)
    assert sizes["together"] == round(found.total / GB, 1)
    assert sum(sizes.values()) == pytest.approx(2 * sizes["together"], abs=0.2)
    for name, size in (("weights, float32", found.weights), ("moments of AdamW", found.moments)):
        assert sizes[name] == round(size / GB, 1)
    assert sizes["activations of 8,192 tokens"] == round(found.activations / GB, 1)
    assert sizes["scorer"] == round(found.scorer / GB, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_the_model_cards_count(name):
    assert shape(name).parameters == PUBLISHED[name][-1]
