"""Discriminative FT against a slow transcription of the paper, its published bounds, and its state."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.batches import gradient, pairs_of, random_tokens, take_groups, tokens_of

from dftune.objectives import LossSum, get_objective
from dftune.objectives.state import LogEstimates

FEW = settings(max_examples=25, deadline=None)
paper = get_objective("discriminative_ft")
dft2 = get_objective("discriminative_ft", ref_free=True)


def new_state(**values: float) -> LogEstimates:
    state = LogEstimates()
    state.load_state_dict(values)
    return state


def weights_of(objective, tokens, state=None) -> torch.Tensor:
    """w_j of every negative, read off the gradient: w_j / m for each of its tokens, over its length in DFT2."""
    found = gradient(objective, tokens, state=state or LogEstimates())
    by_sequence = found.new_zeros(tokens.num_sequences).scatter_reduce(
        0, tokens.sequence_ids, found, "mean", include_self=False
    )
    if objective.options["ref_free"]:
        by_sequence = by_sequence * tokens.sequence_lengths()
    negatives = torch.bincount(tokens.group_ids[~tokens.is_chosen])
    return (by_sequence * negatives[tokens.group_ids])[~tokens.is_chosen]


# -- the paper, slowly ----------


def transcription(visits, estimates, *, ref_free, tau, gamma, start=1.0, unbiased_start=False):
    """The paper in plain numbers, the estimate U itself and not its logarithm.

    ``visits``: (id, log p of the chosen answer's tokens, [(log p, log q) of each negative's tokens]).
    Returns the total and its gradient by each token's log p; ``estimates`` is updated.
    """
    total, slopes, updated = 0.0, [], {}
    for name, chosen, negatives in visits:
        observations = [
            math.exp(sum(p) / len(p) / tau) if ref_free else math.exp(sum(p) / tau) / math.exp(sum(q))
            for p, q in negatives
        ]
        mean = sum(observations) / len(observations)
        u = (1 - gamma) * estimates.get(name, start) + gamma * mean
        if unbiased_start and name not in estimates:
            u = mean
        updated[name] = u
        over = len if ref_free else (lambda tokens: 1)
        total -= sum(chosen) / over(chosen)
        slopes += [-1 / over(chosen)] * len(chosen)
        for (p, _), observation in zip(negatives, observations, strict=True):
            weight = observation / u / len(negatives)
            total += weight * sum(p) / over(p)
            slopes += [weight / over(p)] * len(p)
    estimates |= updated
    return total, slopes


def toy_answers(num_examples: int, num_negatives: int, vocab: int = 6):
    """For each example answers of 1 to 4 tokens, the first of them the chosen one, each with its own small model."""
    generator = torch.Generator().manual_seed(3)
    answers = []
    for _ in range(num_examples):
        lengths = torch.randint(1, 5, (1 + num_negatives,), generator=generator).tolist()
        logits = [torch.randn(n, vocab, generator=generator, dtype=torch.float64) for n in lengths]
        targets = [torch.randint(vocab, (n,), generator=generator) for n in lengths]
        answers.append(list(zip(logits, targets, strict=True)))
    return answers


def logps_of(logits, targets):
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"ref_free": False, "tau": 1.0, "gamma": 0.85},
        {"ref_free": True, "tau": 0.3, "gamma": 0.9},
        {"ref_free": False, "tau": 0.7, "gamma": 1.0},
        {"ref_free": False, "tau": 1.0, "gamma": 0.5, "unbiased_start": True},
    ],
    ids=lambda options: f"ref_free={options['ref_free']}, gamma={options['gamma']}",
)
def test_several_epochs_of_training_follow_the_transcription(options):
    """Other negatives each epoch, another order, two examples a step, and the model moves by our gradient."""
    objective, state, estimates = get_objective("discriminative_ft", **options), LogEstimates(), {}
    answers = toy_answers(num_examples=4, num_negatives=6)
    reference = [[logps_of(*answer).detach() for answer in group] for group in answers]
    for epoch, order in enumerate([[0, 1, 2, 3], [2, 0, 3, 1], [1, 3, 0, 2]]):
        columns = [1 + 2 * epoch, 2 + 2 * epoch]
        for step in (order[:2], order[2:]):
            logits = [[answers[i][j][0].requires_grad_() for j in (0, *columns)] for i in step]
            logps = [
                [logps_of(z, answers[i][j][1]) for z, j in zip(group, (0, *columns), strict=True)]
                for group, i in zip(logits, step, strict=True)
            ]
            sequences = [sequence for group in logps for sequence in group]
            tokens = dataclasses.replace(
                tokens_of([0.0] * sum(map(len, sequences)), [len(sequence) for sequence in sequences]),
                logps=torch.cat(sequences),
                ref_logps=torch.cat([reference[i][j] for i in step for j in (0, *columns)]),
                group_ids=torch.tensor([0, 0, 0, 1, 1, 1]),
                num_groups=2,
                is_chosen=torch.tensor([True, False, False] * 2),
                example_ids=tuple(f"problem-{i}" for i in step),
            )
            visits = [
                (
                    f"problem-{i}",
                    group[0].tolist(),
                    [(p.tolist(), reference[i][j].tolist()) for p, j in zip(group[1:], columns, strict=True)],
                )
                for i, group in zip(step, logps, strict=True)
            ]
            total, slopes = transcription(visits, estimates, **options)
            loss = objective(tokens, state=state)
            assert loss.total.item() == pytest.approx(total, rel=1e-10)
            found = torch.autograd.grad(loss.total, [tokens.logps, *(z for group in logits for z in group)])
            assert found[0].tolist() == pytest.approx(slopes, rel=1e-10)
            state.commit()
            expected = {name: math.log(estimate) for name, estimate in estimates.items()}
            assert state.state_dict() == pytest.approx(expected, rel=1e-10, abs=1e-10)
            with torch.no_grad():
                for (i, j), step_down in zip([(i, j) for i in step for j in (0, *columns)], found[1:], strict=True):
                    answers[i][j][0].sub_(0.5 * step_down)
    assert len(state.state_dict()) == 4


# -- values and gradients by hand ----------


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_gradient_is_minus_1_for_the_chosen_and_the_weight_over_m_for_each_negative(p):
    tokens = pairs_of(
        [-2.0, math.log(p), math.log(0.2)], [0.0, math.log(0.4), math.log(0.4)], chosen=[True, False, False]
    )
    u = 0.15 + 0.85 * (p / 0.4 + 0.2 / 0.4) / 2
    found = gradient(paper, tokens, state=LogEstimates())
    assert found.tolist() == pytest.approx([-1.0, p / 0.4 / u / 2, 0.5 / u / 2], rel=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("attached", ["weight", "u"])
def test_the_check_above_fails_when_a_stop_gradient_is_removed(p, attached):
    def undetached(tokens):
        d = (tokens.logps - tokens.ref_logps)[1:]
        u = (0.15 + 0.85 * d.exp().mean()).log()
        w = (d - u.detach()).exp() if attached == "weight" else (d.detach() - u).exp()
        return LossSum(-tokens.logps[0] + (w * tokens.logps[1:]).mean())

    tokens = pairs_of(
        [-2.0, math.log(p), math.log(0.2)], [0.0, math.log(0.4), math.log(0.4)], chosen=[True, False, False]
    )
    right = gradient(paper, tokens, state=LogEstimates())
    wrong = gradient(undetached, tokens)
    assert (wrong - right).abs().max() > 0.05 * right[1:].max()


def test_at_the_reference_with_tau_1_the_estimate_stays_1_and_every_weight_is_1():
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, ref_logps=tokens.logps.clone())
    state = LogEstimates()
    for _ in range(3):
        torch.testing.assert_close(weights_of(paper, tokens, state), torch.ones(4, dtype=torch.float64))
        state.commit()
    assert list(state.state_dict().values()) == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("mean_logp", "weight"), [(-0.5, 0.70), (-1.0, 0.27), (-1.5, 0.064)])
def test_the_first_visit_of_dft2_is_biased_low_as_published_and_unbiased_on_request(mean_logp, weight):
    tokens = pairs_of([-1.0, mean_logp], chosen=[True, False])
    assert weights_of(dft2, tokens).item() == pytest.approx(weight, rel=0.02)
    unbiased = get_objective("discriminative_ft", ref_free=True, unbiased_start=True)
    assert weights_of(unbiased, tokens).item() == pytest.approx(1.0)
    seen = new_state(e0=0.0)  # the second visit mixes as ever
    assert weights_of(unbiased, tokens, seen).item() == pytest.approx(weight, rel=0.02)


def test_u_init_is_where_an_unseen_example_starts():
    tokens = pairs_of([-1.0, -0.6], chosen=[True, False])
    objective = get_objective("discriminative_ft", ref_free=True, u_init=-2.0)
    u = math.log(0.1 * math.exp(-2) + 0.9 * math.exp(-2))
    assert objective(tokens, state=LogEstimates()).metrics["u"].item() == pytest.approx(u)
    assert objective(tokens, state=new_state(e0=0.0)).metrics["u"].item() > u + 0.1


# -- published bounds ----------


@FEW
@given(
    st.integers(0, 10_000), st.lists(st.integers(2, 5), min_size=1, max_size=4), st.floats(0.05, 1), st.floats(-9, 9)
)
def test_weights_are_at_most_m_over_gamma_and_their_mean_at_most_1_over_gamma(seed, sizes, gamma, u):
    tokens = random_tokens(seed, tuple(sizes), spread=9.0)
    objective = get_objective("discriminative_ft", gamma=gamma)
    weights = weights_of(objective, tokens, new_state(e0=u))
    assert (weights > 0).all()
    for weight in weights.split([size - 1 for size in sizes]):
        assert weight.max() <= len(weight) / gamma * (1 + 1e-9)
        assert weight.mean() <= 1 / gamma * (1 + 1e-9)


@FEW
@given(st.integers(0, 10_000), st.floats(-9, 9))
def test_with_gamma_1_the_weights_are_m_times_a_softmax_and_average_to_1(seed, u):
    tokens = random_tokens(seed, sizes=(4,), spread=9.0)
    objective = get_objective("discriminative_ft", gamma=1.0)
    weights = weights_of(objective, tokens, new_state(e0=u))
    scores = (tokens.sequence_sums(tokens.logps) - tokens.sequence_sums(tokens.ref_logps))[~tokens.is_chosen]
    torch.testing.assert_close(weights, 3 * scores.softmax(0))
    assert weights.mean().item() == pytest.approx(1)


def test_dft2_does_not_depend_on_length_and_the_variant_with_a_reference_does():
    tokens = random_tokens(1)
    doubled = dataclasses.replace(
        tokens, **{key: getattr(tokens, key).repeat_interleave(2) for key in ("logps", "ref_logps", "sequence_ids")}
    )
    found = [dft2(batch, state=LogEstimates()).total.item() for batch in (tokens, doubled)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    found = [paper(batch, state=LogEstimates()).total.item() for batch in (tokens, doubled)]
    assert found[0] != pytest.approx(found[1], rel=1e-2)


@FEW
@given(st.lists(st.floats(-5000, 0), min_size=3, max_size=3), st.lists(st.floats(-5000, 0), min_size=3, max_size=3))
def test_it_is_never_nan_however_far_apart_model_and_reference_are(logps, ref_logps):
    tokens = pairs_of(logps, ref_logps, chosen=[False, True, False])
    for dtype in (torch.float64, torch.float32):
        batch = dataclasses.replace(tokens, logps=tokens.logps.to(dtype), ref_logps=tokens.ref_logps.to(dtype))
        for objective in (paper, dft2, get_objective("discriminative_ft", gamma=1.0)):
            state = LogEstimates()
            for _ in range(3):
                assert gradient(objective, batch, state=state).isfinite().all()
                state.commit()
            assert all(map(math.isfinite, state.state_dict().values()))


# -- the state ----------


def test_a_step_does_not_depend_on_how_it_is_cut_even_with_an_example_in_it_twice():
    tokens = random_tokens(2, sizes=(2, 3, 2, 4))
    tokens = dataclasses.replace(tokens, example_ids=("a", "b", "a", "c"))
    results = []
    for cut in ([[0, 1, 2, 3]], [[0], [1, 2], [3]], [[3, 2], [1, 0]]):
        state = new_state(a=0.5)
        total = sum(paper(take_groups(tokens, part), state=state).total.item() for part in cut)
        state.commit()
        results.append({"total": total, **state.state_dict()})
    assert results[1] == pytest.approx(results[0], rel=1e-12)
    assert results[2] == pytest.approx(results[0], rel=1e-12)


def test_a_resumed_state_goes_on_to_the_bit():
    tokens = random_tokens(3)
    tokens = dataclasses.replace(tokens, logps=tokens.logps.float(), ref_logps=tokens.ref_logps.float())

    def visits(state: LogEstimates, num: int) -> list[float]:
        totals = []
        for _ in range(num):
            totals.append(paper(tokens, state=state).total.item())
            state.commit()
        return totals

    straight = LogEstimates()
    expected = visits(straight, 4)
    before, resumed = LogEstimates(), LogEstimates()
    first = visits(before, 2)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert first + visits(resumed, 2) == expected
    assert resumed.state_dict() == straight.state_dict()


def test_options_that_are_left_out_are_those_of_the_variant():
    chosen = ("tau", "gamma")
    assert [paper.options[key] for key in chosen] == [1.0, 0.85]
    assert [dft2.options[key] for key in chosen] == [0.3, 0.9]
    assert get_objective("discriminative_ft", ref_free=True, tau=0.5).options["gamma"] == 0.9


def test_a_group_without_a_negative_is_refused_by_name():
    tokens = pairs_of([-1.0, -2.0, -1.5], chosen=[True, False, True], groups=[0, 0, 1], ids=["good", "lonely"])
    with pytest.raises(ValueError, match="lonely: 1 chosen, 0 negatives"):
        dft2(tokens, state=LogEstimates())
