"""Train the demo's base model again and put it into the package: ``make demo-base``, about 20 minutes on two cores.

A Qwen2 with one token a character learns generated problems with dftune's own trainer and the ``sft`` objective, first
solutions that show their calculations, then a mixture in which many answer at once. So it ends like a large base model
without a chain of thought: what it calculates is mostly right, and often it does not calculate.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.config import validate
from dftune.data.prepare import prepared
from dftune.demo.problems import base_documents, generate
from dftune.demo.run import BASE_MODEL, write_problems
from dftune.demo.tokenizer import build_tokenizer
from dftune.recipe import Recipe
from dftune.train.loop import train


def start(folder: Path) -> None:
    """Save a model with random weights and the demo's tokenizer."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_of(work: Path, phase: str, base: Path, optimizer: dict[str, float], steps: int) -> Recipe:
    """The recipe of one phase."""
    values = {
        "name": phase,
        "output": str(work / phase),
        "data": {
            "source": str(work / f"{phase}.jsonl"),
            "prompt_format": "plain",
            "max_length": 256,
            "validation": 200,
            "prepared": str(work / f"prepared-{phase}"),
        },
        "model": {"path": str(base)},
        "objective": {"name": "sft"},
        "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_ratio": 0.05, **optimizer},
        "train": {"steps": steps, "batch_size": 64, "validate_every": 100, "device": "cpu"},
    }
    return validate(values, Recipe, phase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of each of the two phases")
    parser.add_argument("--output", type=Path, default=BASE_MODEL, help="folder to write (default: in the package)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        work = Path(folder)
        start(work / "start")
        write_problems(work / "calculate.jsonl", generate(20_000, seed=0, split="base"))
        write_problems(work / "mixture.jsonl", base_documents(40_000, seed=1))
        model = work / "start"
        phases = {"calculate": {"lr": 2e-3, "min_lr_ratio": 0.2}, "mixture": {"lr": 1.5e-3, "min_lr_ratio": 0.02}}
        for phase, optimizer in phases.items():
            recipe = recipe_of(work, phase, model, optimizer, arguments.steps)
            model = train(recipe, prepared(recipe)).model
        shutil.rmtree(arguments.output, ignore_errors=True)
        shutil.copytree(model, arguments.output)
    size = sum(file.stat().st_size for file in arguments.output.iterdir())
    print(f"{arguments.output}: {size / 1e6:.2f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
