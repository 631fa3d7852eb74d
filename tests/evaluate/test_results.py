import json
from dataclasses import replace

import pytest

from dftune.evaluate.benchmarks import Benchmark, Problem
from dftune.evaluate.results import Results, content_key

SOURCE = tuple(Problem(name, f"{name}?", "7", {}) for name in "abcdef")
SUMS = Benchmark("sums", "data/sums.jsonl", SOURCE[:4], SOURCE)
SETTINGS = {
    "protocol": "sample",
    "num_samples": 1,
    "protocols": ["avg@1"],
    "model": "runs/a/model",
    "model_fingerprint": "m1",
    "step": 3,
    "prompt_format": {"name": "plain", "fingerprint": "f1"},
    "trained_prompt_format": None,
    "sampling": {"temperature": 1.0, "stop": []},
    "grader": "1",
    "by": [],
}


def render(problem):
    return f"Q: {problem.problem}"


def regraded(row):
    return {**row, "verdict": "ungraded"}


def row(name, verdict="correct", sample=0):
    key = content_key("m1", f"Q: {name}?", SETTINGS["sampling"], sample)
    return {"id": name, "sample": sample, "key": key, "target": "7", "prompt": f"Q: {name}?", "verdict": verdict}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path, "sums", "sample")


def opened(results, benchmark=SUMS, *, overwrite=False, **changes):
    again = Results(results.path.parent, "sums", "sample")
    again.open({**SETTINGS, **changes}, benchmark, render, regraded, overwrite=overwrite)
    again.begin()
    return again


def stored(results):
    return json.loads(results.settings_path.read_text())


def test_settings_are_there_before_the_first_completion(results):
    opened(results)
    assert stored(results) == {
        "benchmark": "sums",
        "benchmark_path": "data/sums.jsonl",
        "benchmark_fingerprint": SUMS.fingerprint,
        "num_problems": 4,
        **SETTINGS,
        "seconds": 0.0,
    }
    assert not results.path.exists()


def test_completions_and_seconds_are_taken_up_again(results):
    first = opened(results)
    first.append([row("a"), row("b")])
    first.add_seconds(2.5)
    again = opened(results)
    assert list(again.rows) == [("a", 0), ("b", 0)]
    again.add_seconds(1.0)
    assert stored(results)["seconds"] == 3.5


def test_a_line_cut_off_by_a_kill_is_forgotten_and_the_next_one_is_whole(results):
    opened(results).append([row("a"), row("b")])
    results.path.write_bytes(results.path.read_bytes()[:-7])
    again = opened(results)
    assert list(again.rows) == [("a", 0)]
    again.append([row("b", "incorrect")])
    assert [json.loads(line)["id"] for line in results.path.read_text().splitlines()] == ["a", "b"]


def test_other_settings_are_refused_and_each_is_named(results):
    opened(results).append([row("a")])
    with pytest.raises(ValueError) as error:
        opened(results, model_fingerprint="m2", sampling={"temperature": 0.7, "stop": []})
    message = str(error.value)
    assert "model_fingerprint: 'm1' there, 'm2' asked for" in message
    assert "sampling.temperature: 1.0 there, 0.7 asked for" in message
    assert "step" not in message
    assert "--overwrite" in message
    assert list(opened(results).rows) == [("a", 0)]  # nothing was lost


def test_a_model_benchmark_or_server_that_was_moved_is_the_same(results):
    opened(results, server={"servers": ["one"]}).append([row("a")])
    moved = replace(SUMS, path="elsewhere")
    assert len(opened(results, moved, model="elsewhere", server={"servers": ["two", "three"]}).rows) == 1


def test_more_samples_and_more_problems_are_no_other_settings(results):
    opened(results).append([row("a")])
    again = opened(results, SUMS.first(6), num_samples=64, protocols=["maj@64"])
    assert list(again.rows) == [("a", 0)]
    grown = {"num_problems": 6, "num_samples": 64, "protocols": ["avg@1", "maj@64"]}
    assert grown.items() <= stored(results).items()
    assert stored(results)["benchmark_fingerprint"] == SUMS.first(6).fingerprint


def test_asked_for_less_the_file_stays_what_it_is(results):
    opened(results, SUMS.first(6), num_samples=4, gold_problems=[{"id": "f"}]).append([row("f", sample=3)])
    before = stored(results)
    again = opened(results, SUMS.first(2), num_samples=1, protocols=["pass@1"], gold_problems=[])
    assert list(again.rows) == [("f", 3)]
    assert stored(results) == {**before, "protocols": ["avg@1", "pass@1"]}


@pytest.mark.parametrize(("num_problems", "num_samples"), [(6, 2), (2, 8)])
def test_an_uneven_file_is_refused(results, num_problems, num_samples):
    opened(results, num_samples=4).append([row("a")])
    with pytest.raises(ValueError, match=r"meant for 4 problems with 4 samples each.*would make it uneven"):
        opened(results, SUMS.first(num_problems), num_samples=num_samples)


def test_completions_of_problems_that_the_benchmark_does_not_have_are_refused(results):
    opened(results).append([row("a"), row("b")])
    other = Benchmark("sums", "other.jsonl", SOURCE[1:], SOURCE[1:])
    with pytest.raises(ValueError, match=r"completions of 1 problems that this benchmark does not have \(a\)"):
        opened(results, other)


def test_completions_of_another_prompt_are_refused(results):
    opened(results).append([row("a"), row("b")])
    changed = (SOURCE[0], replace(SOURCE[1], problem="b, but reworded?"), *SOURCE[2:])
    with pytest.raises(ValueError, match="holds 1 completions of another prompt, the first being that of 'b'"):
        opened(results, replace(SUMS, rows=changed[:4], source=changed))


def test_a_completion_whose_key_is_not_that_of_its_model_and_sampling_is_refused(results):
    opened(results).append([row("a"), {**row("b"), "key": content_key("m2", "Q: b?", SETTINGS["sampling"], 0)}])
    with pytest.raises(ValueError, match="the first being that of 'b'"):
        opened(results)


def test_the_key_follows_model_prompt_sampling_and_sample():
    keys = {
        content_key("m", "p", {"temperature": 1.0}, 0),
        content_key("m2", "p", {"temperature": 1.0}, 0),
        content_key("m", "p2", {"temperature": 1.0}, 0),
        content_key("m", "p", {"temperature": 0.5}, 0),
        content_key("m", "p", {"temperature": 1.0}, 1),
    }
    assert len(keys) == 5
    assert content_key("m", "p", {"b": 1, "a": 2}, 0) == content_key("m", "p", {"a": 2, "b": 1}, 0)


def test_files_from_before_keys_and_protocols_are_read_and_grow(results):
    old = {key: value for key, value in SETTINGS.items() if key != "protocols"} | {"num_samples": 2, "seconds": 1.5}
    old |= {"benchmark": "sums", "benchmark_path": "x", "benchmark_fingerprint": SUMS.fingerprint, "num_problems": 4}
    results.settings_path.write_text(json.dumps(old))
    keyless = [{key: value for key, value in row("a", sample=s).items() if key != "key"} for s in range(2)]
    results.path.write_text("".join(json.dumps(one) + "\n" for one in keyless))
    again = opened(results, num_samples=16, protocols=["maj@16"])
    assert list(again.rows) == [("a", 0), ("a", 1)]
    assert stored(results)["protocols"] == ["avg@2", "maj@16"]
    reworded = tuple(replace(problem, problem="new") for problem in SOURCE)
    with pytest.raises(ValueError, match="another prompt"):
        opened(results, replace(SUMS, rows=reworded[:4], source=reworded), num_samples=16)


def test_completions_graded_by_another_version_are_graded_again(results):
    opened(results).append([row("a")])
    again = opened(results, grader="2")
    assert again.rows["a", 0]["verdict"] == "ungraded"
    assert json.loads(results.path.read_text())["verdict"] == "ungraded"
    assert stored(results)["grader"] == "2"


def test_another_reference_answer_grades_again_and_asks_no_model(results):
    opened(results).append([row("a"), row("b")])
    mended = (SOURCE[0], replace(SOURCE[1], target=["7", "seven"], tolerance=0.5), *SOURCE[2:])
    again = opened(results, replace(SUMS, rows=mended[:4], source=mended))
    assert again.rows["a", 0] == row("a")
    assert again.rows["b", 0] == {**row("b", "ungraded"), "target": ["7", "seven"], "tolerance": 0.5}
    assert stored(results)["benchmark_fingerprint"] != SUMS.fingerprint


def test_completions_without_their_settings_are_refused(results):
    results.path.write_text("")
    with pytest.raises(ValueError, match="how it was made is not known"):
        opened(results)


def test_overwriting_starts_afresh(results):
    opened(results).append([row("a")])
    assert not opened(results, overwrite=True, model_fingerprint="m2").rows
    assert not results.path.exists()
    assert stored(results)["model_fingerprint"] == "m2"


def test_settings_without_a_completion_bind_nobody(results):
    opened(results)
    assert not opened(results, model_fingerprint="m2").rows
    assert stored(results)["model_fingerprint"] == "m2"


def test_nothing_is_written_before_it_begins(results):
    results.open(SETTINGS, SUMS, render, regraded)
    assert not results.settings_path.exists()
    opened(results).append([row("a")])
    before = results.path.read_bytes(), results.settings_path.read_bytes()
    again = Results(results.path.parent, "sums", "sample")
    again.open({**SETTINGS, "grader": "2", "num_samples": 4}, SUMS, render, regraded)
    assert (results.path.read_bytes(), results.settings_path.read_bytes()) == before
    again.begin()
    assert json.loads(results.path.read_text())["verdict"] == "ungraded"


def test_finished_completions_stand_in_the_order_of_the_benchmark(results):
    ours = opened(results)
    ours.append([row("b"), row("a", sample=1), row("c"), row("a", sample=0), row("b", "incorrect")])
    ours.finish(["c", "a", "b"])
    saved = [json.loads(line) for line in results.path.read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in saved] == [("c", 0), ("a", 0), ("a", 1), ("b", 0)]
    assert saved[-1]["verdict"] == "incorrect"  # of a line that stands twice the last counts
