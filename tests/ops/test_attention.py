"""Packed rows against each document by itself, with the model's own eager attention as the reference."""

import pytest
import torch
from tests.tiny import ARCHITECTURES, VOCAB, make_model
from torch import nn

from dftune.ops.attention import document_attention
from dftune.train.model import ScoredModel, check_scoring


def _documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB, (1, length), generator=generator) for length in (9, 1, 7)]


def _pack(documents: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.cat(documents, 1),
        "position_ids": torch.cat([torch.arange(d.shape[1]) for d in documents])[None],
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_row_equals_its_documents_one_by_one_under_eager_attention(architecture):
    documents = _documents()
    reference = make_model(architecture, "eager").eval()
    separate = torch.cat([reference.base_model(d, use_cache=False).last_hidden_state for d in documents], 1)
    model = make_model(architecture).eval()
    packed = model.base_model(**_pack(documents), use_cache=False, document_starts=[0, 9, 10, 17]).last_hidden_state
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)


def test_transformers_alone_lets_packed_documents_see_each_other_with_its_default_cache():
    """The trap this module exists for; if transformers mends it, this test says so."""
    documents = _documents()
    model = make_model("qwen2", "sdpa").eval()
    separate = torch.cat([model.base_model(d, use_cache=False).last_hidden_state for d in documents], 1)
    leaking = model.base_model(**_pack(documents)).last_hidden_state
    isolated = model.base_model(**_pack(documents), use_cache=False).last_hidden_state
    assert (leaking - separate).abs().max() > 0.1
    torch.testing.assert_close(isolated, separate, rtol=1e-5, atol=1e-5)


def test_a_token_of_one_document_does_not_reach_another():
    documents = _documents()
    model = make_model().eval()
    arguments = {"use_cache": False, "document_starts": [0, 9, 10, 17]}
    before = model.base_model(**_pack(documents), **arguments).last_hidden_state
    documents[0] = (documents[0] + 1) % VOCAB
    after = model.base_model(**_pack(documents), **arguments).last_hidden_state
    assert torch.equal(before[:, 9:], after[:, 9:])
    assert not torch.equal(before[:, :9], after[:, :9])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_start_up_check_passes_for_models_we_score_right(architecture):
    check_scoring(ScoredModel(make_model(architecture)), vocab_size=VOCAB)


def test_the_start_up_check_refuses_a_model_that_changes_its_logits_behind_the_head():
    model = make_model("granite-scaled")
    scored = ScoredModel(model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(ValueError, match="differ from the model's own"):
        check_scoring(scored, vocab_size=VOCAB)


def test_a_mask_is_refused_rather_than_ignored():
    model = make_model()
    with pytest.raises(ValueError, match="does not compute"):
        model.base_model(torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.zeros(1, 1, 4, 4), use_cache=False)


def test_under_autocast_attention_computes_in_its_precision_though_rotation_left_float32():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 17, 8, generator=generator) for heads in (4, 2))
    value = torch.randn(1, 2, 17, 8, generator=generator, dtype=torch.bfloat16)
    halves = (query.bfloat16(), key.bfloat16(), value)
    expected, _ = document_attention(nn.Module(), *halves, None, document_starts=[0, 9, 17])
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = document_attention(nn.Module(), query, key, value, None, document_starts=[0, 9, 17])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
