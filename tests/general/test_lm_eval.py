import json
from pathlib import Path

import pytest
from tests.chains import make_tokenizer, save_chain
from tests.general.conftest import LIKES_A

from dftune import report
from dftune.cli import main
from dftune.general.harness import HarnessOptions
from dftune.general.run import evaluate_tasks
from dftune.report.load import read_run

pytest.importorskip("lm_eval", reason="general tasks need lm_eval: pip install 'dftune[lm-eval]'")


def run(model, names, output, tasks, **options):
    said = []
    settings = HarnessOptions(include_path=tasks, **options)
    summaries = evaluate_tasks(str(model), names, output, step=0, options=settings, say=said.append)
    return summaries, said


def read(folder, task):
    base = folder / "evals" / "step-0" / f"{task}.lm_eval.json"
    rows = [json.loads(line) for line in base.with_suffix(".jsonl").read_text().splitlines()]
    return json.loads(base.read_text()), rows


def test_a_multiple_choice_task_gives_a_row_a_question_with_its_verdict(likes_a, tasks, tmp_path):
    (summary,), _ = run(likes_a, ["letters"], tmp_path / "out", tasks)
    settings, rows = read(tmp_path / "out", "letters")
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["verdict"] for row in rows] == ["correct", "correct", "incorrect", "incorrect"]
    assert [(row["target"], row["answer"]) for row in rows] == [("A", "A"), ("A", "A"), ("B", "A"), ("C", "A")]
    assert rows[2]["prompt"] == rows[2]["problem"] == "Third?\nAnswer:"
    probabilities = [pytest.approx(logp, abs=1e-4) for logp in (-0.5108, -1.2040, -2.3026)]  # log 0.6, 0.3, 0.1
    assert [choice["logp"] for choice in rows[0]["choices"]] == probabilities
    assert settings["results"]["letters"]["acc,none"] == 0.5
    assert (summary.score, summary.num_problems, summary.metric, summary.num_fewshot) == (0.5, 4, "acc", "0")
    # lm_eval: standard deviation of 1, 1, 0, 0 with n - 1, over the root of 4
    assert summary.reported == "0.5000 ± 0.2887"


def test_the_settings_say_what_the_scores_depend_on(likes_a, tasks, tmp_path):
    run(likes_a, ["letters"], tmp_path / "out", tasks, num_fewshot=2, limit=3)
    settings, rows = read(tmp_path / "out", "letters")
    assert settings["protocol"] == "lm_eval"
    assert settings["task"]["name"] == "letters"
    assert (settings["task"]["examples"], settings["task"]["limit"]) == (2, 3)
    assert settings["num_fewshot"] == {"letters": 2}
    assert settings["versions"] == {"letters": "1.5"}
    assert settings["num_problems"] == len(rows) == 3
    assert (settings["precision"], settings["engine"]) == ("float32", "local")
    assert rows[0]["prompt"].count("Answer:") == 3
    assert rows[0]["problem"] == "First?\nAnswer:"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["kind"] == "evaluate"
    assert manifest["model"]["fingerprint"] == settings["model_fingerprint"]


def test_a_generated_answer_is_kept_with_its_text(likes_a, tasks, tmp_path):
    (summary,), _ = run(likes_a, ["sums"], tmp_path / "out", tasks)
    settings, rows = read(tmp_path / "out", "sums")
    assert [row["completion"] for row in rows] == ["7", "7", "7"]
    assert [row["verdict"] for row in rows] == ["correct", "incorrect", "correct"]
    assert summary.score == pytest.approx(2 / 3)
    assert settings["results"]["sums"]["exact_match,none"] == pytest.approx(2 / 3)


def test_scores_between_zero_and_one_are_kept_as_they_are(likes_a, tasks, tmp_path):
    (summary,), _ = run(likes_a, ["mass"], tmp_path / "out", tasks)
    settings, rows = read(tmp_path / "out", "mass")
    assert [row["score"] for row in rows] == [pytest.approx(mass, abs=1e-5) for mass in (0.6, 0.6, 0.3, 0.1)]
    assert {row["verdict"] for row in rows} == {"scored"}
    assert summary.score == pytest.approx(0.4, abs=1e-5)
    assert settings["results"]["mass"]["mass,none"] == pytest.approx(summary.score)


def test_a_group_is_one_benchmark_whose_rows_name_their_subtask(likes_a, tasks, tmp_path):
    (summary,), _ = run(likes_a, ["both"], tmp_path / "out", tasks)
    settings, rows = read(tmp_path / "out", "both")
    assert [row["id"] for row in rows][3:5] == ["letters/3", "letters_again/0"]
    assert rows[4]["subject"] == "letters_again"
    assert summary.num_problems == 8
    assert summary.score == settings["results"]["both"]["acc,none"] == 0.5


def test_a_finished_task_is_not_run_again_and_a_new_one_is(likes_a, tasks, tmp_path):
    out = tmp_path / "out"
    first, _ = run(likes_a, ["letters"], out, tasks)
    times = {path: path.stat().st_mtime_ns for path in (out / "evals" / "step-0").iterdir()}
    again, said = run(likes_a, ["letters", "sums"], out, tasks)
    assert again[0] == first[0]
    assert len(said) == 1
    assert said[0].startswith("[1/1] sums")
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_rows_without_their_settings_are_of_a_killed_run_and_made_again(likes_a, tasks, tmp_path):
    out = tmp_path / "out"
    run(likes_a, ["letters"], out, tasks)
    (out / "evals/step-0/letters.lm_eval.json").unlink()
    (out / "evals/step-0/letters.lm_eval.jsonl").write_text("{}\n")
    _, said = run(likes_a, ["letters"], out, tasks)
    assert len(said) == 1
    assert len(read(out, "letters")[1]) == 4


def test_other_settings_and_changed_questions_are_refused_until_overwritten(likes_a, tasks, tmp_path):
    out = tmp_path / "out"
    run(likes_a, ["letters"], out, tasks)
    with pytest.raises(ValueError, match=r"task\.limit: None there, 2 asked for"):
        run(likes_a, ["letters"], out, tasks, limit=2)
    lines = (tasks / "letters.jsonl").read_text().splitlines(keepends=True)
    (tasks / "letters.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match=r"task\.files"):
        run(likes_a, ["letters"], out, tasks)
    options = HarnessOptions(include_path=tasks)
    (summary,) = evaluate_tasks(str(likes_a), ["letters"], out, step=0, options=options, overwrite=True)
    assert (summary.num_problems, summary.score) == (2, 1.0)


def test_another_model_is_refused_in_the_same_folder(likes_a, likes_b, tasks, tmp_path):
    run(likes_a, ["letters"], tmp_path / "out", tasks)
    with pytest.raises(ValueError, match="is another model"):
        run(likes_b, ["letters"], tmp_path / "out", tasks)


def test_the_report_shows_tasks_and_compares_models_question_by_question(likes_a, likes_b, tasks, tmp_path):
    for model in (likes_a, likes_b):
        run(model, ["letters", "mass"], tmp_path / "runs" / model.name, tasks)
    found = report.read([tmp_path / "runs"])
    assert [found.table.name(column) for column in found.table.columns] == ["letters.lm_eval", "mass.lm_eval"]
    letters, mass = found.table.columns
    (a, b) = found.table.conditions
    assert found.table.cell(a, letters).estimate.mean == 0.5
    assert found.table.cell(b, letters).estimate.mean == 0.25
    difference = found.table.cell(b, mass).versus
    assert difference.num_questions == 4
    assert difference.mean == pytest.approx((0.3 + 0.3 + 0.6 + 0.1 - 0.6 - 0.6 - 0.3 - 0.1) / 4, abs=1e-5)
    assert found.table.cell(a, mass).outcomes["scored"] == 4
    paths = report.build([tmp_path / "runs"], tmp_path / "report")
    shown = paths.html.read_text()
    assert "task mass, 0 examples, metric mass,none" in shown
    assert "letters.lm_eval" in paths.markdown.read_text()


def test_the_command_runs_tasks_on_a_run_and_prints_the_table(likes_a, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(likes_a), "--output", "out", "--tasks", "letters:acc_norm", "--include-path", "tasks"]
    assert main([*command, "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "letters  acc_norm  50.0 %   15.0 to 85.0  4         0  0.5000 ± 0.2887" in printed
    assert "out/evals/step-0/letters.lm_eval.jsonl" in printed
    assert read_run(Path("out")).evaluations[0].complete


def test_tasks_and_benchmarks_of_a_training_run_go_into_its_folder_in_one_command(tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/mine")
    save_chain(folder / "model", LIKES_A)
    (folder / "manifest.json").write_text(json.dumps({"name": "mine", "kind": "train"}))
    (folder / "events.jsonl").write_text('{"kind": "train", "step": 5, "time": 0.0}\n')
    Path("seven.jsonl").write_text('{"id": "s", "problem": "3+4=", "answer": "7"}\n')
    command = ["evaluate", "runs/mine", "--tasks", "letters", "--include-path", "tasks"]
    assert main([*command, "--benchmarks", "seven.jsonl", "--max-tokens", "2"]) == 0
    written = sorted(path.name for path in (folder / "evals" / "step-5").glob("*.json"))
    assert written == ["letters.lm_eval.json", "seven.greedy.json"]
    evaluations = read_run(folder).evaluations
    assert [(one.benchmark, one.step, one.complete) for one in evaluations] == [
        ("letters", 5, True),
        ("seven", 5, True),
    ]
    assert "letters" in capsys.readouterr().out


def test_regrading_leaves_results_of_lm_eval_alone(likes_a, tasks, tmp_path, capsys):
    run(likes_a, ["sums"], tmp_path / "out", tasks)
    path = tmp_path / "out/evals/step-0/sums.lm_eval.jsonl"
    before = path.read_bytes()
    assert main(["grade", str(path), "--in-place"]) == 0
    assert "another program scored them" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["letters:f1"], "task letters has no metric f1; it has acc, acc_norm"),
        (["letters", "letters:acc_norm"], "asked for with the metrics None and acc_norm"),
        (["../letters"], "cannot be used as a file name"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(likes_a, tasks, tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        run(likes_a, names, tmp_path / "out", tasks)
    assert not (tmp_path / "out").exists()


def test_a_chat_template_that_is_not_there_is_refused(likes_a, tasks, tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        run(likes_a, ["letters"], tmp_path / "out", tasks, chat_template=True)


def test_a_context_too_short_for_the_answers_is_an_error_of_one_line(likes_a, tasks, tmp_path):
    text = (tasks / "sums.yaml").read_text()
    (tasks / "sums.yaml").write_text(text.replace("max_gen_toks: 4", "max_gen_toks: 64"))
    with pytest.raises(ValueError, match=r"lm_eval cannot run sums on this model: .*maximum sequence length \(64\)"):
        run(likes_a, ["sums"], tmp_path / "out", tasks)


def test_missing_data_is_told_before_the_model_is_loaded(likes_a, tasks, tmp_path):
    (tasks / "sums.jsonl").unlink()
    with pytest.raises(ValueError, match="task sums could not be loaded"):
        run(likes_a, ["letters", "sums"], tmp_path / "out", tasks)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_task_is_named_with_those_like_it(likes_a, tasks, tmp_path):
    with pytest.raises(ValueError, match="lm_eval has no task hellaswagg; did you mean hellaswag"):
        run(likes_a, ["hellaswagg"], tmp_path / "out", tasks)


def test_a_chat_template_is_applied_and_recorded(tasks, tmp_path):
    model = save_chain(tmp_path / "chatty", LIKES_A)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}<assistant>:"
    )
    tokenizer.save_pretrained(model)
    run(model, ["letters"], tmp_path / "out", tasks, chat_template=True)
    settings, rows = read(tmp_path / "out", "letters")
    assert rows[0]["prompt"] == "<user>First?\nAnswer:\n<assistant>:"
    assert settings["prompt_format"]["name"] == "lm_eval-chat"
    assert settings["task"]["chat_template"] is True
