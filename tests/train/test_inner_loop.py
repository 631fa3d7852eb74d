"""The old policy: a snapshot that training does not move, and that a file brings back."""

import torch
from tests.tiny import make_examples, make_model, make_scored
from tests.train.full_logits import score

from dftune.data.batches import micro_batches
from dftune.train.inner_loop import OldPolicy


def test_it_stays_what_the_model_was_and_survives_a_file(tmp_path):
    examples = make_examples(6)
    model = make_scored()
    old = OldPolicy()
    old.refresh(model, micro_batches(examples, max_tokens=60))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        expected = score(make_model(), examples)
    names = ["e4", "e1"]
    torch.testing.assert_close(old.of(names), torch.cat([expected[4].logps, expected[1].logps]), rtol=1e-5, atol=1e-5)
    old.writer()(tmp_path / "old.safetensors")
    again = OldPolicy()
    again.load(tmp_path / "old.safetensors")
    assert torch.equal(again.of(names), old.of(names))
    assert model.training
