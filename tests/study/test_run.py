"""Studies on a tiny model: trained, chosen, evaluated, reported; stopped, failed and taken up again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.study.tiny import sections, study_values
from tests.train.runs import assert_same_run, rows_of

from dftune import report
from dftune.cli import main
from dftune.config import validate
from dftune.data.dataset import PreparedDataset
from dftune.demo.problems import generate
from dftune.demo.run import BASE_MODEL, write_problems
from dftune.environment import available_cores
from dftune.files import read_json, read_jsonl
from dftune.recipe import Recipe
from dftune.study.board import Board, State
from dftune.study.budget import check_budgets
from dftune.study.cell import train_cell
from dftune.study.config import make_study
from dftune.study.plan import Cell, Plan
from dftune.study.run import finish, work
from dftune.study.status import follow, status
from dftune.study.workers import places

OBJECTIVES = [{"name": "sft"}, {"name": "dynamic_ft"}]
RATES = {1e-4: "1e-4", 3e-4: "3e-4"}


def run_here(recipe):
    """A study in this process, as one worker does it."""
    work(recipe, 120.0)
    plan = Plan(recipe)
    return finish(plan, Board(plan.folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two objectives, two rates, two seeds on the demo's base, with a test and problems to choose by."""
    folder = tmp_path_factory.mktemp("study")
    test, choose_by = folder / "stories.jsonl", folder / "choose.jsonl"
    write_problems(test, generate(4, seed=0, split="test"))
    write_problems(choose_by, generate(6, seed=0, split="validation"))
    write_problems(folder / "train.jsonl", generate(40, seed=0, split="train"))
    study = {
        "objectives": OBJECTIVES,
        "lrs": [1e-4, 3e-4],
        "seeds": [0, 1],
        "select": {"metric": "accuracy", "benchmark": str(choose_by)},
    }
    changes = {
        "data": {"source": str(folder / "train.jsonl")},
        "model": {"scratch": None, "path": str(BASE_MODEL)},
        "train": {"steps": 2, "batch_size": 4},
        "evaluate": {"benchmarks": [str(test)], "max_tokens": 16},
    }
    recipe = make_study(study_values(folder, study, **changes), "test")
    Plan(recipe).begin()
    return recipe, run_here(recipe)


def test_every_objective_is_tuned_alike_and_its_best_rate_is_run_with_all_seeds(finished):
    recipe, outcome = finished
    assert outcome.sound
    assert [choice.key[2] for choice in outcome.choices] == ["sft", "dynamic_ft"]
    names = {path.name for path in (recipe.output / "cells").iterdir()}
    tuned = {f"{name}-lr{rate}-s0" for name in ("sft", "dynamic_ft") for rate in ("1e-4", "3e-4")}
    chosen = {f"{c.key[2]}-lr{'1e-4' if c.lr == 1e-4 else '3e-4'}-s{seed}" for c in outcome.choices for seed in (0, 1)}
    assert names == tuned | chosen
    for choice in outcome.choices:
        for rate, value in choice.values:
            cell = f"{choice.key[2]}-lr{'1e-4' if rate == 1e-4 else '3e-4'}-s0"
            (rows,) = (recipe.output / "tuning" / cell).glob("evals/step-2/choose.greedy.jsonl")
            verdicts = [row["verdict"] for row in read_jsonl(rows)]
            assert value == verdicts.count("correct") / 6


def test_only_the_chosen_runs_have_met_the_benchmarks_and_the_base_has_met_them_once(finished):
    recipe, outcome = finished
    evaluated = {path.parents[2].name for path in recipe.output.glob("cells/*/evals/step-*/stories.greedy.jsonl")}
    rates = {choice.key[2]: choice.lr for choice in outcome.choices}
    cells = {cell.name for cell in Plan(recipe).chosen_cells(outcome.choices)}
    assert evaluated == cells
    assert len(cells) == 4
    assert set(rates) == {"sft", "dynamic_ft"}
    assert not list(recipe.output.glob("cells/*/evals/step-*/choose*"))
    assert [path.name for path in (recipe.output / "base").iterdir()] == ["base"]
    report = (recipe.output / "report.md").read_text()
    assert all(name in report for name in ("base", "sft", "dynamic_ft", "stories"))
    assert "choose.greedy" not in report


def test_the_report_says_how_rates_were_chosen_and_shows_those_that_were_not(finished):
    recipe, outcome = finished
    choices = read_json(recipe.output / "selection.json")["choices"]
    lines = (recipe.output / "report.md").read_text().splitlines()
    start = lines.index("## Choice of learning rates")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : start + 6]]
    assert table[0] == ["objective", "chosen", "accuracy on choose (greedy), by rate"]
    assert table[2:] == [
        [one["objective"], RATES[one["lr"]], ", ".join(f"{RATES[at['lr']]}: {at['value']:.3f}" for at in one["grid"])]
        for one in choices
    ]
    html = (recipe.output / "report.html").read_text()
    assert "NLL on held-out rows by learning rate" in html
    assert html.count("<h2>Choice of learning rates</h2>") == 1
    assert {row.label for row in outcome.report.table.conditions} >= {"base"}
    assert len(outcome.report.table.trained) == 2
    whole = report.read([recipe.output])  # every rate by itself, and the same choice
    assert len(whole.table.trained) == 4
    assert whole.tuning.rows == outcome.report.tuning.rows


def test_data_are_prepared_once_and_all_objectives_saw_the_same_tokens_at_every_step(finished):
    recipe, outcome = finished
    assert [path.name for path in (recipe.output / "prepared").iterdir()] == ["data"]
    assert outcome.unequal == ()
    seen = {}
    for cell in (recipe.output / "cells").glob("*-s0"):
        rows = rows_of(cell, "train")
        seen[cell.name] = [(step, rows[step]["tokens"], rows[step]["supervised_tokens"]) for step in sorted(rows)]
    assert len(seen) == 4
    assert len({json.dumps(rows) for rows in seen.values()}) == 1


@pytest.mark.parametrize(("protocol", "file", "samples"), [(None, "greedy", 1), ("avg@2", "sample", 2)])
def test_a_rate_can_be_chosen_by_answers_to_the_held_out_rows(tmp_path, protocol, file, samples):
    select = {"metric": "accuracy", "protocol": protocol}
    study = {"objectives": [{"name": "sft"}], "lrs": [1e-3, 1e-2], "seeds": [0], "select": select}
    values = study_values(tmp_path, study, train={"steps": 1}, evaluate={"max_tokens": 4, "num_samples": 3})
    recipe = make_study(values, "test")
    outcome = run_here(recipe)
    assert outcome.sound
    (choice,) = outcome.choices
    assert choice.lr == 1e-3  # a model of one step answers nothing: of equals the smallest
    assert choice.values == ((1e-3, 0.0), (1e-2, 0.0))
    held_out = PreparedDataset.load(recipe.output / "prepared" / "data").ids("validation")
    (rows,) = (recipe.output / "tuning" / "sft-lr1e-3-s0").glob(f"evals/step-1/validation.{file}.jsonl")
    assert sorted(row["id"] for row in read_jsonl(rows)) == sorted([*held_out] * samples)


def test_reference_log_probabilities_are_computed_once_for_all_objectives_and_seeds(tmp_path):
    write_problems(tmp_path / "train.jsonl", generate(30, seed=0, split="train"))
    study = {"objectives": [{"name": "iw_sft"}, {"name": "prior_ft"}], "lrs": [1e-4], "seeds": [0, 1]}
    changes = {
        "data": {"source": str(tmp_path / "train.jsonl")},
        "model": {"scratch": None, "path": str(BASE_MODEL)},
        "train": {"steps": 1, "batch_size": 2},
    }
    recipe = make_study(study_values(tmp_path, study, **changes), "test")
    assert run_here(recipe).sound
    references = {read_json(cell / "manifest.json")["reference"] for cell in (recipe.output / "cells").iterdir()}
    stored = [path.name for path in (recipe.output / "prepared/data/reference").iterdir() if path.is_dir()]
    assert len(list((recipe.output / "cells").iterdir())) == 4
    assert stored == list(references)


def test_each_model_of_a_study_is_evaluated_once_and_its_runs_gain_over_it(tmp_path):
    test = tmp_path / "stories.jsonl"
    write_problems(test, generate(4, seed=0, split="test"))
    write_problems(tmp_path / "train.jsonl", generate(20, seed=0, split="train"))
    for name, scale in (("demo", 1.0), ("halved", 0.5)):
        folder = Path(shutil.copytree(BASE_MODEL, tmp_path / name))
        weights = load_file(folder / "model.safetensors")
        save_file(
            {key: scale * value for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    study = {
        "objectives": OBJECTIVES,
        "seeds": [0],
        "lrs": [1e-4],
        "models": {name: {"path": str(tmp_path / name)} for name in ("demo", "halved")},
    }
    changes = {
        "data": {"source": str(tmp_path / "train.jsonl")},
        "model": {"scratch": None},
        "train": {"steps": 1, "batch_size": 2},
        "evaluate": {"benchmarks": [str(test)], "max_tokens": 8},
    }
    recipe = make_study(study_values(tmp_path, study, **changes), "test")
    outcome = run_here(recipe)
    assert outcome.sound
    assert sorted(path.name for path in (recipe.output / "base").iterdir()) == ["base-demo", "base-halved"]
    assert sorted(path.name for path in (recipe.output / "cells").iterdir()) == [
        f"{model}-{objective}-lr1e-4-s0" for model in ("demo", "halved") for objective in ("dynamic_ft", "sft")
    ]
    table = outcome.report.table
    assert [row.label for row in table.conditions if row.kind == "base"] == ["base (demo)", "base (halved)"]
    (column,) = table.columns
    for row in table.trained:
        base = table.base_of(row, column)
        assert base.label == f"base ({row.details.removeprefix('path ')})"
        assert table.compared_with.get(row.label) == (None if row.name == "sft" else f"sft ({row.details})")


def test_a_finished_study_is_not_run_again(finished):
    recipe, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (recipe.output / "cells").rglob("*") if path.is_file()}
    assert run_here(recipe).sound
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_status_of_a_finished_study_counts_its_tasks(finished, capsys):
    recipe, _ = finished
    assert main(["study", "status", str(recipe.output), "--once"]) == 0
    said = capsys.readouterr().out
    counts = {line[:16].strip(): line[16:].split() for line in said.splitlines() if line[:16].strip()}
    assert counts["prepare data"] == ["1", "0", "0", "0"]
    assert counts["base models"] == ["1", "0", "0", "0"]
    assert counts["learning rates"] == ["4", "0", "0", "0"]
    assert counts["runs"] == ["4", "0", "0", "0"]


def test_budgets_that_differ_are_found_in_what_was_logged(tmp_path):
    cells = []
    for name, changes in {"one": {}, "two": {"batch_size": 4}, "three": {"steps": 3}}.items():
        values = {**sections(tmp_path, train=changes), "name": name, "output": str(tmp_path / name)}
        values["objective"] = {"name": "sft"}
        values["optimizer"]["lr"] = 1e-3
        values["data"]["prepared"] = str(tmp_path / "prepared")
        recipe = validate(values, Recipe, name)
        train_cell(recipe)
        cells.append(Cell(name, ("", "", name), 1e-3, 0, recipe))
    one, two, three = cells
    rows = [rows_of(cell.recipe.output, "train") for cell in cells]
    assert list(check_budgets([one, one], ("examples", "steps", "tokens"))) == []
    (difference,) = check_budgets([one, two], ("tokens",))
    assert difference == f"one and two: {rows[0][1]['tokens']:,} against {rows[1][1]['tokens']:,} tokens after step 1"
    (difference,) = check_budgets([one, three], ("examples", "steps", "tokens"))
    assert difference == "one and three: 4 against 3 optimizer steps"
    (difference,) = check_budgets([one, two], ("examples",))
    assert "epochs after step 1" in difference


def test_a_run_that_fails_is_recorded_ruled_out_and_tried_again_when_asked(tmp_path):
    study = {"objectives": OBJECTIVES, "lrs": [1e-3, 1e30], "seeds": [0], "select": {"metric": "nll"}}
    recipe = make_study(study_values(tmp_path, study, train={"steps": 3}), "test")
    outcome = run_here(recipe)
    assert set(outcome.failed) == {"tune.sft-lr1e30-s0", "tune.dynamic_ft-lr1e30-s0"}
    assert all("Lower optimizer.lr" in error for error in outcome.failed.values())
    assert [choice.lr for choice in outcome.choices] == [1e-3, 1e-3]
    assert not outcome.sound
    board = Board(recipe.output)
    assert sorted(board.forget_failed()) == sorted(outcome.failed)
    assert board.claims.take("tune.sft-lr1e30-s0").name == "tune.sft-lr1e30-s0.1"


def test_what_needs_data_that_cannot_be_prepared_fails_with_them(tmp_path):
    study = {"objectives": OBJECTIVES, "lrs": [1e-3], "select": {"metric": "nll"}, "seeds": [0]}
    recipe = make_study(study_values(tmp_path, study, data={"source": str(tmp_path / "missing.jsonl")}), "test")
    outcome = run_here(recipe)
    assert set(outcome.failed) == {"prepare.data", "run.sft-lr1e-3-s0", "run.dynamic_ft-lr1e-3-s0"}
    assert "it needs prepare.data, which failed" in outcome.failed["run.sft-lr1e-3-s0"]
    assert outcome.report is None


def test_the_dry_run_counts_runs_steps_and_tokens_and_leaves_nothing_behind(tmp_path, capsys):
    study = {
        "objectives": OBJECTIVES,
        "lrs": [1e-3, 1e-2],
        "select": {"metric": "nll"},
        "conditions": {"a": {}, "b": {}},
    }
    path = tmp_path / "study.yaml"
    values = study_values(tmp_path, study, train={"steps": None, "epochs": 2})
    path.write_text(yaml.safe_dump(values))
    assert main(["study", str(path), "--dry-run", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(("sft", "dynamic_ft"))]
    assert [row[:3] for row in rows] == [[o, "-", c] for c in "ab" for o in ("sft", "dynamic_ft")]
    # 60 rows, 8 of them held out: 104 visits of 8 are 13 steps; two rates once, two further seeds
    assert all(row[3:7] == ["2", "+", "2", "13"] for row in rows)
    assert "tiny: 16 runs, 1 CPU worker" in said
    assert "from 4 steps of each objective" in said
    assert not (tmp_path / "study").exists()


class StopError(Exception):
    """Ends a run from outside."""


def test_the_status_shows_who_trains_what_and_how_far_it_is(tmp_path):
    study = {"objectives": OBJECTIVES, "lrs": [1e-3], "seeds": [0]}
    plan = Plan(make_study(study_values(tmp_path, study), "test"))
    plan.begin()
    board = Board(plan.folder)
    board.record("prepare.data", State("done"))

    def stop(row):
        if row["kind"] == "train" and row["step"] == 3:
            raise StopError

    first, second = plan.first_cells
    with board.claims.held(board.claims.take(f"run.{first.name}")):
        with pytest.raises(StopError):
            train_cell(first.recipe, stop)
        board.record(f"run.{second.name}", State("failed", error="out of luck"))
        text, over = status(plan.folder)
    lines = text.splitlines()
    assert next(line.split() for line in lines if line.startswith("runs")) == ["runs", "0", "1", "1", "0"]
    (at_work,) = (line for line in lines if f"run.{first.name}" in line)
    assert "step 3 of 4" in at_work
    assert f"process {os.getpid()}" in at_work
    assert any(f"failed: run.{second.name}: out of luck" in line for line in lines)
    assert not over


def test_a_status_is_followed_until_the_last_one_and_stays_on_the_screen(capsys):
    texts = iter([("1 of 3", False), ("2 of 3", False), ("3 of 3", True), ("never asked for", True)])
    follow(lambda: next(texts), every_s=0.0)
    assert "3 of 3" in capsys.readouterr().out
    assert next(texts) == ("never asked for", True)


def test_cores_are_divided_among_workers():
    cores = available_cores()
    for num in (1, 2, 4 * cores):
        where = places(num, "cpu")
        assert [dict(each) for each in where.environments] == [{"OMP_NUM_THREADS": str(max(1, cores // num))}] * num
    assert len(places(None, "cpu").environments) == min(4, cores)
    with pytest.raises(ValueError, match="at least 1"):
        places(0, "cpu")


def study_command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dftune", "study", str(path), *arguments]


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        assert process.poll() is None, "the study ended too early"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_study_killed_in_the_middle_and_run_by_two_commands_ends_as_if_nothing_had_happened(tmp_path):
    """The first command is killed with a run half done; two others share what is left, and one worker is killed."""
    train = {"steps": 150, "checkpoint_every": 5, "keep_checkpoints": 1}
    values = study_values(tmp_path, {"objectives": OBJECTIVES, "lrs": [1e-3], "select": {"metric": "nll"}}, train=train)
    path, folder = tmp_path / "study.yaml", tmp_path / "study"
    path.write_text(yaml.safe_dump(values))
    first = subprocess.Popen(study_command(path, "--workers", "1"), stderr=subprocess.DEVNULL)
    cell = folder / "cells" / "sft-lr1e-3-s0"
    wait_for(lambda: any((cell / "checkpoints").glob("step-*")), first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen(study_command(path, "--workers", "1"), stderr=subprocess.DEVNULL) for _ in range(2)]
    board = Board(folder)
    held = wait_for(lambda: board.claims.holder("run.dynamic_ft-lr1e-3-s0"), both[0])
    os.kill(held.pid, signal.SIGKILL)
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    cells = sorted((folder / "cells").iterdir())
    assert [cell.name for cell in cells] == [f"{o}-lr1e-3-s{seed}" for o in ("dynamic_ft", "sft") for seed in (0, 1, 2)]
    for run in cells:
        rows = read_jsonl(run / "events.jsonl")
        assert [row["status"] for row in rows if row["kind"] == "end"] == ["finished"]
    assert any(row["kind"] == "start" and row["resumed"] for row in read_jsonl(cell / "events.jsonl"))
    assert (folder / "claims" / "run.sft-lr1e-3-s0.1").is_file()
    assert read_json(folder / "budgets.json")["differences"] == []
    recipe = Plan(make_study(values, "test")).first_cells[0].recipe
    undisturbed = recipe.model_copy(update={"output": tmp_path / "undisturbed"})
    train_cell(undisturbed)
    assert_same_run(cell, undisturbed.output)
