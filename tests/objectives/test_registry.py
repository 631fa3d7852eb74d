"""Objectives are found by exact names, and their options are checked."""

import pytest

from dftune.objectives import OBJECTIVES, get_objective


@pytest.mark.parametrize("name", ["dft", "DFT", "dft2"])
def test_a_bare_dft_is_an_error_that_names_both_methods(name):
    with pytest.raises(ValueError, match=r"dynamic_ft .*2508\.05629.*discriminative_ft .*2502\.18679"):
        get_objective(name)


def test_an_unknown_name_points_to_the_nearest():
    with pytest.raises(ValueError, match="did you mean dynamic_ft"):
        get_objective("dynamicft")


def test_all_wrong_options_are_reported_at_once():
    with pytest.raises(ValueError, match=r"alpha: .*found -1; beta: not an option of power \(its options: alpha\)"):
        get_objective("power", alpha=-1, beta=2)


def test_defaults_are_filled_in():
    assert get_objective("power").options == {"alpha": 0.5}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_docstring_with_its_equation_and_a_page(name, request):
    assert "total = " in get_objective(name).function.__doc__
    assert (request.config.rootpath / "docs" / "objectives" / f"{name}.md").is_file()
