"""What the tests of both adapters share: rows, models, tokens scored the slow way, and objectives of a user's own."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = [
    {
        "prompt": f"What is {number} + {7 * number}?",
        "completion": f" {number} + {7 * number} = {8 * number}." + " Sure." * (number % 5),
    }
    for number in range(1, 41)
]

USERS_OBJECTIVES = '''
from dftune.objectives import LossSum, objective

@objective(unit="token", separable="token")
def leaky(tokens):
    """Dynamic Fine-Tuning without the stop-gradient."""
    return LossSum(-(tokens.logps.exp() * tokens.logps).sum())

@objective(unit="token", separable="sequence")
def by_sequence(tokens):
    """Each token weighted by the number of supervised tokens in its sequence."""
    weights = tokens.sequence_lengths()[tokens.sequence_ids]
    return LossSum(-(weights * tokens.logps).sum(), metrics={"mean_length": weights.sum()})

@objective(unit="token", separable="token", needs=["entropy"])
def confident(tokens):
    """The entropy, with its gradient."""
    return LossSum(tokens.need("entropy").sum() + 0 * tokens.logps.sum())

@objective(unit="sequence", separable="sequence")
def mean_of_means(tokens):
    """A mean over sequences."""
    return LossSum(-(tokens.sequence_sums(tokens.logps) / tokens.sequence_lengths()).sum())
'''


def load_model(folder: Path):
    """The model, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder / "my-model", dtype=torch.float32)


def load_tokenizer(folder: Path):
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(folder / "my-model")


def encode(tokenizer, row) -> dict[str, list[int]]:
    """Ids of prompt, completion and end; labels of the last two."""
    prompt = tokenizer(row["prompt"]).input_ids
    completion = [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def score(model, examples) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every example by itself, in float64: log p of its supervised tokens, and the rows they come from."""
    found = []
    for example in examples:
        logits = model(torch.tensor([example["input_ids"]]), use_cache=False).logits[0, :-1].double()
        targets = torch.tensor(example["labels"])[1:]
        rows = logits.log_softmax(1)[targets != -100]
        found.append((rows.gather(1, targets[targets != -100, None])[:, 0], rows))
    return found
