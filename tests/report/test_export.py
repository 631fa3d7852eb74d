"""The result table as CSV and LaTeX."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dftune import report
from dftune.report.export import latex, render_csv, render_latex
from dftune.report.tables import ResultTable
from tests.report.test_tables import table_of, write_scored


def pair(folder: Path, sft: str, dynamic: str) -> ResultTable:
    write_scored(folder, "s0", "sft", 0, sft)
    write_scored(folder, "d0", "dynamic_ft", 0, dynamic)
    return table_of(folder)


def test_a_line_a_condition_holds_the_score_and_the_difference_in_per_cent(tmp_path: Path) -> None:
    rows = list(csv.DictReader(render_csv(pair(tmp_path, "1" * 40 + "0" * 60, "1" * 70 + "0" * 30)).splitlines()))
    assert [row["condition"] for row in rows] == ["sft", "dynamic_ft"]
    sft, dynamic = rows
    keys = ("benchmark", "protocol", "num_questions", "num_seeds")
    assert [sft[key] for key in keys] == ["arith", "greedy", "100", "1"]
    found = [float(sft[name]) for name in ("estimate", "low", "high")]
    assert found == pytest.approx([40, 30.94, 49.80], abs=0.005)  # Wilson at 40 of 100
    assert (sft["difference"], sft["p_holm"]) == ("", "")
    assert (dynamic["reference"], dynamic["difference"], dynamic["finding"]) == ("sft", "30.0000", "better")
    # 30 questions won and none lost: of 9,999 flips none is as large, and a single comparison needs no correction
    assert dynamic["p"] == dynamic["p_holm"] == "0.0001"


def test_bold_in_latex_is_what_is_better_and_nothing_within_the_noise(tmp_path: Path) -> None:
    clear = render_latex(pair(tmp_path / "clear", "1" * 40 + "0" * 60, "1" * 70 + "0" * 30))
    assert r"dynamic\_ft & \textbf{70.0} {\small (" in clear
    assert clear.count(r"\textbf") == 1
    noise = render_latex(pair(tmp_path / "noise", "1" * 40 + "0" * 60, "1" * 41 + "0" * 59))
    assert r"\textbf" not in noise
    assert "against sft, within the noise" in noise


def test_latex_has_as_many_cells_in_every_row_as_the_table_has_columns(study: Path) -> None:
    text = render_latex(report.read([study]).table)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 3 + 1  # header, base and two objectives, one difference
    assert {line.count(" & ") for line in rows} == {1}


@pytest.mark.parametrize(
    ("text", "set_as"),
    [
        ("power (alpha 0.5)", "power (alpha 0.5)"),
        ("a_b & 50 %", r"a\_b \& 50 \%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("\N{MINUS SIGN}1\n~^", r"$-$1 \textasciitilde{}\textasciicircum{}"),
    ],
)
def test_names_cannot_become_latex_commands(text: str, set_as: str) -> None:
    assert latex(text) == set_as


def test_all_four_files_are_written_and_name_no_text_of_a_model(study: Path, tmp_path: Path) -> None:
    paths = report.build([study], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.csv",
        "report.html",
        "report.md",
        "report.tex",
    ]
    assert paths.csv.read_text(encoding="utf-8").startswith("condition,objective,num_seeds,benchmark,protocol,")
    assert "boxed" not in paths.csv.read_text(encoding="utf-8") + paths.latex.read_text(encoding="utf-8")
