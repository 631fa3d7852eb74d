import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading

import pytest
from tests.watch.folders import RIGHT, FakeTraining

from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.record import record
from dftune.evaluate.runner import evaluate
from dftune.files import locked, read_json, read_jsonl, write_json
from dftune.watch.config import WatchConfig
from dftune.watch.ledger import claimed, waiting
from dftune.watch.watcher import Watcher, watch_device, watch_threads


def make_watcher(training, problems, **options):
    config = EvaluateConfig(benchmarks=(str(problems),), max_tokens=20)
    said = []
    watcher = Watcher(training.path, config, poll_s=0.01, say=said.append, **options)
    watcher.said = said
    return watcher


@pytest.mark.parametrize(
    ("policy", "order"),
    [("all", [10, 20, 30, 40]), ("newest", [40, 30, 20, 10]), ("best", [10, 30, 40])],
)
def test_a_policy_says_which_checkpoints_are_evaluated_in_which_order(training, problems, policy, order):
    answers = {10: "7", 20: "8", 30: "7", 40: "8"}
    for (step, answer), nll in zip(list(answers.items())[:3], (1.0, 2.0, 0.5), strict=True):
        training.checkpoint(step, answer, nll)
    training.end(40, "8")
    watcher = make_watcher(training, problems, policy=policy)
    assert watcher.watch() == order
    assert training.evaluations() == [(step, RIGHT[answers[step]]) for step in order]
    assert (watcher.engine.num_loaded, watcher.engine.num_swapped) == (1, len(order) - 1)


def test_a_second_watcher_finds_everything_done(training, problems):
    training.checkpoint(10, "7")
    training.end(20, "8")
    assert make_watcher(training, problems).watch() == [10, 20]
    again = make_watcher(training, problems)
    assert again.watch() == []
    assert again.engine.num_loaded == 0
    assert len(training.evaluations()) == 2


def test_it_waits_for_checkpoints_and_ends_when_the_run_has(training, problems):
    training.checkpoint(10, "7")
    watcher = make_watcher(training, problems)
    thread = threading.Thread(target=watcher.watch)
    thread.start()
    while len(training.evaluations()) < 1:
        thread.join(0.01)
    training.checkpoint(20, "8")
    while len(training.evaluations()) < 2:
        thread.join(0.01)
    assert thread.is_alive()
    training.end(30, "7")
    thread.join(30)
    assert not thread.is_alive()
    assert training.evaluations() == [(10, 0.75), (20, 0.25), (30, 0.75)]
    assert [line for line in watcher.said if "is not being trained now" in line]


def test_once_leaves_the_model_of_a_run_that_has_not_ended(training, problems):
    training.checkpoint(10, "7")
    assert make_watcher(training, problems).watch(once=True) == [10]


def test_two_watchers_share_the_work(training, problems):
    for step in range(10, 60, 10):
        training.checkpoint(step, "7")
    training.end(60, "7")
    watchers = [make_watcher(training, problems) for _ in range(2)]
    found = [[], []]
    threads = [
        threading.Thread(target=lambda which=which: found[which].extend(watchers[which].watch())) for which in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found[0] + found[1]) == [10, 20, 30, 40, 50, 60]
    assert sorted(training.evaluations()) == [(step, 0.75) for step in range(10, 70, 10)]
    assert len(read_jsonl(training.path / "evals" / "step-10" / "sums.greedy.jsonl")) == 4


def test_a_checkpoint_that_another_watcher_is_at_is_left_to_it(training, problems):
    training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    with claimed(training.path, 10):
        assert make_watcher(training, problems).watch(once=True) == [20]
    assert make_watcher(training, problems).watch(once=True) == [10]


def test_a_checkpoint_that_is_being_evaluated_otherwise_waits_and_is_then_only_recorded(training, problems):
    training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    watcher = make_watcher(training, problems)
    results = training.path / "evals" / "step-10"
    with locked(results / ".sums.greedy.lock", "what `dftune evaluate` is at"):
        assert watcher.watch(once=True) == [20]
    assert [line for line in watcher.said if "step 10 has to wait: " in line and f"process {os.getpid()}" in line]
    assert watcher.failed == {}
    assert watcher.watch(once=True) == [10]


def watch_until(path, problems, end):
    """Watch, and die where a file with this end is opened."""

    def kill(event, arguments):
        if event == "open" and str(arguments[0]).endswith(end):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    Watcher(
        path, EvaluateConfig(benchmarks=(str(problems),), max_tokens=20), poll_s=0.01, say=lambda line: None
    ).watch()


def test_a_killed_watcher_leaves_the_queue_on_disk_to_the_next_which_says_how_much_is_left(training, problems):
    for step in (10, 20, 30):
        training.checkpoint(step, "7")
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=watch_until, args=(training.path, problems, "step-20/sums.greedy.jsonl"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert training.evaluations() == [(10, 0.75)]
    assert waiting("all", read_jsonl(training.path / "events.jsonl")) == {20, 30}
    watcher = make_watcher(training, problems)
    assert watcher.watch(once=True) == [20, 30]
    assert [line.rpartition("; ")[2] for line in watcher.said] == ["1 more to evaluate", "0 more to evaluate"]
    assert training.evaluations() == [(10, 0.75), (20, 0.75), (30, 0.75)]


def test_a_checkpoint_that_was_evaluated_otherwise_before_is_only_recorded(training, problems):
    folder = training.checkpoint(10, "7")
    config = EvaluateConfig(benchmarks=(str(problems),), max_tokens=20)
    found = evaluate(str(folder / "model"), [str(problems)], config, training.path, step=10, device="cpu")
    record(training.path, found, "evaluate")
    record(training.path, found, "evaluate")
    assert len(training.evaluations()) == 1
    watcher = make_watcher(training, problems)
    assert watcher.watch(once=True) == [10]
    assert watcher.engine.num_loaded == 0
    rows = read_jsonl(training.path / "events.jsonl")
    assert [row["source"] for row in rows if row["kind"] == "evaluation"] == ["evaluate", "watch"]


def test_more_problems_are_evaluated_though_fewer_were(training, problems):
    training.checkpoint(10, "7")
    assert make_watcher(training, str(problems) + ":2").watch(once=True) == [10]
    assert make_watcher(training, problems).watch(once=True) == [10]
    assert training.evaluations() == [(10, 0.5), (10, 0.75)]


def test_a_checkpoint_that_cannot_be_evaluated_does_not_keep_the_others_waiting(training, problems):
    broken = training.checkpoint(10, "7")
    (broken / "model" / "config.json").unlink()
    training.checkpoint(20, "8")
    watcher = make_watcher(training, problems)
    assert watcher.watch(once=True) == [20]
    assert "no config.json" in watcher.failed[10]
    assert "step 10 could not be evaluated and is left" in watcher.said[0]


def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(training, problems):
    doomed = training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    watcher = make_watcher(training, problems)
    make = watcher.engine

    def delete_first(files, *arguments, **options):
        shutil.rmtree(doomed, ignore_errors=True)
        return make(files, *arguments, **options)

    watcher.engine = delete_first
    assert watcher.watch(once=True) == [20]
    assert watcher.said[0] == "the checkpoint of step 10 was deleted before it was evaluated"
    assert watcher.failed == {}


def test_another_run_in_the_same_folder_is_watched_from_its_beginning(training, problems, tmp_path):
    training.checkpoint(10, "7")
    watcher = make_watcher(training, problems)
    assert watcher.watch(once=True) == [10]
    shutil.rmtree(training.path)
    other = FakeTraining(tmp_path / "run", problems)
    other.checkpoint(10, "8")
    assert watcher.watch(once=True) == [10]
    assert other.evaluations() == [(10, 0.25)]


def test_without_a_benchmark_there_is_nothing_to_do(training):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Watcher(training.path, EvaluateConfig())


def test_it_takes_the_cores_and_the_device_that_training_leaves(training, monkeypatch):
    monkeypatch.setattr("dftune.watch.watcher.available_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    manifest = read_json(training.path / "manifest.json")

    def set_run(device, num_threads, world_size):
        hardware = {"device": device, "num_threads": num_threads}
        write_json(
            training.path / "manifest.json",
            {**manifest, "hardware": hardware, "distributed": {"world_size": world_size}},
        )

    for device, threads, size, wanted in (
        ("cuda:0", 1, 2, ("cuda:3", 6)),
        ("cuda:0", 2, 4, ("cpu", 1)),
        ("cpu", 3, 1, ("cuda:3", 5)),
    ):
        set_run(device, threads, size)
        found = watch_device(WatchConfig(), training.path), watch_threads(WatchConfig(), training.path)
        assert found == wanted
    assert watch_device(WatchConfig(device="cuda:1"), training.path) == "cuda:1"
    assert watch_threads(WatchConfig(threads=3), training.path) == 3


def test_scores_of_a_model_that_is_of_no_run_are_recorded_nowhere(training, problems, tmp_path):
    folder = training.checkpoint(10, "7")
    config = EvaluateConfig(benchmarks=(str(problems),), max_tokens=20)
    found = evaluate(str(folder / "model"), [str(problems)], config, tmp_path / "out", step=0, device="cpu")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"kind": "evaluate"}))
    record(tmp_path / "out", found, "evaluate")
    assert not (tmp_path / "out" / "events.jsonl").exists()
