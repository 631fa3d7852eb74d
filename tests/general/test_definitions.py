"""The definitions of lm_eval behind our names, on questions of our own: examples, metrics and filters."""

import json
from pathlib import Path

import pytest
from tests.chains import save_chain

from dftune.general.harness import HarnessOptions
from dftune.general.run import evaluate_tasks

lm_eval = pytest.importorskip("lm_eval", reason="general tasks need lm_eval: pip install 'dftune[lm-eval]'")

FILES = {
    "truthfulqa": ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml"),
    "hellaswag": ("hellaswag", "hellaswag/hellaswag.yaml"),
    "winogrande": ("winogrande", "winogrande/default.yaml"),
    "gsm8k": ("gsm8k", "gsm8k/gsm8k.yaml"),
    "arc": ("arc_challenge", "arc/arc_challenge.yaml"),
    "mmlu": ("mmlu", "mmlu/default/_default_template_yaml"),
}


def rows(name, index):
    """A question of the form of the published data, with a key to each."""
    mc2 = {"choices": ["A", "B"], "labels": [1, 0]}
    return {
        "truthfulqa": {"question": f"Truth {index}?", "mc1_targets": mc2, "mc2_targets": mc2},
        "hellaswag": {
            "ctx_a": f"Context {index}",
            "ctx_b": "then",
            "activity_label": "Label",
            "endings": ["one", "two", "three", "four"],
            "label": "0",
        },
        "winogrande": {
            "sentence": f"In {index} the _ fell over.",
            "option1": "cup",
            "option2": "jug",
            "answer": "1",
        },
        "gsm8k": {"question": f"Sum {index}", "answer": "so\n#### 7"},
        "arc": {
            "id": str(index),
            "question": f"Which {index}?",
            "choices": {"text": ["first", "second"], "label": ["A", "B"]},
            "answerKey": "A",
        },
        "mmlu": {"question": f"Which {index}?", "choices": ["a", "b", "c", "d"], "answer": 0},
    }[name]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Settings and rows of every task, run with lm_eval's definitions on 30 rows for examples and 3 questions."""
    folder = tmp_path_factory.mktemp("definitions")
    built_in = Path(lm_eval.__file__).parent / "tasks"
    for name, (task, file) in FILES.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(rows(name, index)) + "\n" for index in range(30)))
        splits = dict.fromkeys(("train", "validation", "dev", "test"), str(data))
        definition = {
            "include": str(built_in / file),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(definition))
    model = save_chain(folder.parent / "model", {":": {" ": 1.0}, " ": {"A": 0.75, "B": 0.25, "#": 1e-9}})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    out = folder.parent / "out"
    options = HarnessOptions(include_path=folder, limit=3)
    summaries = evaluate_tasks(str(model), list(FILES), out, step=0, options=options)
    results = {}
    for summary in summaries:
        settings = json.loads(summary.results.with_suffix(".json").read_text())
        results[summary.task] = settings, [json.loads(line) for line in summary.results.read_text().splitlines()]
    return results


@pytest.mark.parametrize(
    ("name", "mark", "num_examples"),
    [
        ("hellaswag", "Label: ", 10),
        ("winogrande", "In ", 5),
        ("gsm8k", "Question: ", 5),
        ("arc", "Question: ", 25),
        ("mmlu", "\nAnswer:", 5),
        ("truthfulqa", "Q: Truth", 0),
    ],
)
def test_the_prompt_holds_the_examples_of_the_table(found, name, mark, num_examples):
    settings, questions = found[name]
    assert set(settings["num_fewshot"].values()) == {num_examples}
    assert [row["prompt"].count(mark) for row in questions] == [num_examples + 1] * 3


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("hellaswag", "acc_norm,none"),
        ("winogrande", "acc,none"),
        ("gsm8k", "exact_match,strict-match"),
        ("arc", "acc_norm,none"),
        ("mmlu", "acc,none"),
        ("truthfulqa", "acc,none"),
    ],
)
def test_the_mean_over_rows_is_the_number_that_lm_eval_reports(found, name, metric):
    settings, questions = found[name]
    assert settings["metric"] == metric
    task = FILES[name][0]
    mean = sum(row["score"] for row in questions) / 3
    assert settings["results"][task][metric] == pytest.approx(mean)


def test_truthfulqa_is_scored_by_the_mass_of_the_true_answers(found):
    _, questions = found["truthfulqa"]
    assert [row["score"] for row in questions] == [pytest.approx(0.75, abs=1e-4)] * 3
    assert {row["verdict"] for row in questions} == {"scored"}


def test_the_letters_of_mmlu_are_compared_by_their_probability(found):
    _, questions = found["mmlu"]
    assert [(row["answer"], row["target"], row["verdict"]) for row in questions] == [("A", "A", "correct")] * 3


def test_the_choices_of_winogrande_are_the_two_sentences(found):
    _, questions = found["winogrande"]
    assert [choice["text"] for choice in questions[0]["choices"]] == ["In 0 the cup", "In 0 the jug"]
