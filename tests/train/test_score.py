"""The divergence from a reference over the whole vocabulary, and the route that a run takes."""

import pytest
import torch
from tests.tiny import VOCAB, make_examples, make_scored

from dftune.objectives import get_objective
from dftune.train.score import Scorer
from dftune.train.setup import route_of


def scorers(**head) -> tuple[Scorer, Scorer]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    targets = torch.randint(VOCAB, (7,), generator=generator)
    mine = Scorer(draw(7, 5).requires_grad_(), targets, draw(VOCAB, 5).requires_grad_(), draw(VOCAB), **head)
    return mine, Scorer(draw(7, 5), targets, draw(VOCAB, 5), draw(VOCAB), **head)


def logits_of(scorer: Scorer) -> torch.Tensor:
    logits = (scorer.hidden @ scorer.weight.T + scorer.bias) * (scorer.logit_scale or 1.0)
    return logits if scorer.softcap is None else scorer.softcap * (logits / scorer.softcap).tanh()


@pytest.mark.parametrize("head", [{}, {"softcap": 2.0, "logit_scale": 0.5}])
@pytest.mark.parametrize("budget_bytes", [1, 10_000, None])
def test_the_full_divergence_is_torch_s_own_in_value_and_gradient_whatever_the_block(head, budget_bytes):
    mine, reference = scorers(**head, budget_bytes=budget_bytes)
    upstream = torch.linspace(-1, 2, 7)
    found = mine.kl_from(reference)
    gradients = torch.autograd.grad((found * upstream).sum(), [mine.hidden, mine.weight])
    distributions = [torch.distributions.Categorical(logits=logits_of(one)) for one in (reference, mine)]
    expected = torch.distributions.kl_divergence(*distributions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for left, right in zip(
        gradients, torch.autograd.grad((expected * upstream).sum(), [mine.hidden, mine.weight]), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_the_divergence_keeps_no_row_of_the_vocabulary_for_the_backward():
    mine, reference = scorers()
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mine.kl_from(reference)
        blocks = max(kept, default=0)
        torch.distributions.kl_divergence(
            *(torch.distributions.Categorical(logits=logits_of(one)) for one in (reference, mine))
        )
    assert blocks < 7 * VOCAB <= max(kept)


@pytest.mark.parametrize(
    ("objective", "frozen", "num_tokens", "expected"),
    [
        ("sft", False, 64, "plain"),
        ("sft", False, 10**8, "one_pass"),
        ("iw_sft", False, 10**8, "one_pass"),
        ("talr", False, 10**8, "recompute"),
        ("asft", False, 10**8, "recompute"),
        ("talr", False, 500_000, "stored"),
        ("talr", True, 10**8, "frozen_head"),
    ],
)
def test_the_route_follows_from_scope_needs_budget_and_a_frozen_head(objective, frozen, num_tokens, expected):
    """Over a vocabulary of 50, 160 MiB hold 838,860 rows of float32."""
    model = make_scored("llama-untied")
    model.model.lm_head.weight.requires_grad_(not frozen)
    assert route_of(model, get_objective(objective), lambda: make_examples(4), num_tokens) == expected
