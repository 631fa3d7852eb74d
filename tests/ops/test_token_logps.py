"""The scorer against float64 and against hand-worked values."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dftune.ops.token_logps import token_logps, token_stats


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(11, (7,), generator=generator)


def test_a_uniform_head_gives_minus_log_vocab():
    logps = token_logps(torch.ones(3, 4), torch.zeros(8, 4), torch.tensor([0, 3, 7]))
    torch.testing.assert_close(logps, torch.full((3,), -math.log(8)))


def test_two_logits_worked_by_hand():
    # logits 2 and 0: p = e^2 / (e^2 + 1)
    logps = token_logps(torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([0]))
    assert logps.item() == pytest.approx(2 - math.log(math.exp(2) + 1), abs=1e-7)


def test_float32_is_within_1e_6_of_float64():
    hidden, weight, targets = _inputs()
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert (token_logps(hidden, weight, targets).double() - exact).abs().max() < 1e-6


def test_bias_scale_softcap_and_temperature_act_in_that_order():
    hidden, weight, targets = _inputs()
    bias = torch.linspace(-1, 1, 11)
    found = token_logps(hidden, weight, targets, bias=bias, logit_scale=0.5, softcap=2.0, temperature=0.7)
    logits = 2.0 * torch.tanh((hidden @ weight.T + bias) * 0.5 / 2.0) / 0.7
    torch.testing.assert_close(found, -F.cross_entropy(logits, targets, reduction="none"))


def test_the_gradient_for_any_upstream_is_that_of_log_softmax():
    hidden, weight, targets = _inputs()
    upstream = torch.randn(7, generator=torch.Generator().manual_seed(1))
    grads = []
    for double in (False, True):
        h, w = ((x.double() if double else x).detach().requires_grad_() for x in (hidden, weight))
        logps = -F.cross_entropy(h @ w.T, targets, reduction="none") if double else token_logps(h, w, targets)
        grads.append(torch.autograd.grad(logps, (h, w), upstream.to(logps.dtype)))
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_bfloat16_inputs_are_scored_in_float32():
    hidden, weight, targets = _inputs(torch.bfloat16)
    found = token_logps(hidden, weight, targets)
    assert found.dtype == torch.float32
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert (found.double() - exact).abs().max() < 1e-6


def test_autocast_does_not_lower_the_precision():
    hidden, weight, targets = _inputs()
    plain = token_logps(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_logps(hidden, weight, targets), plain)


@pytest.mark.parametrize(
    ("shape", "options"), [((7, 6), {}), ((7, 5), {"temperature": 0.0}), ((7, 5), {"softcap": -1.0})]
)
def test_wrong_shapes_and_options_are_refused_by_value(shape, options):
    _, weight, targets = _inputs()
    with pytest.raises(ValueError, match=r"6|0\.0|-1\.0"):
        token_logps(torch.zeros(shape), weight, targets, **options)


@pytest.mark.parametrize("route", ["auto", "plain", "stored", "recompute"])
def test_no_tokens_give_a_differentiable_zero(route):
    hidden, weight = torch.zeros(0, 5, requires_grad=True), torch.ones(11, 5, requires_grad=True)
    logps = token_logps(hidden, weight, torch.zeros(0, dtype=torch.int64), route=route)
    assert logps.shape == (0,)
    logps.sum().backward()
    assert hidden.grad.shape == (0, 5)
    assert torch.equal(weight.grad, torch.zeros(11, 5))


@pytest.mark.parametrize("bad", [-100, -1, 11])
@pytest.mark.parametrize("route", ["auto", "stored", "recompute"])
def test_a_target_outside_the_vocabulary_is_refused(route, bad):
    hidden, weight, targets = _inputs()
    targets[2] = bad
    with pytest.raises(ValueError, match=rf"targets must lie in 0\.\.10.*{bad}.*no ignore index"):
        token_logps(hidden, weight, targets, route=route)


@pytest.mark.parametrize("route", ["plain", "stored", "recompute", "frozen_head"])
def test_a_head_tied_to_the_embedding_gets_both_gradients(route):
    _, weight, targets = _inputs()
    embedding = weight.requires_grad_(route != "frozen_head")
    extra = torch.zeros(7, 5, requires_grad=True)
    hidden = torch.tanh(embedding[targets]) + extra
    token_logps(hidden, embedding, targets, route=route).sum().backward()
    exact = weight.detach().double().requires_grad_()
    exact_extra = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True)
    logits = (torch.tanh(exact[targets]) + exact_extra) @ exact.T
    (-F.cross_entropy(logits, targets, reduction="sum")).backward()
    torch.testing.assert_close(extra.grad.double(), exact_extra.grad, rtol=1e-5, atol=1e-6)
    if route != "frozen_head":
        torch.testing.assert_close(embedding.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_slices_and_transposes_of_larger_tensors_are_scored(route):
    hidden, weight, targets = _inputs()
    wide = torch.zeros(7, 10)
    wide[:, ::2] = hidden
    strided, transposed = wide[:, ::2].requires_grad_(), weight.T.contiguous().T
    twice = torch.stack([targets, targets], 1)[:, 0]
    found = token_logps(strided, transposed, twice, route=route)
    torch.testing.assert_close(found, token_logps(hidden, weight, targets, route="plain"), rtol=1e-6, atol=1e-6)
    upstream = torch.ones(1).expand(7)  # as the backward of a sum gives
    (gradient,) = torch.autograd.grad(found, strided, upstream)
    leaf = hidden.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(token_logps(leaf, weight, targets, route="plain").sum(), leaf)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("route", ["stored", "recompute"])
def test_autocast_around_the_call_and_its_backward_changes_nothing(route):
    grads = []
    for enabled in (False, True):
        hidden, weight, targets = (x.requires_grad_() if x.is_floating_point() else x for x in _inputs())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            token_logps(hidden, weight, targets, route=route).sum().backward()
        grads.append((hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_checkpointed_backbone_gets_the_same_gradient():
    _, weight, targets = _inputs()
    grads = []
    for checkpointed in (False, True):
        layer = torch.nn.Linear(5, 5)
        with torch.no_grad():
            layer.weight.copy_(weight[:5])
            layer.bias.zero_()
        inputs = _inputs()[0]
        hidden = checkpoint(layer, inputs, use_reentrant=False) if checkpointed else layer(inputs)
        token_logps(hidden, weight, targets, route="stored").sum().backward()
        grads.append(layer.weight.grad)
    assert torch.equal(*grads)


def test_inference_mode_scores_every_statistic():
    hidden, weight, targets = _inputs()
    with torch.inference_mode():
        found = token_stats(hidden, weight, targets, stats=frozenset({"entropy", "top1_hit"}))
    log_probs = (hidden @ weight.T).log_softmax(1)
    torch.testing.assert_close(found.entropy, -(log_probs.exp() * log_probs).sum(1))
    assert torch.equal(found.top1_hit, (log_probs.argmax(1) == targets).float())


def test_statistics_are_computed_only_when_asked_for():
    found = token_stats(*_inputs(), stats=frozenset({"sum_sq_probs"}))
    assert found.entropy is found.top_k_entropy is found.top1_hit is None
    assert found.sum_sq_probs is not None


@pytest.mark.parametrize("route", ["plain", "recompute", "stored"])
def test_statistics_of_a_uniform_row_worked_by_hand(route):
    found = token_stats(
        torch.ones(1, 2),
        torch.zeros(8, 2),
        torch.tensor([3]),
        stats=frozenset({"entropy", "top_k_entropy", "sum_sq_probs", "top1_hit"}),
        top_k=5,
        route=route,
    )
    assert found.entropy.item() == pytest.approx(math.log(8))
    assert found.top_k_entropy.item() == pytest.approx(math.log(5))
    assert found.sum_sq_probs.item() == pytest.approx(1 / 8)
    assert found.top1_hit.item() == 0  # a tie is no hit


@pytest.mark.parametrize("route", ["plain", "recompute", "stored"])
def test_a_vocabulary_of_one_token_is_certain(route):
    found = token_stats(torch.ones(2, 3), torch.ones(1, 3), torch.zeros(2, dtype=torch.int64), route=route)
    assert found.logps.tolist() == [0, 0]


@pytest.mark.parametrize("route", ["stored", "recompute"])
def test_bfloat16_operands_on_float32_weights_give_float32_gradients(route):
    hidden, weight, targets = (x.requires_grad_() if x.is_floating_point() else x for x in _inputs())
    found = token_logps(hidden, weight, targets, operand_dtype=torch.bfloat16, route=route)
    rounded = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    exact = -F.cross_entropy(rounded[0] @ rounded[1].T, targets, reduction="none")
    assert (found.double() - exact).abs().max() < 2e-6
    found.sum().backward()
    for ours, theirs in zip((hidden, weight), torch.autograd.grad(exact.sum(), rounded), strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad.double() - theirs).norm() < 5e-3 * theirs.norm()


def test_float16_inputs_are_scored_and_differentiated_in_float32():
    hidden, weight, targets = _inputs(torch.float16)
    found = token_logps(hidden.requires_grad_(), weight, targets)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert (found.double() - exact).abs().max() < 1e-6
    found.sum().backward()
    assert hidden.grad.dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route": "fastest"}, "unknown route 'fastest'; choose auto, plain"),
        ({"route": "one_pass"}, "unknown route 'one_pass'"),
        ({"stats": frozenset({"median"})}, r"unknown statistics \['median'\]; known:"),
        ({"top_k": 0}, "top_k must be at least 1; found 0"),
        ({"bias": torch.zeros(5)}, r"bias must be \(vocab,\) = \(11,\); found \(5,\)"),
    ],
)
def test_what_a_caller_can_get_wrong_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        token_stats(*_inputs(), **options)


def test_the_frozen_head_route_refuses_a_head_that_is_trained():
    hidden, weight, targets = _inputs()
    with pytest.raises(ValueError, match="gives weight and bias no gradient"):
        token_logps(hidden, weight.requires_grad_(), targets, route="frozen_head")


def test_the_entropy_of_a_frozen_head_keeps_its_gradient_on_the_automatic_route():
    hidden, weight, targets = _inputs()
    found = token_stats(hidden.requires_grad_(), weight, targets, stats=frozenset({"entropy"}))
    (gradient,) = torch.autograd.grad(found.entropy.sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    entropy = torch.distributions.Categorical(logits=exact @ weight.double().T).entropy()
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(entropy.sum(), exact)[0], rtol=1e-5, atol=1e-6)
