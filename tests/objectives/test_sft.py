"""SFT's value and gradient, and parity with transformers' own loss."""

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient_at
from tests.tiny import make_examples, make_model, make_scored

from dftune.data.batches import micro_batches
from dftune.objectives import TokenBatch, get_objective
from dftune.train.step import accumulate_gradient


def batch_of(logps: torch.Tensor) -> TokenBatch:
    return TokenBatch(logps=logps, sequence_ids=torch.zeros(len(logps), dtype=torch.long), num_sequences=1)


def test_sft_is_the_negative_sum_of_log_probabilities():
    assert get_objective("sft")(batch_of(torch.tensor([-1.0, -2.5]))).total.item() == 3.5


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_is_minus_1_whatever_p(p):
    assert gradient_at(p, get_objective("sft")) == -1.0


def test_sft_equals_the_loss_and_gradient_of_transformers():
    examples = make_examples(6)
    scored = make_scored()
    result = accumulate_gradient(scored, get_objective("sft"), micro_batches(examples, max_tokens=100))

    model = make_model("qwen2", "eager")
    num_items = sum(int(example.completion_mask[1:].sum()) for example in examples)
    total = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.input_ids.astype("int64"))[None]
        labels = ids.masked_fill(~torch.from_numpy(example.completion_mask)[None], -100)
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(result.loss, total, rtol=1e-6, atol=1e-7)
    for (name, ours), theirs in zip(scored.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
