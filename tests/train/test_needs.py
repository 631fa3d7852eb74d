"""What cannot be trained is refused at the start, with what to do about it."""

import pytest
from tests.train.runs import run

from dftune.objectives import get_objective
from dftune.train.config import TrainConfig
from dftune.train.loop import train
from dftune.train.needs import check_objective

HEAD = "import torch\nfrom dftune.objectives import LossSum, objective\n\n\n"


def check(name: str, *, grouped: bool = False, settings=None, **options) -> None:
    config = TrainConfig(steps=1, **(settings or {}))
    check_objective(get_objective(name, **options), config, grouped=grouped)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("ppo", {}, "needs rollouts with advantages, and the loops that make them come later"),
        ("grpo", {}, "needs rollouts with advantages, and the loops that make them come later"),
        ("psft", {}, "Set train.inner_loop"),
        ("sft", {"inner_loop": 2}, "has no use for it"),
        ("talr", {"normalization": "micro_batch_mean_sum"}, "Leave train.normalization out"),
        ("dpo", {}, "Set data.columns.negatives"),
        ("discriminative_ft", {}, "Set data.columns.negatives"),
    ],
)
def test_what_the_recipe_lacks_is_named(name, settings, expected):
    with pytest.raises(ValueError, match=expected):
        check(name, settings=settings)


def test_it_is_said_before_the_data_is_looked_at(make_recipe):
    recipe, _ = make_recipe(overrides=("objective.name=dpo",))
    with pytest.raises(ValueError, match="negatives"):
        train(recipe, data=None, say=print)
    assert not recipe.output.exists()


@pytest.mark.parametrize(
    ("declared", "body", "expected"),
    [
        ("", "return tokens.logps.sum()", "returned Tensor, not a LossSum"),
        ("", "return LossSum(-tokens.logps)", "not a tensor of one number: sum over the tokens"),
        ("", "return LossSum(-tokens.logps.detach().sum())", "everything was detached"),
        ("", "return LossSum((tokens.logps - tokens.logps.max()).log().sum())", "the total is"),
        ("", "return LossSum(-tokens.logps.sum(), metrics={'p': tokens.logps.exp()})", r"metrics \['p'\]"),
        ("", "return LossSum(-tokens.need('entropy').sum())", "must list it in `needs`"),
        ("", "raise RuntimeError('boom')", "RuntimeError: boom"),
        ("", "return LossSum(-tokens.logps.sum() / len(tokens.logps))", "does not add up over tokens.*'batch'"),
        (
            ", needs=['temperature']",
            "return LossSum(-tokens.logps.sum())",
            "needs temperature, which the engine does not",
        ),
    ],
)
def test_a_broken_objective_of_ones_own_is_refused_with_its_reason(tmp_path, declared, body, expected):
    file = tmp_path / "mine.py"
    file.write_text(f"{HEAD}@objective(unit='token', separable='token'{declared})\ndef mine(tokens):\n    {body}\n")
    with pytest.raises(ValueError, match=expected):
        check(f"{file}:mine")


@pytest.mark.parametrize(("scope", "fits"), [("token", False), ("sequence", True), ("batch", True)])
def test_a_scope_declared_too_narrowly_is_noticed(tmp_path, scope, fits):
    """A loss of sequence means adds up over sequences, and not over tokens."""
    file = tmp_path / "mine.py"
    file.write_text(
        f"{HEAD}@objective(unit='sequence', separable='{scope}')\ndef mine(tokens):\n"
        "    return LossSum(-(tokens.sequence_sums(tokens.logps) / tokens.sequence_lengths()).square().sum())\n"
    )
    if fits:
        check(f"{file}:mine")
    else:
        with pytest.raises(ValueError, match="does not add up over tokens"):
            check(f"{file}:mine")


def test_data_with_negatives_trains_an_objective_that_has_no_use_for_them_on_the_completions_alone(make_recipe):
    recipe, _ = make_recipe("with", ("objective.name=sft", "data.columns.negatives=wrong", "train.steps=1"))
    with_negatives = run(recipe)
    assert with_negatives.model.is_dir()
    held_out = [
        line for line in (with_negatives.path / "events.jsonl").read_text().splitlines() if "validation" in line
    ]
    assert '"num_examples": 16' in held_out[0]
