"""Reading run folders, whole and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dftune.files import append_jsonl
from dftune.report.load import Evaluation, find_runs, is_collection, read_run
from tests.report.conftest import verdict_rows, write_base_run, write_evaluation, write_manifest, write_training_run


def evaluation(verdicts: str, **settings: object) -> Evaluation:
    described = {"benchmark": "b", "protocol": "greedy", "num_problems": len(verdicts), "num_samples": 1}
    return Evaluation(1, described | settings, tuple(verdict_rows(verdicts)))


def test_a_folder_of_runs_is_expanded_by_one_level(study: Path) -> None:
    names = [path.name for path in find_runs([study])]
    assert names == ["base", "dynamic_ft-seed0", "dynamic_ft-seed1", "sft-seed0", "sft-seed1"]


def test_a_run_named_twice_is_read_once(study: Path) -> None:
    assert len(find_runs([study / "base", study])) == 5


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is missing.*run folders"):
        find_runs([tmp_path / "nowhere"])


def test_a_file_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("x")
    with pytest.raises(ValueError, match=r"run.txt is a file"):
        find_runs([tmp_path / "run.txt"])


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"is not a run folder and holds none.*manifest.json"):
        find_runs([tmp_path])


def test_a_partial_last_line_of_events_is_ignored(tmp_path: Path) -> None:
    run = write_training_run(tmp_path, "sft", 0, 0.5, num_questions=3)
    whole = read_run(run)
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": 201, "lo')
    assert read_run(run).train == whole.train


def test_a_broken_line_inside_events_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = write_training_run(tmp_path, "sft", 0, 0.5, num_questions=3)
    lines = (run / "events.jsonl").read_bytes().split(b"\n")
    lines[6] = b'{"kind": '
    (run / "events.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"events.jsonl, line 7"):
        read_run(run)


def test_an_event_without_a_step_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", 0, {"name": "sft"})
    append_jsonl(tmp_path / "events.jsonl", [{"kind": "train", "time": 0.0}])
    with pytest.raises(ValueError, match=r"row 1: no step"):
        read_run(tmp_path)


def test_of_two_rows_of_a_step_the_later_counts_and_kinds_do_not_mix(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", 0, {"name": "sft"})
    rows = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 2.0), (3, 1.0)]
    events = [{"kind": "train", "step": step, "time": float(i), "loss": loss} for i, (step, loss) in enumerate(rows)]
    append_jsonl(tmp_path / "events.jsonl", [*events, {"kind": "validation", "step": 3, "time": 9.0, "nll": 7.0}])
    run = read_run(tmp_path)
    assert [(row["step"], row["loss"]) for row in run.train] == [(1, 5.0), (2, 2.0), (3, 1.0)]
    assert [row["nll"] for row in run.validation] == [7.0]


def test_wall_time_leaves_the_pause_before_a_resume_out(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", 0, {"name": "sft"})
    moments = [("start", 0, 100.0), ("train", 1, 160.0), ("start", 1, 5000.0), ("train", 2, 5030.0)]
    append_jsonl(tmp_path / "events.jsonl", [{"kind": k, "step": s, "time": t} for k, s, t in moments])
    assert read_run(tmp_path).seconds == 90.0


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (["start", "end"], "finished"),
        (["start"], "unfinished"),
        (["start", "end", "start"], "unfinished"),
    ],
)
def test_status_is_that_of_the_last_session(tmp_path: Path, kinds: list[str], status: str) -> None:
    write_manifest(tmp_path, "train", 0, {"name": "sft"})
    events = [{"kind": kind, "step": 0, "time": float(i), "status": "finished"} for i, kind in enumerate(kinds)]
    append_jsonl(tmp_path / "events.jsonl", events)
    assert read_run(tmp_path).status == status


def test_an_evaluated_model_needs_no_recipe_and_no_events(tmp_path: Path) -> None:
    run = read_run(write_base_run(tmp_path, num_questions=4))
    assert (run.kind, run.recipe, run.train, run.status) == ("evaluate", {}, (), "")
    assert [(one.step, len(one.completions)) for one in run.evaluations] == [(0, 4)]


def test_a_completion_without_a_verdict_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, "evaluate", None, None)
    write_evaluation(tmp_path, 0, verdict_rows("10", verdict="maybe"))
    with pytest.raises(ValueError, match=r"arith.greedy.jsonl, row 1: .*'maybe'.*dftune grade"):
        read_run(tmp_path)


def test_settings_without_counts_are_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, "evaluate", None, None)
    (tmp_path / "evals" / "step-0").mkdir(parents=True)
    (tmp_path / "evals" / "step-0" / "b.greedy.json").write_text('{"benchmark": "b", "protocol": "greedy"}')
    with pytest.raises(ValueError, match="no num_problems, num_samples"):
        read_run(tmp_path)


def test_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", 0, {"name": "sft"})
    (tmp_path / "recipe.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"recipe.yaml: not valid YAML"):
        read_run(tmp_path)


def test_a_completion_that_stands_twice_counts_once_and_is_counted(tmp_path: Path) -> None:
    write_manifest(tmp_path, "evaluate", None, None)
    write_evaluation(tmp_path, 0, [*verdict_rows("00"), *verdict_rows("1")], num_problems=2)
    (found,) = read_run(tmp_path).evaluations
    assert (found.scores, found.num_repeated, found.complete) == ({"q0": 1.0, "q1": 0.0}, 1, True)


def test_scores_average_samples_and_leave_ungraded_completions_out() -> None:
    rows = [
        row | {"sample": sample}
        for sample, verdicts in enumerate(("11?", "10?", "?0?"))
        for row in verdict_rows(verdicts)
    ]
    found = Evaluation(1, {"num_problems": 3, "num_samples": 3}, tuple(rows))
    assert found.scores == {"q0": 1.0, "q1": 1 / 3}
    assert found.complete


def test_an_evaluation_with_fewer_lines_than_promised_is_incomplete() -> None:
    assert evaluation("101").complete
    assert not evaluation("101", num_problems=4).complete


def test_a_score_under_another_prompt_format_is_known_and_an_unknown_format_is_not_blamed() -> None:
    plain, chat = {"name": "plain", "fingerprint": "a"}, {"name": "chat", "fingerprint": "b"}
    assert evaluation("1", prompt_format=chat, trained_prompt_format=plain).format_differs
    assert not evaluation("1", prompt_format=chat, trained_prompt_format=chat).format_differs
    assert not evaluation("1", prompt_format=chat, trained_prompt_format=None).format_differs


def test_a_score_between_zero_and_one_counts_for_itself() -> None:
    rows = [{"id": "a", "verdict": "scored", "score": 0.25}, {"id": "b", "verdict": "ungraded", "score": None}]
    described = {"benchmark": "b", "protocol": "lm_eval", "num_problems": 2, "num_samples": 1}
    found = Evaluation(1, described, tuple(rows))
    assert found.scores == {"a": 0.25}


def test_a_scored_row_without_its_score_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = write_base_run(tmp_path, num_questions=3)
    path = next((run / "evals" / "step-0").glob("*.jsonl"))
    append_jsonl(path, [{"id": "x", "sample": 0, "verdict": "scored", "score": None}])
    with pytest.raises(ValueError, match=r"row \d+: .*scored with a score; found id 'x'"):
        read_run(run)


def test_the_runs_of_a_study_or_a_sweep_are_found_in_their_folders(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "sft-seed0", tmp_path / "s" / "cells" / "a")
    shutil.copytree(study / "base", tmp_path / "s" / "base" / "model")
    shutil.copytree(study / "sft-seed1", tmp_path / "s" / "trials" / "trial-0")
    names = [str(path.relative_to(tmp_path / "s")) for path in find_runs([tmp_path / "s"])]
    assert names == ["cells/a", "base/model", "trials/trial-0"]


def test_a_base_run_beside_others_is_one_run(study: Path) -> None:
    assert [path.name for path in find_runs([study])].count("base") == 1
    assert not is_collection(study)
