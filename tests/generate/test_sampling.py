import pytest
import torch
from transformers import TopKLogitsWarper

from dftune.generate.sampling import RowRandom, pick_tokens

PROBS = torch.tensor([0.15, 0.5, 0.05, 0.3])
GRID = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


def shares(probs, **options):
    """How often each token is picked when the random number runs once over [0, 1)."""
    picked = pick_tokens(probs.log().expand(len(GRID), -1), uniforms=GRID, **options)
    return torch.bincount(picked, minlength=len(probs)) / len(GRID)


def test_tokens_are_picked_as_often_as_they_are_probable():
    torch.testing.assert_close(shares(PROBS, temperature=1.0, top_p=1.0), PROBS, atol=1e-3, rtol=0)


def test_a_temperature_raises_probabilities_to_its_inverse():
    # T = 0.5 squares them: 0.0225, 0.25, 0.0025, 0.09 of 0.365
    expected = torch.tensor([0.0225, 0.25, 0.0025, 0.09]) / 0.365
    torch.testing.assert_close(shares(PROBS, temperature=0.5, top_p=1.0), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.79, [0, 0.625, 0, 0.375]),  # 0.5 is not enough, 0.5 + 0.3 is
        (0.81, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (0.49, [0, 1, 0, 0]),
        (1e-6, [0, 1, 0, 0]),
    ],
)
def test_top_p_keeps_the_smallest_set_of_likely_tokens_that_holds_it(top_p, expected):
    picked = shares(PROBS, temperature=1.0, top_p=top_p)
    torch.testing.assert_close(picked, torch.tensor(expected, dtype=picked.dtype), atol=1e-3, rtol=0)


def test_a_token_of_probability_zero_is_never_picked():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for edge in (0.0, 0.5, 1 - 2**-53):
        uniform = torch.tensor([edge], dtype=torch.float64)
        assert pick_tokens(logits, temperature=1.0, top_p=1.0, uniforms=uniform).item() in (1, 3)
        assert pick_tokens(logits, temperature=1.0, top_p=0.99, uniforms=uniform).item() in (1, 3)


def test_temperature_zero_picks_the_likeliest():
    assert pick_tokens(PROBS.log()[None], temperature=0, top_p=1.0, uniforms=None).tolist() == [1]


def test_a_rows_random_numbers_depend_on_its_seed_and_key_alone():
    device = torch.device("cpu")
    keys = [("a", 0), ("a", 1), ("b", 0)]
    together = RowRandom(7, keys, device)
    alone = [RowRandom(7, [key], device) for key in keys]
    for step in range(600):  # numbers are drawn in blocks; this crosses two
        if step == 300:
            together.keep([0, 2])
            del alone[1]
        torch.testing.assert_close(together.next(), torch.cat([row.next() for row in alone]), rtol=0, atol=0)
    assert RowRandom(8, keys[:1], device).next() != RowRandom(7, keys[:1], device).next()


def test_random_numbers_of_rows_are_uniform_and_unrelated():
    rows = RowRandom(0, [("problem", sample) for sample in range(200)], torch.device("cpu"))
    numbers = torch.stack([rows.next() for _ in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # 40,000 uniform numbers: mean 1/2 with standard error 0.00144, variance 1/12 with standard error 0.00037.
    assert abs(numbers.mean() - 1 / 2) < 4 * 0.00144
    assert abs(numbers.var() - 1 / 12) < 4 * 0.00037
    # Correlations of 200 pairs have standard error 0.07; 4.5 of them for the largest of 19,900.
    correlations = torch.corrcoef(numbers.T) - torch.eye(200)
    assert correlations.abs().max() < 0.36


def test_top_k_keeps_the_likeliest_tokens_and_top_p_is_a_share_of_what_they_hold():
    two = torch.tensor([0, 0.625, 0, 0.375])  # 0.5 and 0.3 of 0.8
    torch.testing.assert_close(shares(PROBS, temperature=1.0, top_p=1.0, top_k=2), two, atol=1e-3, rtol=0)
    # 0.5 is 0.625 of what the two hold: it alone holds a share of 0.62, and not one of 0.63
    one = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(shares(PROBS, temperature=1.0, top_p=0.62, top_k=2), one, atol=1e-3, rtol=0)
    torch.testing.assert_close(shares(PROBS, temperature=1.0, top_p=0.63, top_k=2), two, atol=1e-3, rtol=0)
    torch.testing.assert_close(shares(PROBS, temperature=1.0, top_p=1.0, top_k=9), PROBS, atol=1e-3, rtol=0)


def test_top_k_of_equally_likely_tokens_keeps_those_with_lower_ids():
    picked = shares(torch.full((4,), 0.25), temperature=1.0, top_p=1.0, top_k=3)
    torch.testing.assert_close(picked, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]), atol=1e-3, rtol=0)


def test_top_k_keeps_what_transformers_keeps():
    warp = TopKLogitsWarper(5)
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    kept = warp(None, logits.clone()).isfinite()
    for row in range(3):
        picked = pick_tokens(logits[row].expand(2000, -1), temperature=1.0, top_p=1.0, top_k=5, uniforms=GRID)
        assert set(picked.tolist()) == set(kept[row].nonzero().flatten().tolist())
