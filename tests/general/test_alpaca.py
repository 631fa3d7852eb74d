import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from dftune import report
from dftune.cli import main
from dftune.general.alpaca import load_instructions
from dftune.general.judge import Judge, JudgeOptions, read_judgement

PROGRAM = os.environ.get("ALPACA_EVAL") or shutil.which("alpaca_eval")
INSTRUCTIONS = ["3+4=", "Say seven:=", "9-2="]
# What alpaca_eval 0.6.6 writes (columns and keys of a real run with an annotator of its own), for other numbers.
HEAD = ",win_rate,standard_error,mode,avg_length,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate"
LINE = "out-step-0,58.33333333333333,22.04792759220492,community,1,1,1,1,3,50.0"
REFERENCE = "the reference"


@pytest.fixture
def here(tmp_path, monkeypatch, likes_a):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [{"instruction": text, "dataset": "sums"} for text in INSTRUCTIONS]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"instruction": text, "output": "x", "generator": REFERENCE} for text in INSTRUCTIONS]
    Path("reference.json").write_text(json.dumps(answers))
    return tmp_path


def command(model, *more):
    shared = ["--instructions", "asked.jsonl", "--prompt-format", "cot", "--max-tokens", "3", "--output", "out"]
    return ["evaluate", str(model), "--tasks", "alpaca_eval", *shared, "--reference-outputs", "reference.json", *more]


def rows():
    return [json.loads(line) for line in Path("out/evals/step-0/alpaca_eval.greedy.jsonl").read_text().splitlines()]


def judged(preferences, *, line=LINE, head=HEAD):
    """Files as alpaca_eval leaves them, in the folder of the annotator ``mine``."""
    folder = Path("out/evals/step-0/alpaca_eval/mine")
    folder.mkdir(exist_ok=True)
    annotations = [
        {
            "instruction": row["problem"],
            "output_1": "x",
            "generator_1": REFERENCE,
            "dataset": "sums",
            "output_2": row["completion"].strip(),
            "generator_2": "out-step-0",
            "annotator": "mine",
            "preference": preference,
            "preference_version": "alpaca_eval==0.6.6",
        }
        for row, preference in zip(rows(), preferences, strict=True)
    ]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "leaderboard.csv").write_text(f"{head}\n{line}\n")


def test_outputs_are_written_as_alpaca_eval_reads_them_and_the_next_step_is_said(here, likes_a, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(command(likes_a)) == 0
    shown = capsys.readouterr().out
    assert "alpaca_eval is not judged: alpaca_eval is not on the path" in shown
    assert "--model_outputs out/evals/step-0/alpaca_eval/model_outputs.json" in shown
    outputs = json.loads(Path("out/evals/step-0/alpaca_eval/model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == INSTRUCTIONS
    assert [row["output"] for row in outputs] == ["A"] * 3  # `Answer:` is followed by a space, which is stripped
    assert {(row["generator"], row["dataset"]) for row in outputs} == {("out-step-0", "sums")}
    assert {row["verdict"] for row in rows()} == {"ungraded"}


def test_a_judgement_made_by_hand_is_read_when_the_command_is_run_again(here, likes_a, capsys):
    assert main(command(likes_a, "--annotator", "mine", "--alpaca-eval", "/bin/true")) == 2  # judges nothing
    made = rows()
    judged([2.0, 1.0, 1.75])
    assert main(command(likes_a, "--annotator", "mine")) == 0
    assert "58.3 %" in capsys.readouterr().out
    assert [row["completion"] for row in rows()] == [row["completion"] for row in made]
    assert [(row["verdict"], row["score"]) for row in rows()] == [("scored", 1.0), ("scored", 0.0), ("scored", 0.75)]
    settings = json.loads(Path("out/evals/step-0/alpaca_eval.greedy.json").read_text())
    assert settings["grader"] == "alpaca_eval 0.6.6 mine"
    assert settings["judge"]["win_rate"] == pytest.approx(58.3333, abs=1e-3)
    assert settings["judge"]["reference"] == REFERENCE
    assert main(command(likes_a, "--annotator", "mine", "--alpaca-eval", "/bin/false")) == 0  # nothing is judged twice
    assert json.loads(Path("out/evals/step-0/alpaca_eval.greedy.json").read_text()) == settings


def test_the_report_shows_win_rates_the_length_controlled_one_too(here, likes_a):
    main(command(likes_a))
    judged(
        [2.0, 1.0, 1.75],
        head=f"{HEAD},length_controlled_winrate,lc_standard_error",
        line=f"{LINE},51.25,1.5",
    )
    assert main(command(likes_a, "--annotator", "mine")) == 0
    found = report.read([Path("out")])
    (column,) = found.table.columns
    cell = found.table.cell(found.table.conditions[0], column)
    assert column.label == "alpaca_eval.greedy"
    assert cell.estimate.mean == pytest.approx(1.75 / 3)
    shown = report.build([Path("out")], Path("report")).html.read_text()
    assert "length controlled winrate 51.25, lc standard error 1.50" in shown


def test_an_answer_of_the_judge_that_cannot_be_read_is_ungraded(here, likes_a):
    main(command(likes_a))
    judged([2.0, None, 1.0])
    assert main(command(likes_a, "--annotator", "mine")) == 0
    assert [row["verdict"] for row in rows()] == ["scored", "ungraded", "scored"]
    assert rows()[1]["reason"] == "the judge's answer could not be read"


def test_a_judgement_of_other_outputs_does_not_count(here, likes_a, monkeypatch):
    main(command(likes_a))
    judged([2.0, 1.0, 1.0])
    monkeypatch.setenv("PATH", "")
    assert main(command(likes_a, "--annotator", "mine", "--overwrite", "--max-tokens", "1")) == 0
    assert {row["verdict"] for row in rows()} == {"ungraded"}


def test_outputs_survive_a_judge_that_fails_and_are_not_made_again(here, likes_a, capsys):
    assert main(command(likes_a, "--annotator", "mine", "--alpaca-eval", "/bin/false")) == 2
    assert "alpaca_eval failed (exit status 1)" in capsys.readouterr().err
    path = Path("out/evals/step-0/alpaca_eval.greedy.jsonl")
    made = [row["completion"] for row in rows()]
    path.write_text(path.read_text().replace('"completion": "', '"completion": "kept '))
    assert main(command(likes_a, "--annotator", "mine", "--alpaca-eval", "/bin/false")) == 2
    assert [row["completion"] for row in rows()] == [f"kept {text}" for text in made]


def test_only_missing_outputs_are_made(here, likes_a, monkeypatch):
    main(command(likes_a))
    path = Path("out/evals/step-0/alpaca_eval.greedy.jsonl")
    first, *_ = path.read_text().splitlines(keepends=True)
    path.write_text(first.replace('"completion": "', '"completion": "kept ') + '{"id": "1", "samp')
    main(command(likes_a))
    assert [row["id"] for row in rows()] == ["0", "1", "2"]
    assert [row["completion"].startswith("kept") for row in rows()] == [True, False, False]


def test_other_instructions_are_refused_until_overwritten(here, likes_a, capsys):
    main(command(likes_a))
    Path("asked.jsonl").write_text('{"instruction": "Another:"}\n')
    assert main(command(likes_a)) == 2
    assert "instructions: " in capsys.readouterr().err
    assert main(command(likes_a, "--overwrite")) == 0
    assert [row["problem"] for row in rows()] == ["Another:"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a"}, {"prompt": "b"}]', "row 1: no `instruction`"),
        ('[{"instruction": "a"}, {"instruction": "a"}]', "row 1: the same instruction as row 0"),
        ("[]", "expected a list of objects"),
    ],
)
def test_damaged_instructions_are_refused(tmp_path, text, message):
    (tmp_path / "asked.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_instructions(tmp_path / "asked.json")


def test_other_instructions_than_alpaca_evals_need_a_reference_and_have_no_length_controlled_rate(tmp_path):
    own = Judge(JudgeOptions(command="/bin/true", annotator="mine"), tmp_path / "o.json", "me", 3)
    assert "give --reference-outputs" in own.lacks()
    assert own.command()[-2:] == ["--fn_metric", "get_winrate"]
    full = Judge(JudgeOptions(command="/bin/true", annotator="mine"), tmp_path / "o.json", "me", 805)
    assert full.lacks() == ""
    assert "--fn_metric" not in full.command()


def test_a_foreign_folder_is_told_from_a_judgement(tmp_path):
    assert read_judgement(tmp_path, "me") is None
    (tmp_path / "annotations.json").write_text('[{"instruction": "a"}]')
    (tmp_path / "leaderboard.csv").write_text("name,score\nme,1\n")
    with pytest.raises(ValueError, match=r"does not hold what alpaca_eval 0\.6 writes"):
        read_judgement(tmp_path, "me")


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="alpaca_eval is not on the path, nor named by ALPACA_EVAL")
def test_alpaca_eval_itself_judges_with_an_annotator_of_its_own(here, likes_a):
    Path("always").mkdir()
    Path("always/prompt.txt").write_text("{instruction}\n(a) {output_1}\n(b) {output_2}\n")
    config = {
        "prompt_template": "always/prompt.txt",
        "fn_completions": "test_completions",  # says the same to every prompt
        "completions_kwargs": {"value": "(a)"},
        "completion_parser_kwargs": {"outputs_to_match": {1: r"\(a\)", 2: r"\(b\)"}},
        "batch_size": 1,
    }
    Path("always/configs.yaml").write_text(yaml.safe_dump({"always": config}))
    assert main(command(likes_a, "--annotator", "./always", "--alpaca-eval", str(PROGRAM))) == 0
    settings = json.loads(Path("out/evals/step-0/alpaca_eval.greedy.json").read_text())
    # the judge prefers whatever comes first, and alpaca_eval puts the model's output there or not, by instruction
    scores = [row["score"] for row in rows()]
    assert set(scores) <= {0.0, 1.0}
    assert settings["judge"]["win_rate"] == pytest.approx(100 * sum(scores) / 3)
    assert settings["judge"]["reference"] == REFERENCE
    annotations = Path("out/evals/step-0/alpaca_eval/always/annotations.json")
    before = annotations.stat().st_mtime_ns
    assert main(command(likes_a, "--annotator", "./always", "--alpaca-eval", "/bin/false")) == 0  # not called again
    assert annotations.stat().st_mtime_ns == before
