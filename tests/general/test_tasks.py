import json
from pathlib import Path

import pytest
import yaml

from dftune.files import jsonl_line
from dftune.general import harness
from dftune.general.harness import HarnessOptions, harness_version, task_files_fingerprint
from dftune.general.samples import choose_metric, make_rows, metric_keys
from dftune.general.tasks import SETS, TASKS, Task, resolve


def sample(doc_id, **metrics):
    return {
        "doc_id": doc_id,
        "filter": metrics.pop("filter", "none"),
        "metrics": list(metrics),
        "arguments": [("question", {"until": []})],
        "resps": [["said"]],
        "filtered_resps": ["said"],
        "target": "t",
        **metrics,
    }


def test_the_leaderboard_stands_for_its_six_tasks_with_their_examples_and_metrics():
    tasks, alpaca = resolve(["open-llm-leaderboard"])
    # the first Open LLM Leaderboard: ARC 25, HellaSwag 10, MMLU 5, TruthfulQA mc2 0, Winogrande 5, GSM8K 5
    expected = {
        "arc_challenge": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
        "mmlu": (5, "acc"),
        "truthfulqa_mc2": (0, "acc"),
        "winogrande": (5, "acc"),
        "gsm8k": (5, "exact_match,strict-match"),
    }
    assert {task.harness_name: (task.num_fewshot, task.metric) for task in tasks} == expected
    assert not alpaca


def test_names_are_taken_once_and_others_are_lm_evals():
    tasks, alpaca = resolve(["general", "mmlu", "alpaca_eval", "piqa:acc_norm"], num_fewshot=3)
    assert [task.name for task in tasks] == [*SETS["general"], "piqa"]
    assert tasks[-1] == Task("piqa", "piqa", 3, "acc_norm")
    assert alpaca


def test_every_task_of_ours_exists_in_lm_eval_with_its_metric():
    lm_eval = pytest.importorskip("lm_eval", reason="general tasks need lm_eval: pip install 'dftune[lm-eval]'")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: "function")
    folder = Path(lm_eval.__file__).parent / "tasks"
    files = {
        "mmlu": "mmlu/default/_default_template_yaml",
        "truthfulqa": "truthfulqa/truthfulqa_mc2.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "winogrande": "winogrande/default.yaml",
        "gsm8k": "gsm8k/gsm8k.yaml",
        "arc": "arc/arc_challenge.yaml",
        "ifeval": "ifeval/ifeval.yaml",
    }
    for name, file in files.items():
        config = yaml.load((folder / file).read_text(), Loader)
        if "metric_list" not in config:
            config |= yaml.load((folder / file).with_name(config["include"]).read_text(), Loader)
        metric, _, filtered = TASKS[name].metric.partition(",")
        assert metric in [entry["metric"] for entry in config["metric_list"]]
        assert not filtered or filtered in [entry["name"] for entry in config["filter_list"]]


def test_the_first_metric_that_is_a_score_is_taken_and_a_filter_can_be_named():
    samples = {"a": [sample(0, perplexity=12.5, acc=1.0), sample(0, filter="last", perplexity=12.5, acc=0.0)]}
    assert metric_keys(samples) == ["perplexity,none", "acc,none", "perplexity,last", "acc,last"]
    assert choose_metric(samples, None) == "acc,none"
    assert choose_metric(samples, "acc") == "acc,none"
    assert choose_metric(samples, "acc,last") == "acc,last"
    with pytest.raises(ValueError, match="there is no metric f1; this task has perplexity,none, acc,none"):
        choose_metric(samples, "f1")


def test_of_several_filters_only_the_chosen_one_makes_rows():
    samples = {"a": [sample(0, acc=1.0), sample(1, acc=0.0), sample(0, filter="last", acc=0.0)]}
    assert [(row["id"], row["score"]) for row in make_rows(samples, "acc,none", {})] == [("0", 1.0), ("1", 0.0)]


def test_what_is_no_score_leaves_the_question_ungraded_and_is_kept():
    samples = {"a": [sample(0, perplexity=12.5), sample(1, perplexity=float("nan"))]}
    rows = make_rows(samples, "perplexity,none", {})
    assert [(row["verdict"], row["score"]) for row in rows] == [("ungraded", None), ("ungraded", None)]
    assert [row["metrics"] for row in rows] == [{"perplexity": 12.5}, {"perplexity": None}]


def test_a_choice_that_the_model_rules_out_has_no_log_probability():
    asked = sample(0, acc=1.0) | {"arguments": [("q", " yes"), ("q", " no")], "target": 0}
    asked |= {"filtered_resps": [(-0.5, True), (float("-inf"), False)]}
    (row,) = make_rows({"a": [asked]}, "acc,none", {"a": {"output_type": "multiple_choice"}})
    assert row["choices"] == [{"text": "yes", "logp": -0.5}, {"text": "no", "logp": None}]
    assert (row["answer"], row["target"], row["verdict"]) == ("yes", "yes", "correct")
    assert json.loads(jsonl_line(row)) == row


def test_the_normalised_choice_is_the_likeliest_by_character():
    asked = sample(0, acc_norm=1.0) | {"arguments": [("q", " abcdefgh"), ("q", " xy")], "target": 0}
    asked |= {"filtered_resps": [(-8.0, False), (-4.0, False)]}  # -1 a character against -2
    config = {"a": {"output_type": "multiple_choice", "target_delimiter": " "}}
    (row,) = make_rows({"a": [asked]}, "acc_norm,none", config)
    assert row["answer"] == "abcdefgh"


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'dftune\[lm-eval\]'"):
        harness_version()


def test_impossible_options_are_refused(tmp_path):
    for options in ({"limit": 0}, {"num_fewshot": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="at least"):
            HarnessOptions(**options)
    with pytest.raises(ValueError, match="is no folder"):
        HarnessOptions(include_path=tmp_path / "gone")


def test_the_fingerprint_of_local_tasks_covers_tasks_groups_and_tags_and_nothing_else(tmp_path):
    (tmp_path / "t.yaml").write_text("task: 'mine'\ntag:\n  - tagged\nmetric_list:\n  - metric: acc\n")
    (tmp_path / "g.yml").write_text("group: both\ntask: [mine, other]\n")
    found = {name: task_files_fingerprint(Task(name, name), tmp_path) for name in ("mine", "tagged", "both", "acc")}
    assert found["acc"] is None
    assert found["mine"] == found["tagged"] == found["both"] is not None
    (tmp_path / "data.jsonl").write_text("{}\n")
    assert task_files_fingerprint(Task("mine", "mine"), tmp_path) not in (None, found["mine"])
    assert task_files_fingerprint(Task("mine", "mine"), None) is None
