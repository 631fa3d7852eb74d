import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.track.readers import read_tensorboard, read_wandb, wandb_records

from dftune.files import append_jsonl, read_json, write_json
from dftune.track.config import TrackConfig
from dftune.track.export import Exporter, exporting, track_config

NAMES = ("tensorboard", "wandb", "trackio", "mlflow")


def row(kind, step, time=None, **values):
    return {"kind": kind, "step": step, "time": 1000.0 + step if time is None else time, **values}


def score(step, accuracy, benchmark="sums"):
    return row("evaluation", step, source="watch", benchmark=benchmark, protocol="avg@4", accuracy=accuracy)


FIRST = [
    row("start", 0, num_steps=30),
    row("validation", 0, nll=2.5, p_histogram=[1, 2]),
    row("train", 10, loss=1.5, p_eot=None),
    row("system", 10, cpu_percent=90.0),
    score(10, 0.25),
]
RESUMED = [row("start", 0, time=2000.0), row("train", 10, time=2001.0, loss=1.25), row("train", 20, loss=0.75)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "runs" / "tracked"
    folder.mkdir(parents=True)
    recipe = {"name": "tracked", "optimizer": {"lr": 0.5}, "track": {"to": ["tensorboard"], "project": "tests"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    append_jsonl(folder / "events.jsonl", FIRST)
    return folder


def add(run, *rows):
    append_jsonl(run / "events.jsonl", rows)


def open_exporter(run, name):
    pytest.importorskip({"mlflow": "mlflow.tracking"}.get(name, name))
    uri = f"sqlite:///{run.parent / 'mlflow.db'}"
    return Exporter(run, name, TrackConfig(to=(name,), project=project(run), wandb_mode="offline", mlflow_uri=uri))


def project(run):
    """One for each test: trackio reads where its database is only once."""
    return f"tests-{run.parents[1].name}"[:40]


def export(run, name):
    exporter = open_exporter(run, name)
    sent = exporter.sync()
    exporter.close()
    return sent


def wandb_file(run) -> Path:
    (found,) = (run / "track" / "wandb").glob("offline-run-*/*.wandb")
    return found


def series(run, name):
    """Every metric's steps and values, as the tracker holds them."""
    found: dict[str, list[tuple[int, float]]] = {}
    if name == "tensorboard":
        found = read_tensorboard(run / "track" / "tensorboard")
    elif name == "wandb":
        for history in read_wandb(wandb_file(run)):
            step = history.pop("step")
            for key, value in history.items():
                found.setdefault(key, []).append((step, value))
    elif name == "trackio":
        trackio = importlib.import_module("trackio")
        (only,) = trackio.Api().runs(project(run))
        for logged in trackio.SQLiteStorage.get_logs(project(run), only.name, run_id=only.id):
            for key, value in logged.items():
                if "/" in key:
                    found.setdefault(key, []).append((logged["step"], value))
    else:
        client = importlib.import_module("mlflow.tracking").MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
        (only,) = client.search_runs([client.get_experiment_by_name(project(run)).experiment_id])
        for key in only.data.metrics:
            history = client.get_metric_history(only.info.run_id, key)
            found[key.replace("_at_", "@")] = [(metric.step, metric.value) for metric in history]
    return {key: sorted(values) for key, values in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_training_and_evaluation_stand_in_one_run_under_optimizer_steps(run, name):
    assert export(run, name) == 4
    assert series(run, name) == {
        "validation/nll": [(0, 2.5)],
        "train/loss": [(10, 1.5)],
        "system/cpu_percent": [(10, 90.0)],
        "eval/sums/avg@4/accuracy": [(10, 0.25)],
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_second_sync_adds_nothing_and_a_later_one_what_is_new(run, name):
    export(run, name)
    before = series(run, name)
    assert export(run, name) == 0
    assert series(run, name) == before
    add(run, row("train", 20, loss=0.5), score(5, 0.125))  # an older checkpoint, evaluated late
    export(run, name)
    after = series(run, name)
    assert after["train/loss"] == [(10, 1.5), (20, 0.5)]
    assert after["eval/sums/avg@4/accuracy"] == [(5, 0.125), (10, 0.25)]
    assert after["validation/nll"] == [(0, 2.5)]


@pytest.mark.parametrize("name", NAMES)
def test_of_a_step_that_a_resumed_run_repeated_the_last_value_stands(run, name):
    export(run, name)
    add(run, *RESUMED)
    export(run, name)
    found = series(run, name)
    assert found["train/loss"] == [(10, 1.25), (20, 0.75)]
    assert found["validation/nll"] == [(0, 2.5)]


@pytest.mark.parametrize("name", NAMES)
def test_a_live_exporter_sends_as_rows_come(run, name):
    exporter = open_exporter(run, name)
    assert exporter.sync() == 4
    assert exporter.sync() == 0
    add(run, row("train", 20, loss=0.5))
    assert exporter.sync() == 1
    exporter.close()
    assert series(run, name)["train/loss"] == [(10, 1.5), (20, 0.5)]


@pytest.mark.parametrize("name", NAMES)
def test_what_an_exporter_sent_before_it_was_killed_does_not_stand_twice(run, name):
    export(run, name)
    add(run, row("train", 20, loss=0.5))
    state = run / "track" / f"{name}.json"
    before = read_json(state)
    export(run, name)
    write_json(state, {**read_json(state), "num_rows": before["num_rows"], "sending": True})  # sent, and not noted
    export(run, name)
    assert series(run, name)["train/loss"] == [(10, 1.5), (20, 0.5)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_whose_state_was_lost_is_exported_whole_in_place_of_what_is_there(run, name):
    export(run, name)
    (run / "track" / f"{name}.json").unlink()
    if name == "wandb":
        wandb_file(run).unlink()  # it makes another folder each time, and does not know the old one any more
    assert export(run, name) == 4
    assert series(run, name)["train/loss"] == [(10, 1.5)]


@pytest.mark.parametrize("name", NAMES)
def test_another_run_in_the_folder_takes_the_place_of_the_one_before(run, name):
    export(run, name)
    (run / "events.jsonl").unlink()
    add(run, row("start", 0, time=5000.0), row("train", 1, loss=4.0))
    export(run, name)
    assert series(run, name) == {"train/loss": [(1, 4.0)]}


def test_the_time_of_a_point_is_that_of_its_row_in_tensorboard(run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    export(run, "tensorboard")
    found = event_accumulator.EventAccumulator(str(run / "track" / "tensorboard"))
    found.Reload()
    assert [event.wall_time for event in found.Scalars("train/loss")] == [1010.0]


def test_the_offline_run_of_wandb_names_its_axis_and_holds_the_recipe(run):
    export(run, "wandb")
    records = list(wandb_records(wandb_file(run)))
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert [(metric.glob_name, metric.step_metric) for metric in metrics if metric.glob_name] == [("*", "step")]
    (header,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in header.config.update}
    assert (header.project, header.display_name, config["optimizer"]) == (project(run), "tracked", {"lr": 0.5})
    assert header.run_id == read_json(run / "track" / "wandb.json")["first"]


def test_an_offline_run_that_was_sent_to_wandb_is_followed_by_one_under_another_id(run):
    export(run, "wandb")
    sent = wandb_file(run)
    Path(f"{sent}.synced").touch()
    add(run, row("train", 20, loss=0.5))
    export(run, "wandb")
    files = sorted((run / "track" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    (other,) = [file for file in files if file != sent]
    assert other.name == f"{sent.stem}-2.wandb"
    assert [entry["train/loss"] for entry in read_wandb(other) if "train/loss" in entry] == [1.5, 0.5]


def test_one_exporter_at_a_time(run):
    with exporting(run), pytest.raises(ValueError, match="exported by another process"), exporting(run):
        pass


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="holds no training run"):
        track_config(tmp_path, {})
    with pytest.raises(ValueError, match="Input should be 'tensorboard'"):
        track_config(run, {"to": ["excel"]})
    (run / "recipe.yaml").write_text("name: tracked\n")
    with pytest.raises(ValueError, match="which tracker"):
        track_config(run, {})
    (run / "events.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no metrics"):
        Exporter(run, "tensorboard", TrackConfig())


def track(*arguments, **environment):
    command = [sys.executable, "-m", "dftune", "track", "sync", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_sent_without_torch(run):
    pytest.importorskip("tensorboard")
    done = track(run)
    assert (done.returncode, done.stdout) == (0, f"{run}: 4 points to tensorboard\n")
    assert track(run).stdout == f"{run}: tensorboard has it all\n"


def test_a_tracker_that_refuses_is_said_and_the_others_get_theirs(run):
    pytest.importorskip("tensorboard")
    (run / "track").mkdir()
    (run / "track" / "wandb").write_text("in the way")
    done = track(run, "--to", "wandb", "tensorboard", "--wandb-mode", "online", WANDB_API_KEY="short")
    assert done.returncode == 1
    assert "dftune track: wandb failed: " in done.stderr
    assert "4 points to tensorboard" in done.stdout


@pytest.mark.parametrize("finished", [True, False])
def test_beside_training_it_exports_what_comes_until_training_ends(run, finished):
    pytest.importorskip("tensorboard")
    (run / "manifest.json").write_text("{}")
    (run / "recipe.yaml").write_text(json.dumps({"name": "tracked", "track": {"to": ["tensorboard"], "poll_s": 0.05}}))
    command = [sys.executable, "-m", "dftune", "track", "sync", str(run), "--parent"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    state = run / "track" / "tensorboard.json"
    while not state.is_file() or read_json(state)["sending"]:
        assert process.poll() is None
        time.sleep(0.02)
    add(run, row("train", 20, loss=0.5))
    if finished:
        process.stdin.write(b"finished\n")
    process.stdin.close()
    assert process.wait(60) == (0 if finished else -signal.SIGTERM)
    if finished:
        assert series(run, "tensorboard")["train/loss"] == [(10, 1.5), (20, 0.5)]
