import math

import pytest
import torch
from tests.chains import make_chain, make_tokenizer
from tests.tiny import VOCAB, make_model

from dftune.generate import sampling as sampling_module
from dftune.generate.base import Request, Sampling
from dftune.generate.local import LocalEngine
from dftune.generate.sampling import token_stats


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class Recorder(LocalEngine):
    """Keeps the token ids of every completion by the request's id."""

    def _finish(self, row, *arguments):
        self.tokens = {**getattr(self, "tokens", {}), row.request.id: list(row.tokens)}
        return super()._finish(row, *arguments)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 0.7, "top_p": 0.8}])
def test_mean_log_probability_and_entropy_are_those_of_the_whole_text_at_temperature_1(tokenizer, options):
    model = make_model("llama-untied", "sdpa")
    engine = Recorder(model, tokenizer, batch_size=5)
    requests = [Request(f"r{index}", tuple(range(1 + index % 4, 6))) for index in range(11)]
    ends = frozenset(range(0, VOCAB, 9))
    completions = engine.generate(requests, Sampling(max_tokens=12, end_token_ids=ends, **options))
    assert len({done.num_tokens for done in completions}) > 2  # rows have left the batch at several steps
    for request, done in zip(requests, completions, strict=True):
        written = engine.tokens[request.id]
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt, *written]])).logits[0, len(request.prompt) - 1 : -1]
        distribution = torch.distributions.Categorical(logits=logits.double())
        logp = distribution.log_prob(torch.tensor(written)).mean().item()
        assert done.mean_logp == pytest.approx(logp, abs=1e-5)
        assert done.mean_entropy == pytest.approx(distribution.entropy().mean().item(), abs=1e-5)


def test_a_fair_coin_has_an_entropy_of_log_2_and_a_certain_token_of_0(tokenizer):
    toss = {"x": 0.5, "y": 0.5}
    engine = LocalEngine(make_chain(tokenizer, {"x": toss, "y": toss}, otherwise="x"), tokenizer)
    (done,) = engine.generate([Request("p", tuple(tokenizer.encode("x")))], Sampling(max_tokens=9, temperature=1.0))
    assert (done.mean_logp, done.mean_entropy) == pytest.approx((-math.log(2), math.log(2)), abs=1e-5)
    (done,) = engine.generate([Request("p", tuple(tokenizer.encode("a")))], Sampling(max_tokens=1))
    assert (done.mean_logp, done.mean_entropy) == pytest.approx((0, 0), abs=1e-5)


def test_statistics_can_be_left_out(tokenizer):
    engine = LocalEngine(make_model("qwen2", "sdpa"), tokenizer, stats=False)
    (done,) = engine.generate([Request("p", (3,))], Sampling(max_tokens=4))
    assert (done.mean_logp, done.mean_entropy) == (None, None)


@pytest.mark.parametrize("cached", [1, 70, 10**6], ids=["row by row", "two rows", "at once"])
def test_tokens_of_probability_zero_add_nothing_to_the_entropy(monkeypatch, cached):
    monkeypatch.setattr(sampling_module, "_CACHED", cached)
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)) * 8
    logits[:, ::3] = -torch.inf
    chosen = logits.argmax(-1)
    before = logits.clone()
    kept = torch.distributions.Categorical(logits=logits[:, [i for i in range(30) if i % 3]].double())
    logp, entropy = token_stats(logits, chosen)
    torch.testing.assert_close(entropy.double(), kept.entropy(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logp.double(), kept.probs.max(-1).values.log(), atol=1e-6, rtol=1e-5)
    assert torch.equal(logits, before)
