"""Many conditions: a chart for each of their circumstances, and one look a method."""

from __future__ import annotations

from pathlib import Path

import pytest

from dftune.report.conditions import styles_of
from dftune.report.figures import build_sections
from dftune.report.panels import panels
from dftune.report.sensitivity import sensitivity_charts
from tests.report.test_learning import write_run
from tests.report.test_tables import table_of

OBJECTIVES = ("sft", "dynamic_ft", "eaft", "power", "talr")


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five objectives on two data sets, with three learning rates on the first objective."""
    folder = tmp_path_factory.mktemp("ten")
    for place, source in enumerate(("clean", "noisy")):
        for objective in OBJECTIVES:
            write_run(folder, objective, 0, [2.0, 1.5, 1.0 + place], [3, 5 + place], source=source)
    return folder


def test_more_conditions_than_colours_are_drawn_by_circumstances_with_a_colour_a_method(ten: Path) -> None:
    table = table_of(ten)
    assert [panel.circumstances for panel in panels(table.trained)] == ["source clean", "source noisy"]
    styles = {(row.method, row.details): row.style for row in table.trained}
    for objective in OBJECTIVES:
        assert styles[objective, "source clean"] == styles[objective, "source noisy"]
    assert len(set(styles.values())) == 5
    titles = [figure.title for section in build_sections(table, table) for figure in section.figures]
    assert titles.count("NLL on held-out rows: source clean") == titles.count("NLL on held-out rows: source noisy") == 1
    assert "Accuracy over training: source clean" in titles
    assert "NLL on held-out rows" not in titles
    (loss,) = [section for section in build_sections(table, table) if section.title == "Loss"]
    for figure in loss.figures:
        assert [label for _, label in figure.legend or loss.legend] == sorted(
            OBJECTIVES, key=lambda name: name != "sft"
        )


def test_few_conditions_stay_in_one_chart_with_their_whole_names(ten: Path) -> None:
    table = table_of(ten)
    (panel,) = panels(table.trained[:8])
    assert panel.title == ""
    assert panel.label(table.trained[0]) == "sft (source clean)"
    assert styles_of(["a", "b", "a"]) == [1, 2, 3]
    assert styles_of(["a", "b", "c"] * 3) == [1, 2, 3] * 3


def test_rates_of_many_conditions_are_drawn_by_circumstances_on_one_scale(tmp_path: Path) -> None:
    for place, source in enumerate(("clean", "noisy")):
        for objective in OBJECTIVES:
            for lr in (1e-4, 1e-3):
                write_run(tmp_path, objective, 0, [2.0, 1.0 + place + lr], [3 + place], lr=lr, source=source)
    table = table_of(tmp_path)
    charts = list(sensitivity_charts(table, table.trained))
    assert [chart.title for chart in charts] == [
        "Accuracy by learning rate: source clean",
        "Accuracy by learning rate: source noisy",
        "NLL on held-out rows by learning rate: source clean",
        "NLL on held-out rows by learning rate: source noisy",
    ]
    assert [line.label for line in charts[0].lines] == ["sft", "dynamic_ft", "eaft", "power", "talr"]
    looks = {row.method: row.style for row in table.trained}
    for chart in charts:
        assert {line.label: line.style for line in chart.lines} == looks
    assert charts[2].y_scale == charts[3].y_scale
    assert charts[3].y_scale.low <= 1.0
    assert charts[3].y_scale.high >= 2.0
