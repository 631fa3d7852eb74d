"""The audit of published tables finds what had been found in them before, by hand and by another script."""

from pathlib import Path

import pytest

from dftune.audit import audit, read

SEEDS = Path(__file__).parents[2] / "../shared/seeds"


def findings(prefix: str) -> list:
    found = sorted(SEEDS.glob(f"{prefix}_*.txt"))
    if not found:
        pytest.skip(f"the published tables are not at {SEEDS}")
    return audit(read(found[0]))


@pytest.fixture(scope="module")
def report():
    return findings("002")


def of(found, check, severity="error"):
    return [one for one in found if (one.check, one.severity) == (check, severity)]


def test_the_wrong_multipliers_are_found_and_the_right_one_is_not(report):
    wrong = {one.printed: one.recomputed for one in of(report, "claim") if one.printed.endswith("x")}
    assert wrong == {
        "5.9x": "7.49x",
        "1.4x": "1.69x",
        "1.58x": "2.16x",
        "3.8x": "6.71x",
        "1.4x to 5.9x": "1.69x to 7.49x",
    }


def test_the_gain_that_is_a_drop_and_the_borrowed_score_are_found(report):
    others = {(one.printed, one.recomputed) for one in of(report, "claim") if not one.printed.endswith("x")}
    assert others == {("+1.86", "-1.87"), ("8.28", "5.16"), ("worse", "not worse")}
    assert any("DeepSeekMath-7B, SFT" in one.why for one in of(report, "claim"))


def test_the_one_score_that_no_count_gives_is_found_with_its_neighbours(report):
    (impossible,) = of(report, "granularity")
    assert (impossible.printed, impossible.recomputed) == ("1.01", "0.94 or 1.09")
    assert "LLaMA-3.1-8B, Base, AMC23" in impossible.where


def test_the_scores_that_were_cut_off_are_found(report):
    assert sorted(one.printed for one in of(report, "granularity", "warning")) == [
        "0.20",
        "0.61",
        "27.96",
        "35.32",
        "44.21",
    ]


def test_columns_rounded_before_averaging_are_counted(report):
    notes = [one.why for one in of(report, "granularity", "note")]
    assert len(notes) == 2
    assert notes[0].startswith("8 of 35 scores are multiples of 1 / (272 x 16); 35 are")
    assert notes[1].startswith("13 of 35 scores are multiples of 1 / (30 x 16); 33 are")


def test_bold_scores_that_are_not_the_best_are_found(report):
    assert {(one.printed, one.recomputed) for one in of(report, "bold")} == {
        ("6.87", "8.13"),
        ("38.13", "40.00"),
        ("16.25", "18.28"),
        ("7.93", "8.34"),
    }


def test_two_runs_under_one_label_are_found(report):
    repeats = of(report, "repeat", "warning")
    assert {(one.printed, one.recomputed) for one in repeats} == {("43.14", "43.76"), ("62.50", "64.89")}


def test_a_lead_on_four_of_five_benchmarks_that_is_called_inconsistent_is_noted(report):
    (note,) = of(report, "claim", "note")
    assert (note.printed, note.recomputed) == ("inconsistent", "better on 4 of 5")
    assert note.why == "Qwen2.5-Math-7B iw-SFT has more than DFT on all benchmarks but Minerva Math"


def test_all_averages_and_all_other_gains_are_right(report):
    assert not of(report, "average") + of(report, "gain")
    assert len([one for one in report if one.severity == "error"]) == 13


def test_the_repetition_has_two_scores_that_were_cut_off():
    found = findings("000")
    assert sorted(one.printed for one in found if one.severity != "note") == ["0.264", "0.286"]


@pytest.mark.parametrize("prefix", ["003", "004"])
def test_the_tables_without_a_mistake_raise_no_alarm(prefix):
    assert [one for one in findings(prefix) if one.severity != "note"] == []
