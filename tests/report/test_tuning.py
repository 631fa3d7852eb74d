"""What a report says of the choice of learning rates."""

from __future__ import annotations

from dftune.report.tuning import grid_of, read_tuning


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
    assert tuning.metric == "accuracy on choose"
    assert [row.name for row in tuning.rows] == ["noisy sft", "noisy dynamic_ft", "noisy eaft", "noisy power"]
    assert grid_of(tuning.rows[0]) == "0.0001: 0.500, 0.0003: 0.625, 0.001: 0.100"
    assert grid_of(tuning.rows[3]) == "0.0001: failed, 0.0003: failed, 0.001: failed"
    assert list(tuning.notes()) == [
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
