"""Objectives are found by exact names, and their options are checked."""

import re

import pytest
from tests.objectives.batches import tokens_of

from dftune.objectives import OBJECTIVES, get_objective
from dftune.objectives.state import LogEstimates


@pytest.mark.parametrize("name", ["dft", "DFT", "dft2"])
def test_a_bare_dft_is_an_error_that_names_both_methods(name):
    with pytest.raises(ValueError, match=r"dynamic_ft .*2508\.05629.*discriminative_ft .*2502\.18679"):
        get_objective(name)


def test_an_unknown_name_points_to_the_nearest():
    with pytest.raises(ValueError, match="did you mean dynamic_ft"):
        get_objective("dynamicft")


def test_all_wrong_options_are_reported_at_once():
    with pytest.raises(
        ValueError, match=r"alpha: .*found -1; beta: not an option of power \(its options: alpha, p_min, p_max\)"
    ):
        get_objective("power", alpha=-1, beta=2)


def test_defaults_are_filled_in():
    assert get_objective("power").options == {"alpha": 0.5, "p_min": None, "p_max": None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_docstring_with_its_equation_and_a_page(name, request):
    assert re.search(r"^ {8}total += ", get_objective(name).function.__doc__, re.MULTILINE)
    assert (request.config.rootpath / "docs" / "objectives" / f"{name}.md").is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many"])
def test_an_option_is_a_finite_number(value):
    with pytest.raises(ValueError, match="temperature"):
        get_objective("iw_sft", temperature=value)


@pytest.mark.parametrize(
    ("name", "options", "needs", "separable"),
    [
        ("asft", {}, {"ref_kl"}, "token"),
        ("asft", {"kl": "k3"}, {"ref_logps"}, "token"),
        ("deft", {}, {"sum_sq_probs"}, "token"),
        ("deft", {"exponent": "cayley"}, set(), "batch"),
        ("discriminative_ft", {}, {"groups", "ref_logps"}, "group"),
        ("discriminative_ft", {"ref_free": True}, {"groups"}, "group"),
        ("dpo", {"reference_free": True}, {"groups"}, "group"),
        ("grpo", {"kl_weight": 0.1}, {"old_logps", "advantages", "ref_logps"}, "sequence"),
    ],
)
def test_needs_and_separability_follow_the_options(name, options, needs, separable):
    objective = get_objective(name, **options)
    assert (objective.needs, objective.separable) == (needs, separable)


def test_a_state_is_given_to_stateful_objectives_and_to_no_other():
    tokens = tokens_of([-1.0])
    with pytest.raises(AssertionError, match="if and only if it is stateful"):
        get_objective("sft")(tokens, state=LogEstimates())
    with pytest.raises(AssertionError, match="if and only if it is stateful"):
        get_objective("discriminative_ft")(tokens)
