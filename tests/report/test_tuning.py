"""What a report says of the choice of learning rates."""

from __future__ import annotations

from pathlib import Path

import yaml

from dftune.files import write_text
from dftune.report import read
from dftune.report.tables import build_table
from dftune.report.tuning import grid_of, read_tuning
from tests.report.conftest import make_recipe, verdict_rows, write_evaluation, write_manifest


def choice(objective: str, lr: float | None, edge: str | None, *values: float | None) -> dict[str, object]:
    grid = [{"lr": rate, "value": value} for rate, value in zip((1e-4, 3e-4, 1e-3), values, strict=True)]
    return {"model": "", "condition": "noisy", "objective": objective, "lr": lr, "at_edge": edge, "grid": grid}


def test_rates_stand_with_their_values_and_the_ends_of_grids_are_noted() -> None:
    choices = [
        choice("sft", 3e-4, None, 0.5, 0.6251, 0.1),
        choice("dynamic_ft", 1e-3, "largest", 0.5, 0.6, 0.7),
        choice("eaft", 1e-3, "largest", 0.5, 0.6, 0.7),
        choice("power", None, None, None, None, None),
    ]
    tuning = read_tuning({"metric": "accuracy", "benchmark": "recipes/choose.jsonl", "choices": choices})
    assert tuning.metric == "accuracy on choose (greedy)"
    assert [row.name for row in tuning.rows] == ["noisy sft", "noisy dynamic_ft", "noisy eaft", "noisy power"]
    assert grid_of(tuning.rows[0]) == "1e-4: 0.500, 3e-4: 0.625, 1e-3: 0.100"
    assert grid_of(tuning.rows[3]) == "1e-4: failed, 3e-4: failed, 1e-3: failed"
    nothing = build_table([])
    assert list(tuning.notes(nothing)) == [
        "No learning rate of noisy power was trained to the end with every seed: it has no result here.",
        "The largest learning rate of its grid was the best for noisy dynamic_ft and noisy eaft: a better one may lie "
        "beyond.",
    ]
    assert tuning.tried


def test_held_out_rows_are_called_so_and_a_single_rate_is_no_choice() -> None:
    one = {"model": "", "condition": "", "objective": "sft", "lr": 1e-4, "at_edge": None}
    tuning = read_tuning(
        {"metric": "nll", "benchmark": None, "choices": [{**one, "grid": [{"lr": 1e-4, "value": 1.0}]}]}
    )
    assert (tuning.metric, tuning.tried) == ("nll on held-out rows", False)


def write_rate(folder: Path, objective: str, lr: float, right: int) -> Path:
    """A finished run at a learning rate that answers so many of 100 questions."""
    name = f"{objective}-{lr:g}"
    recipe = {**make_recipe(name, {"name": objective}, 0), "optimizer": {"lr": lr}}
    write_text(folder / name / "recipe.yaml", yaml.safe_dump(recipe))
    write_manifest(folder / name, "train", 0, {"name": objective})
    write_evaluation(folder / name, 10, verdict_rows("1" * right + "0" * (100 - right)))
    return folder / name


def test_a_finding_between_two_rates_is_told_with_the_difference_at_one_rate(tmp_path: Path) -> None:
    """dynamic_ft wins by its rate alone: at that rate sft is as good."""
    right = {("sft", 1e-4): 30, ("sft", 1e-3): 71, ("dynamic_ft", 1e-4): 30, ("dynamic_ft", 1e-3): 70}
    runs = {key: write_rate(tmp_path, *key, number) for key, number in right.items()}
    choices = [choice("sft", 1e-4, None, 0.7, 0.6, 0.6), choice("dynamic_ft", 1e-3, "largest", 0.6, 0.6, 0.7)]
    found = read(
        [runs["sft", 1e-4], runs["dynamic_ft", 1e-3]],
        selection={"metric": "accuracy", "benchmark": "choose.jsonl", "choices": choices},
        swept=[runs["sft", 1e-3], runs["dynamic_ft", 1e-4]],
    )
    assert "dynamic_ft (lr 1e-3) answers 40.0 points more than sft (lr 1e-4) (greedy, 95 % interval " in found.verdict
    assert "); with both at lr 1e-3 it is \N{MINUS SIGN}1.0 points (" in found.verdict
    assert "the best learning rate of 1 of 2 conditions is an end of its grid" in found.verdict
    assert len(found.table.trained) == 2
    assert found.table.num_comparisons == 1  # rates that were not chosen are compared with nothing


def test_answers_that_rates_were_not_chosen_by_are_noted(tmp_path: Path) -> None:
    run = write_rate(tmp_path, "sft", 1e-4, 30)
    write_evaluation(run, 10, verdict_rows("1" * 30), protocol="sample")
    choices = [choice("sft", 1e-4, "smallest", 0.7, 0.6, 0.6)]
    selection = {"metric": "accuracy", "benchmark": "choose.jsonl", "choices": choices}
    notes = " ".join(read([run], selection=selection).notes)
    assert "Learning rates were chosen by greedy answers; scores under sample may be best at other rates" in notes
    assert "chosen by" not in " ".join(read([run], selection={**selection, "metric": "nll"}).notes)
