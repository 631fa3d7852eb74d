"""Two saved evaluations side by side: the finding, what is refused, and what is marked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dftune.cli import main
from dftune.evaluate.against import Comparison, compare_all, format_comparisons
from dftune.evaluate.family import holm
from dftune.evaluate.metrics import paired_difference
from dftune.evaluate.saved import find_saved
from dftune.files import fingerprint, write_json, write_jsonl

PLAIN = {"name": "plain", "fingerprint": "p"}


def save(
    folder: Path,
    verdicts: str,
    *,
    step: int = 0,
    protocol: str = "greedy",
    num_samples: int = 1,
    num_problems: int | None = None,
    prefix: str = "q",
    extra: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """An evaluation as `dftune evaluate` leaves it: ``1`` right, ``0`` wrong, ``u`` ungraded; samples in a row."""
    meaning = {"1": "correct", "0": "incorrect", "u": "ungraded"}
    rows = [
        {
            **{
                "id": f"{prefix}{index // num_samples}",
                "sample": index % num_samples,
                "problem": "2 + 6?",
                "target": "8",
            },
            **{"verdict": meaning[one], "answer": "8" if one == "1" else "7", "finish_reason": "stop", "num_tokens": 5},
            **{"completion": "It is so.", "rule": "box", **(extra or {})},
        }
        for index, one in enumerate(verdicts)
    ]
    evals = folder / "evals" / f"step-{step}"
    write_jsonl(evals / f"sums.{protocol}.jsonl", rows)
    described = {
        **{"benchmark": "sums", "protocol": protocol, "benchmark_fingerprint": fingerprint(len(rows), prefix)},
        **{"num_problems": num_problems or len(rows) // num_samples, "num_samples": num_samples, "step": step},
        **{"prompt_format": PLAIN, "trained_prompt_format": None, "grader": "1", "engine": "local"},
        "sampling": {"temperature": 0.0, "max_tokens": 64, "seed": 0},
    }
    write_json(evals / f"sums.{protocol}.json", described | settings)
    return folder


def compared(ours: Path, theirs: Path) -> Comparison:
    (found,) = compare_all(find_saved(str(ours)), find_saved(str(theirs)), str(theirs))
    return found


def test_the_difference_is_the_paired_one_of_the_same_questions(tmp_path: Path) -> None:
    ours, theirs = "1111100000" * 6, "1100110000" * 6
    found = compared(save(tmp_path / "a", ours), save(tmp_path / "b", theirs))
    expected = paired_difference([[int(x)] for x in ours], [[int(x)] for x in theirs], seeds_match=True)
    assert found.difference == expected
    assert (found.ours.mean, found.theirs.mean) == (0.5, 0.4)
    assert [flip.id for flip in found.gained[:3]] == ["q2", "q3", "q12"]
    assert (len(found.gained), len(found.lost)) == (12, 6)


@pytest.mark.parametrize(
    ("ours", "theirs", "finding"),
    [("1" * 60, "01" * 30, "better"), ("01" * 30, "1" * 60, "worse"), ("10" * 30, "01" * 30, "cannot tell")],
)
def test_the_finding_is_one_of_three_words(tmp_path: Path, ours: str, theirs: str, finding: str) -> None:
    assert compared(save(tmp_path / "a", ours), save(tmp_path / "b", theirs)).difference.word == finding


def test_other_questions_are_refused_and_ids_are_named(tmp_path: Path) -> None:
    ours, theirs = save(tmp_path / "a", "1" * 10), save(tmp_path / "b", "1" * 3)
    with pytest.raises(ValueError, match=r"only in .*a/evals.*: q3, q4, q5, q6, q7 and 2 more\. A paired"):
        compared(ours, theirs)
    with pytest.raises(ValueError, match=r"only in .*a/evals.*: q0, q1; only in .*c/evals.*: x0, x1"):
        compared(save(tmp_path / "a", "11"), save(tmp_path / "c", "11", prefix="x"))


def test_another_reference_answer_under_the_same_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another problem or reference answer: q0, q1"):
        compared(save(tmp_path / "a", "11"), save(tmp_path / "b", "11", extra={"target": "9"}))


def test_an_incomplete_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b/evals.* holds 2 of 5 completions"):
        compared(save(tmp_path / "a", "11"), save(tmp_path / "b", "11", num_problems=5))


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"grader": "2"}, "other grader: 1 here, 2 there"),
        (
            {"sampling": {"temperature": 1.0, "max_tokens": 64, "seed": 0}},
            "other sampling: temperature 0.0, max_tokens",
        ),
        ({"prompt_format": {"name": "chat", "fingerprint": "c"}}, "other prompt format: plain here, chat there"),
        (
            {"trained_prompt_format": {"name": "chat", "fingerprint": "c"}},
            "prompts there are rendered as plain, the model",
        ),
    ],
)
def test_what_differs_beside_the_model_is_marked(tmp_path: Path, settings: dict[str, Any], mark: str) -> None:
    found = compared(save(tmp_path / "a", "1010"), save(tmp_path / "b", "1010", **settings))
    assert len(found.marks) == 1
    assert found.marks[0].startswith(mark)
    assert f"mind: {mark}" in format_comparisons([found])


def test_another_seed_of_the_sampling_is_no_difference(tmp_path: Path) -> None:
    other = {"temperature": 0.0, "max_tokens": 64, "seed": 5}
    assert compared(save(tmp_path / "a", "10"), save(tmp_path / "b", "10", sampling=other)).marks == ()


def test_the_only_protocol_of_the_other_side_is_taken_and_marked(tmp_path: Path) -> None:
    sampled = save(tmp_path / "b", "11001100", protocol="sample", num_samples=2)
    found = compared(save(tmp_path / "a", "1010"), sampled)
    assert found.theirs.mean == 0.5
    assert "other protocol: greedy here, avg@2 there" in found.marks


def test_questions_that_one_side_could_not_grade_are_left_out_and_counted(tmp_path: Path) -> None:
    found = compared(save(tmp_path / "a", "1u10"), save(tmp_path / "b", "u010"))
    assert (found.num_left_out, found.difference.num_questions) == (2, 2)


def test_the_sampling_part_is_told_where_both_sides_have_several_samples(tmp_path: Path) -> None:
    ours = save(tmp_path / "a", "10110011" * 5, protocol="sample", num_samples=2)
    theirs = save(tmp_path / "b", "10100010" * 5, protocol="sample", num_samples=2)
    found = compared(ours, theirs)
    # Twenty questions of two samples. Ours: 10 11 00 11, so 5 differ within; theirs: 10 10 00 10, so 15 do. Such a
    # question has variance 1/2, its mean 1/4; over 20 questions squared.
    assert found.sampling_error == pytest.approx(((5 / 4 + 15 / 4) / 400) ** 0.5)
    assert compared(save(tmp_path / "c", "10"), save(tmp_path / "d", "10")).sampling_error is None


def test_clusters_of_the_benchmark_are_kept_together(tmp_path: Path) -> None:
    def clustered(folder: Path, verdicts: str) -> Path:
        save(folder, verdicts)
        path = folder / "evals/step-0/sums.greedy.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_jsonl(path, ({**row, "cluster": f"c{index // 10}"} for index, row in enumerate(rows)))
        return folder

    ours, theirs = "1" * 20 + "0" * 20, "0" * 40
    plain = compared(save(tmp_path / "a", ours), save(tmp_path / "b", theirs))
    kept = compared(clustered(tmp_path / "c", ours), clustered(tmp_path / "d", theirs))
    assert (plain.difference.word, kept.difference.word) == ("better", "cannot tell")


def test_saved_results_are_found_by_run_step_folder_file_and_checkpoint(tmp_path: Path) -> None:
    run = save(save(tmp_path / "run", "10", step=2), "11", step=10)
    write_json(run / "manifest.json", {"kind": "train", "name": "run"})
    (run / "checkpoints/step-2").mkdir(parents=True)

    def step(where: Path, **options: Any) -> list[str]:
        return [one.path.parent.name for one in find_saved(str(where), **options)]

    assert step(run) == ["step-10"]
    assert step(run, step=2) == step(run / "evals/step-2") == step(run / "checkpoints/step-2") == ["step-2"]
    assert step(run / "evals/step-2/sums.greedy.jsonl") == ["step-2"]
    assert step(run, step=3) == []


def test_results_of_a_model_are_found_where_evaluate_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("runs/eval-small"), "10")
    assert len(find_saved("models/small")) == 1
    assert find_saved("models/other") == []


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "b", "10", benchmark="sums")
    (ours,) = find_saved(str(save(tmp_path / "a", "10", benchmark="products")))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_all([ours], find_saved(str(tmp_path / "b")), "b")


def test_the_command_compares_saved_results_without_a_model(tmp_path: Path) -> None:
    ours, theirs = save(tmp_path / "a", "1" * 40), save(tmp_path / "b", "10" * 20)
    code = (
        "import sys; from dftune.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(status)"
    )
    arguments = ["evaluate", str(ours), "--against", str(theirs), "--json", str(tmp_path / "out.json"), "--show", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "better" in done.stdout
    assert "20 questions better here:\n    q1: 8 here, 7 there; reference 8\n    q3:" in done.stdout
    (found,) = json.loads((tmp_path / "out.json").read_text())["comparisons"]
    assert (found["finding"], found["difference"]["mean"]) == ("better", 0.5)
    assert (found["ours"]["mean"], found["theirs"]["mean"], len(found["gained"])) == (1.0, 0.5, 20)


def test_the_command_prints_and_stores_a_diagnosis_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path / "a", "1" * 30 + "0" * 10)
    assert main(["evaluate", str(run), "--diagnose"]) == 0
    assert "accuracy        75.0 %" in capsys.readouterr().out
    stored = json.loads((run / "evals/step-0/sums.greedy.diagnosis.json").read_text())
    assert stored["categories"]["correct"]["count"] == 30
    assert [one.path.name for one in find_saved(str(run))] == ["sums.greedy.jsonl"]


def test_the_command_refuses_an_other_side_without_results_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save(tmp_path / "a", "10")
    assert main(["evaluate", str(run), "--against", str(tmp_path / "nothing")]) != 0
    assert "no saved results there" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--json", "x.json"]) != 0
    assert "give --against OTHER" in capsys.readouterr().err


def test_every_protocol_of_a_file_is_compared_with_its_own(tmp_path: Path) -> None:
    made = {"protocol": "sample", "num_samples": 4, "protocols": ["avg@4", "pass@2", "maj@4"]}
    # Four samples a question; equal wrong answers, so a majority of them wins where two or more are wrong.
    ours, theirs = save(tmp_path / "a", "11001110" * 10, **made), save(tmp_path / "b", "10001100" * 10, **made)
    found = {one.protocol: one for one in compare_all(find_saved(str(ours)), find_saved(str(theirs)), "b")}
    assert list(found) == ["avg@4", "pass@2", "maj@4"]
    assert (found["avg@4"].ours.mean, found["avg@4"].theirs.mean) == (5 / 8, 3 / 8)
    # pass@2 of 2, 3, 1 and 2 right in four: 1 - C(2,2)/C(4,2), 1, 1 - C(3,2)/C(4,2), 5/6.
    assert found["pass@2"].ours.mean == pytest.approx((5 / 6 + 1) / 2)
    assert found["pass@2"].theirs.mean == pytest.approx((1 / 2 + 5 / 6) / 2)
    # maj@4: two against two is half a win.
    assert (found["maj@4"].ours.mean, found["maj@4"].theirs.mean) == (0.75, 0.25)
    assert [one.sampling_error is None for one in found.values()] == [False, True, True]


def test_several_benchmarks_are_corrected_for_their_number(tmp_path: Path) -> None:
    """Eight of 100 won is clear alone; among twenty benchmarks of which nineteen show next to nothing it is not."""
    won = {f"b{index:02d}": 8 if index == 0 else 1 for index in range(20)}

    def saved(folder: Path, right: dict[str, int]) -> list[Any]:
        for name, number in right.items():
            one = save(folder / name, "1" * number + "0" * (100 - number), benchmark=name)
            for file in (one / "evals/step-0").iterdir():
                file.rename(file.with_name(file.name.replace("sums", name)))
        return [one for name in right for one in find_saved(str(folder / name))]

    ours, theirs = saved(tmp_path / "a", won), saved(tmp_path / "b", dict.fromkeys(won, 0))
    (alone,) = compare_all(ours[:1], theirs[:1], "b")
    assert (alone.difference.word, alone.difference.p_adjusted) == ("better", None)
    assert "Holm" not in format_comparisons([alone])
    together = compare_all(ours, theirs, "b")
    assert [one.difference.word for one in together] == ["cannot tell"] * 20
    assert [one.difference.p_adjusted for one in together] == holm([one.difference.p for one in together])
    assert together[0].difference.detectable > alone.difference.detectable
    said = format_comparisons(together)
    assert "Findings hold for all 20 comparisons together (Holm)" in said
    assert together[0].to_json()["difference"]["p_adjusted"] == together[0].difference.p_adjusted
