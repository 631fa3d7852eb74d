"""DPO and its variants: values by hand, gradients in closed form, several negatives."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, pairs_of, random_tokens, take_groups

from dftune.objectives import get_objective


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


SLOPES = {  # d loss / d delta at beta = 1/2 and smoothing e, by hand
    ("sigmoid", 0.0): lambda d: -0.5 * sigmoid(-0.5 * d),
    ("sigmoid", 0.1): lambda d: -0.5 * (0.9 * sigmoid(-0.5 * d) - 0.1 * sigmoid(0.5 * d)),
    ("robust", 0.1): lambda d: -0.5 * (0.9 * sigmoid(-0.5 * d) + 0.1 * sigmoid(0.5 * d)) / 0.8,
    ("hinge", 0.0): lambda d: -0.5 if 0.5 * d < 1 else 0.0,
    ("ipo", 0.0): lambda d: 2 * (d - 1),
}


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("loss", "smoothing"), SLOPES)
def test_the_gradient_pushes_the_chosen_up_and_the_rejected_down_by_the_slope_of_the_loss(p, loss, smoothing):
    objective = get_objective("dpo", loss=loss, beta=0.5, label_smoothing=smoothing)
    tokens = pairs_of([math.log(p), math.log(0.2)], [math.log(0.3), math.log(0.4)], chosen=[True, False])
    slope = SLOPES[loss, smoothing](math.log(p / 0.3) - math.log(0.2 / 0.4))
    assert gradient(objective, tokens).tolist() == pytest.approx([slope, -slope], rel=1e-12)


def test_values_worked_by_hand():
    tokens = pairs_of([-1.0, -3.0], [-2.0, -2.0], chosen=[True, False])  # delta = 1 + 1 = 2
    for options, total in (
        ({"beta": 0.5}, math.log(1 + math.exp(-1))),
        ({"loss": "hinge", "beta": 0.1}, 0.8),
        ({"loss": "hinge", "beta": 1.0}, 0.0),
        ({"loss": "ipo", "beta": 0.5}, 1.0),
        ({"reference_free": True, "beta": 1.0, "loss": "ipo"}, (2 - 0.5) ** 2),
    ):
        assert get_objective("dpo", **options)(tokens).total.item() == pytest.approx(total)


@pytest.mark.parametrize("loss", ["sigmoid", "robust"])
def test_at_the_reference_the_loss_is_log_2_and_the_margin_0(loss):
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, ref_logps=tokens.logps.clone())
    found = get_objective("dpo", loss=loss)(tokens)
    assert found.total.item() == pytest.approx(3 * math.log(2))
    assert found.metrics["reward_margin"].item() == 0


def test_several_negatives_are_the_mean_of_their_pairs():
    tokens = pairs_of([-1.0, -2.0, -3.5], [-1.5, -1.5, -1.5], chosen=[True, False, False])
    objective = get_objective("dpo", beta=1.0)
    pairs = [objective(pairs_of([-1.0, score], [-1.5, -1.5], chosen=[True, False])).total for score in (-2.0, -3.5)]
    torch.testing.assert_close(objective(tokens).total, torch.stack(pairs).mean())


def test_ipo_averages_over_the_tokens_and_the_others_sum():
    long = random_tokens(2, sizes=(2,))
    doubled = dataclasses.replace(
        long,
        **{key: getattr(long, key).repeat_interleave(2) for key in ("logps", "ref_logps", "sequence_ids")},
    )
    ipo, plain = get_objective("dpo", loss="ipo"), get_objective("dpo")
    torch.testing.assert_close(ipo(doubled).total, ipo(long).total)
    assert not torch.isclose(plain(doubled).total, plain(long).total, rtol=1e-3)


def test_margin_and_accuracy_are_logged():
    tokens = pairs_of([-1.0, -3.0, -3.0, -1.0], chosen=[True, False, True, False], groups=[0, 0, 1, 1])
    metrics = get_objective("dpo", reference_free=True, beta=0.5)(tokens).metrics
    assert metrics["preference_accuracy"].item() == 1  # of two
    assert metrics["reward_margin"].item() == 0  # 1 and -1


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_a_label_smoothing_that_the_loss_would_ignore_is_refused(loss):
    with pytest.raises(ValueError, match=f"label_smoothing 0.1 has no meaning for loss {loss}"):
        get_objective("dpo", loss=loss, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("chosen", "found"),
    [([True, True, False], "2 chosen, 1 negatives"), ([True, False, True], "1 chosen, 0 negatives")],
)
def test_a_group_without_its_pair_is_refused_by_name(chosen, found):
    groups = [0, 0, 0] if found.startswith("2") else [0, 0, 1]
    tokens = pairs_of([-1.0, -2.0, -3.0], chosen=chosen, groups=groups, ids=["alpha", "beta"][: max(groups) + 1])
    with pytest.raises(ValueError, match=rf"1 of {max(groups) + 1} groups .*(alpha|beta): {found}"):
        get_objective("dpo", reference_free=True)(tokens)


def test_a_group_may_stand_in_any_micro_batch():
    tokens = random_tokens(4)
    objective = get_objective("dpo")
    parts = [objective(take_groups(tokens, [group])).total for group in (2, 0, 1)]
    torch.testing.assert_close(sum(parts), objective(tokens).total)


def test_a_reference_that_shares_the_models_graph_is_held_fixed():
    """The check that fails without the stop-gradient: a margin over itself does not change."""
    tokens = pairs_of([0.0, 0.0], chosen=[True, False])
    logps = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(tokens, logps=logps, ref_logps=logps)
    (found,) = torch.autograd.grad(get_objective("dpo", beta=1.0)(tokens).total, logps)
    assert found.tolist() == [-0.5, 0.5]
    margin = (logps - logps)[0] - (logps - logps)[1]
    (attached,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(margin), logps)
    assert attached.tolist() == [0.0, 0.0]
