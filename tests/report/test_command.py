"""``dftune report`` from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dftune.cli import main


def test_report_prints_verdict_table_and_path_and_writes_both_files(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study), "--output", str(tmp_path / "out"), "--title", "My study"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("On arith (200 questions), dynamic_ft answers ")
    assert "| condition " in printed
    assert printed.rstrip().endswith(f"Report: {tmp_path / 'out' / 'report.html'}")
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").startswith("# My study\n")


def test_without_an_output_the_report_lies_beside_the_runs_and_is_no_run_itself(study: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(study, tmp_path / "runs"))
    assert main(["report", str(runs / "sft-seed0"), str(runs / "sft-seed1")]) == 0
    assert (runs / "report.html").is_file()
    assert main(["report", str(runs)]) == 0


def test_the_report_on_a_study_leaves_the_studys_own_page_alone(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s" / "cells")
    (tmp_path / "s" / "report.html").write_text("its own", encoding="utf-8")
    assert main(["report", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "report.html").read_text(encoding="utf-8") == "its own"
    assert (tmp_path / "s" / "report" / "report.html").is_file()


def test_a_folder_that_is_no_run_is_refused_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not a run folder and holds none" in error
    assert "Traceback" not in error


def test_help_is_worth_reading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["report", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "replicates" in printed
    assert "dftune report runs " in printed
