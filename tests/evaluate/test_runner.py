import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tests.chains import save_chain

from dftune.data.prompts import FORMATS, PromptFormat
from dftune.environment import model_fingerprint
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.grade import GRADER_VERSION
from dftune.evaluate.models import num_parameters
from dftune.evaluate.runner import evaluate, evaluate_run
from dftune.files import BusyError, locked
from dftune.report.load import read_run

BOX = r"\boxed{"
ALWAYS = {before: {after: 1.0} for before, after in zip("\n" + BOX + "7", BOX + "7}", strict=True)}
EITHER = {**ALWAYS, "{": {"7": 0.5, "8": 0.5}, "8": {"}": 1.0}}
PROBLEMS = [
    {"id": "sums/1", "problem": "What is 3 + 4?", "answer": "7", "subject": "Sums"},
    {"id": "sums/2", "problem": "What is 4 + 4?", "answer": "8"},
    {"id": "sums/3", "problem": "What is 14 / 2, to be divided once?", "answer": ["7", "seven"]},
    {"id": "sums/4", "problem": "8 - 1?", "answer": 7},
]
PLAIN = EvaluateConfig(prompt_format="plain", max_tokens=20)
SAMPLE = PLAIN.model_copy(update={"protocol": "sample", "num_samples": 5, "batch_size": 7})


@pytest.fixture(scope="module")
def sevens(tmp_path_factory):
    r"""A model that answers any plain prompt with \boxed{7}."""
    return save_chain(tmp_path_factory.mktemp("models") / "sevens", ALWAYS)


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    r"""A model that answers \boxed{7} or \boxed{8}, each half of the time."""
    return save_chain(tmp_path_factory.mktemp("models") / "coins", EITHER)


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run_folder(path, model, prompt_format="plain"):
    """A finished training run whose model is ``model``."""
    (path / "checkpoints").mkdir(parents=True)
    save_chain(path / "model", model)
    chosen = FORMATS[prompt_format]
    manifest = {
        "name": path.name,
        "kind": "train",
        "prompt_format": {"name": chosen.name, "fingerprint": chosen.fingerprint},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "events.jsonl").write_text('{"kind": "train", "step": 40, "time": 1.0}\n')
    return path


def test_every_completion_is_written_with_its_verdict(sevens, sums, tmp_path):
    (summary,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    assert summary.completions == tmp_path / "out" / "evals" / "step-0" / "sums.greedy.jsonl"
    rows = read(summary.completions)
    assert [row["id"] for row in rows] == [f"sums/{index}" for index in (1, 2, 3, 4)]
    assert [row["verdict"] for row in rows] == ["correct", "incorrect", "correct", "correct"]
    first = rows[0]
    expected = {
        "sample": 0,
        "problem": "What is 3 + 4?",
        "target": "7",
        "prompt": "What is 3 + 4?\n",
        "completion": r"\boxed{7}",
        "answer": "7",
        "subject": "Sums",
    }
    assert {key: first[key] for key in expected} == expected
    assert (first["finish_reason"], first["num_tokens"]) == ("stop", 10)  # nine characters and the end token
    assert {"rule", "stage", "reason"} <= set(first)
    assert rows[2]["target"] == ["7", "seven"]


def test_the_settings_say_how_the_completions_were_made(sevens, sums, tmp_path):
    evaluate(str(sevens), [sums + ":3"], PLAIN, tmp_path / "out", step=12)
    settings = json.loads((tmp_path / "out/evals/step-12/sums.greedy.json").read_text())
    seconds = settings.pop("seconds")
    assert seconds > 0
    assert len(settings.pop("benchmark_fingerprint")) == 16
    assert settings == {
        "benchmark": "sums",
        "protocol": "greedy",
        "benchmark_path": sums + ":3",
        "num_problems": 3,
        "num_samples": 1,
        "protocols": ["greedy"],
        "by": [],
        "gold_problems": [],
        "model": str(sevens),
        "model_fingerprint": model_fingerprint(sevens),
        "step": 12,
        "prompt_format": {"name": "plain", "fingerprint": FORMATS["plain"].fingerprint},
        "trained_prompt_format": None,
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 20, "stop": [], "seed": 0},
        "grader": GRADER_VERSION,
        "engine": "local",
        "precision": "float32",
    }


def test_the_summary_counts_what_is_in_the_file(sevens, sums, tmp_path):
    (summary,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    assert (summary.accuracy, summary.num_problems, summary.num_ungraded) == (0.75, 4, 0)
    assert (summary.truncated_share, summary.mean_tokens) == (0.0, 10.0)
    (short,) = evaluate(str(sevens), [sums], PLAIN.model_copy(update={"max_tokens": 4}), tmp_path / "short", step=0)
    assert (short.truncated_share, short.mean_tokens, short.accuracy) == (1.0, 4.0, 0.0)


def test_a_report_reads_what_was_written(coins, sums, tmp_path):
    evaluate(str(coins), [sums], SAMPLE, tmp_path / "out", step=0)
    run = read_run(tmp_path / "out")
    (evaluation,) = run.evaluations
    assert (run.kind, run.name, evaluation.complete) == ("evaluate", "out", True)
    assert len(evaluation.completions) == 20


def test_the_manifest_of_a_model_from_elsewhere_describes_it(sevens, sums, tmp_path):
    evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    weights = load_file(sevens / "model.safetensors")
    assert manifest["kind"] == "evaluate"
    assert manifest["model"] == {
        "path": str(sevens),
        "fingerprint": model_fingerprint(sevens),
        "num_parameters": sum(weight.size for weight in weights.values()),
    }
    assert {"dftune_version", "commit", "command", "started", "versions", "hardware", "seed"} <= set(manifest)


def test_parameters_are_counted_over_all_files(sevens, tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes((sevens / "model.safetensors").read_bytes())
    assert num_parameters(tmp_path) == 2 * num_parameters(sevens)


def test_samples_are_saved_under_their_index_and_differ(coins, sums, tmp_path):
    (summary,) = evaluate(str(coins), [sums], SAMPLE, tmp_path / "out", step=0)
    rows = read(summary.completions)
    assert [(row["id"], row["sample"]) for row in rows] == [
        (problem["id"], sample) for problem in PROBLEMS for sample in range(5)
    ]
    assert {row["completion"] for row in rows} == {r"\boxed{7}", r"\boxed{8}"}
    assert summary.num_samples == 5
    assert summary.accuracy == sum(row["verdict"] == "correct" for row in rows) / 20


def test_an_evaluation_that_was_cut_off_continues_to_the_same_result(coins, sums, tmp_path):
    (whole,) = evaluate(str(coins), [sums], SAMPLE, tmp_path / "whole", step=0)
    (broken,) = evaluate(str(coins), [sums], SAMPLE, tmp_path / "broken", step=0)
    lines = broken.completions.read_bytes().splitlines(keepends=True)
    marked = {**json.loads(lines[3]), "reason": "kept from before"}
    broken.completions.write_bytes(lines[0] + lines[11] + json.dumps(marked).encode() + b"\n" + lines[5][:40])
    (again,) = evaluate(str(coins), [sums], SAMPLE, tmp_path / "broken", step=0)
    rows, expected = read(again.completions), read(whole.completions)
    assert rows[3].pop("reason") == "kept from before"  # it was not made anew
    expected[3].pop("reason")
    assert rows == expected
    assert again.accuracy == whole.accuracy


def test_a_last_line_that_a_kill_has_cut_is_warned_of_and_made_again(sevens, sums, tmp_path, capsys):
    (whole,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    before = whole.completions.read_bytes()
    whole.completions.write_bytes(before[:-30])
    (again,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    said = capsys.readouterr().err
    assert said.count("sums.greedy.jsonl was cut off, and does not count; it is made again") == 1
    assert again.completions.read_bytes() == before


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(sevens, sums, tmp_path):
    (whole,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    lines = whole.completions.read_bytes().splitlines(keepends=True)
    whole.completions.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(ValueError, match=r"sums\.greedy\.jsonl, line 2: not valid JSON"):
        evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)


def test_a_full_disk_loses_what_it_has_no_room_for_and_the_rest_is_made_when_there_is_some(coins, sums, tmp_path):
    many = SAMPLE.model_copy(update={"num_samples": 50})  # far more than the manifest holds
    (whole,) = evaluate(str(coins), [sums], many, tmp_path / "whole", step=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.completions.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not append .*sums\.sample\.jsonl"):
            evaluate(str(coins), [sums], many, tmp_path / "full", step=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    saved = tmp_path / "full/evals/step-0/sums.sample.jsonl"
    kept = read(saved)  # whole lines only
    assert 50 < len(kept) < 110
    (again,) = evaluate(str(coins), [sums], many, tmp_path / "full", step=0)
    assert read(again.completions) == read(whole.completions)
    assert again.accuracy == whole.accuracy


def test_two_evaluations_do_not_write_one_file(sevens, sums, tmp_path):
    files = tmp_path / "out" / "evals" / "step-0"
    with locked(files / ".sums.greedy.lock", "what another process is at"):
        with pytest.raises(BusyError, match=rf"sums\.greedy\.jsonl is being written by .* process {os.getpid()}"):
            evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
        assert [path.name for path in files.iterdir()] == [".sums.greedy.lock"]
        evaluate(str(sevens), [sums], SAMPLE.model_copy(update={"temperature": 0.5}), tmp_path / "out", step=0)
    (found,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    assert len(read(found.completions)) == 4
    assert not list(files.glob(".*"))


def test_a_complete_evaluation_is_summed_up_without_generating(sevens, sums, tmp_path):
    (first,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    before = first.completions.stat().st_mtime_ns
    (second,) = evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    assert first.tokens_per_s > 0
    assert second.tokens_per_s is None
    assert second.completions.stat().st_mtime_ns == before
    assert (second.accuracy, second.low, second.high) == (first.accuracy, first.low, first.high)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_loses_nothing_that_it_had_saved(coins, tmp_path):
    path = tmp_path / "many.jsonl"
    rows = [{"id": str(index), "problem": f"{index}?", "answer": "7"} for index in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SAMPLE.model_copy(update={"num_samples": 1, "batch_size": 1})
    code = (
        "import sys; from pathlib import Path\n"
        "from dftune.evaluate.runner import evaluate; from dftune.evaluate.config import EvaluateConfig\n"
        "model, benchmark, config, output = sys.argv[1:]\n"
        "evaluate(model, [benchmark], EvaluateConfig.model_validate_json(config), Path(output), step=0)"
    )
    saved = tmp_path / "out/evals/step-0/many.sample.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(coins), str(path), config.model_dump_json(), str(tmp_path / "out")],
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (saved.is_file() and saved.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = saved.read_bytes().splitlines(keepends=True)
    kept = [json.loads(line) for line in kept if line.endswith(b"\n")]
    assert 20 <= len(kept) < 400
    (continued,) = evaluate(str(coins), [str(path)], config, tmp_path / "out", step=0)
    (unbroken,) = evaluate(
        str(coins), [str(path)], config.model_copy(update={"batch_size": 64}), tmp_path / "unbroken", step=0
    )
    rows = read(continued.completions)
    assert rows == read(unbroken.completions)
    assert all(row in rows for row in kept)


def test_other_settings_are_refused_before_anything_is_generated_and_overwrite_replaces(coins, sums, tmp_path):
    evaluate(str(coins), [sums], SAMPLE, tmp_path / "out", step=0)
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1?", "answer": "7"}\n')
    warmer = SAMPLE.model_copy(update={"temperature": 0.5})
    with pytest.raises(ValueError, match=r"sampling\.temperature: 1\.0 there, 0\.5 asked for"):
        evaluate(str(coins), [str(other), sums], warmer, tmp_path / "out", step=0)
    assert not list((tmp_path / "out/evals/step-0").glob("other.*"))
    evaluate(str(coins), [sums], warmer, tmp_path / "out", step=0, overwrite=True)
    settings = json.loads((tmp_path / "out/evals/step-0/sums.sample.json").read_text())
    assert settings["sampling"]["temperature"] == 0.5


def test_results_of_two_models_do_not_mix_in_one_folder(coins, sevens, sums, tmp_path):
    evaluate(str(coins), [sums], PLAIN, tmp_path / "out", step=0)
    with pytest.raises(ValueError, match=f"holds evaluations of {coins}.*is another model"):
        evaluate(str(sevens), [sums], PLAIN, tmp_path / "out", step=0)
    run = run_folder(tmp_path / "run", ALWAYS)
    with pytest.raises(ValueError, match="holds the run run"):
        evaluate(str(sevens), [sums], PLAIN, run, step=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "greedy", "num_samples": 4}, "num_samples 4 would repeat it"),
        ({"protocol": "sample", "temperature": 0.0}, "temperature above 0"),
        ({"protocol": "best-of-n"}, r"'best-of-n' is not known\. There are: greedy, avg@n, maj@n, pass@k"),
        ({"protocol": "maj"}, "'maj' lacks its number of samples; write for example maj@16"),
        ({"protocol": ()}, "There is no protocol"),
        ({"protocol": "avg@4", "label": "greedy"}, "must hold no dot and not be 'greedy'"),
        ({"prompt_format": "qwen"}, "unknown prompt format 'qwen'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sevens, sums, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(str(sevens), [sums], PLAIN.model_copy(update=changes), tmp_path / "out", step=0)
    assert not (tmp_path / "out").exists()


def test_two_benchmarks_of_one_name_and_none_at_all_are_refused(sevens, sums, tmp_path):
    (tmp_path / "more").mkdir()
    twin = tmp_path / "more" / "sums.jsonl"
    twin.write_text(Path(sums).read_text())
    with pytest.raises(ValueError, match="are both called 'sums'"):
        evaluate(str(sevens), [sums, str(twin)], PLAIN, tmp_path / "out", step=0)
    with pytest.raises(ValueError, match="no benchmark to run"):
        evaluate(str(sevens), [], PLAIN, tmp_path / "out", step=0)


def test_a_problem_too_long_for_the_model_is_named_and_the_others_can_be_run(sevens, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"id": "tale", "problem": "%s", "answer": "7"}\n' % ("word " * 40))
    with pytest.raises(ValueError, match=r"'tale' has \d+ tokens"):
        evaluate(str(sevens), [str(path)], PLAIN, tmp_path / "out", step=0)


def prompts_of(model, sums, output, **changes):
    said = []
    config = EvaluateConfig(max_tokens=4, **changes)
    (summary,) = evaluate(str(model), [sums], config, output, step=0, say=said.append)
    settings = json.loads(summary.completions.with_suffix(".json").read_text())
    return read(summary.completions)[0]["prompt"], settings, said


def test_without_any_hint_prompts_are_plain_and_it_is_said(sevens, sums, tmp_path):
    prompt, settings, said = prompts_of(sevens, sums, tmp_path / "out")
    assert (prompt, settings["prompt_format"]["name"]) == ("What is 3 + 4?\n", "plain")
    assert "prompt format plain" in said[0]


def test_a_chat_template_is_used_where_there_is_one(tmp_path, sums):
    folder = save_chain(tmp_path / "chatty", ALWAYS)
    assistant = "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}"
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}" + assistant + "{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    prompt, settings, said = prompts_of(folder, sums, tmp_path / "out")
    assert (prompt, settings["prompt_format"]["name"]) == ("<user>What is 3 + 4?<assistant>", "chat")
    assert said == []


def test_a_run_is_prompted_as_it_was_trained(tmp_path, sums):
    run = run_folder(tmp_path / "run", ALWAYS, prompt_format="numina")
    said = []
    (summary,) = evaluate_run(run, EvaluateConfig(benchmarks=(sums,), max_tokens=4), say=said.append)
    settings = json.loads(summary.completions.with_suffix(".json").read_text())
    assert summary.completions == run / "evals" / "step-40" / "sums.greedy.jsonl"
    assert settings["prompt_format"] == settings["trained_prompt_format"]
    assert settings["prompt_format"]["name"] == "numina"
    assert read(summary.completions)[0]["prompt"] == FORMATS["numina"].render("What is 3 + 4?")
    assert said == []
    assert json.loads((run / "manifest.json").read_text())["kind"] == "train"  # the run's own is left alone


def test_a_format_of_ones_own_is_taken_from_the_run_and_not_from_its_file(tmp_path, sums):
    run = run_folder(tmp_path / "run", ALWAYS)
    own = PromptFormat("mine", "Sum: {problem} =", completion_prefix=" ", stop=(";",))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "prompt_format": own.record()}))
    said = []
    (summary,) = evaluate_run(run, EvaluateConfig(benchmarks=(sums,), max_tokens=4), say=said.append)
    settings = json.loads(summary.completions.with_suffix(".json").read_text())
    assert read(summary.completions)[0]["prompt"] == "Sum: What is 3 + 4? ="
    assert settings["sampling"]["stop"] == [";"]
    assert (
        settings["prompt_format"]
        == settings["trained_prompt_format"]
        == {
            "name": "mine",
            "fingerprint": own.fingerprint,
        }
    )
    assert said == []


def test_another_format_than_the_trained_one_is_recorded_and_warned_of(tmp_path, sums):
    run = run_folder(tmp_path / "run", ALWAYS, prompt_format="numina")
    said = []
    config = EvaluateConfig(benchmarks=(sums,), max_tokens=4, prompt_format="cot")
    (summary,) = evaluate_run(run, config, say=said.append)
    settings = json.loads(summary.completions.with_suffix(".json").read_text())
    assert settings["prompt_format"]["name"] == "cot"
    assert settings["trained_prompt_format"]["name"] == "numina"
    assert settings["sampling"]["stop"] == ["\n\nQuestion:"]
    assert "rendered as cot" in said[0]
    assert "trained on numina" in said[0]
