"""Steps to a target, means of curves, sensitivity, bands and cost: worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dftune.files import append_jsonl, write_text
from dftune.report.cost import build_cost, knows_energy
from dftune.report.curves import line_of
from dftune.report.document import read
from dftune.report.figures import build_sections
from dftune.report.learning import build_learning, mean_height, steps_to
from dftune.report.markdown import cost_table
from dftune.report.sensitivity import sensitivity_charts
from dftune.report.tables import ResultTable
from tests.report.conftest import make_recipe, verdict_rows, write_evaluation, write_manifest
from tests.report.test_tables import table_of


def write_run(
    folder: Path,
    objective: str,
    seed: int,
    nlls: list[float],
    right: list[int],
    *,
    lr: float = 1e-4,
    source: str = "noisy",
    **counted: float,
) -> None:
    """A run validated at steps 0, 10, 20, ... and evaluated on ten questions at steps 10, 20, ..."""
    name = f"{source}-{objective}-{lr:g}-{seed}"
    recipe = make_recipe(name, {"name": objective}, seed, source=f"{source}.jsonl")
    write_text(folder / name / "recipe.yaml", yaml.safe_dump({**recipe, "optimizer": {"lr": lr}}))
    write_manifest(folder / name, "train", seed, {"name": objective}, data={"fingerprint": source})
    used = {"tokens": 1000 + seed, "peak_memory_bytes": (seed + 1) * 2**20, **counted}
    events = [
        {"kind": "start", "step": 0, "time": 0.0},
        *({"kind": "validation", "step": 10 * i, "time": float(i), "nll": nll} for i, nll in enumerate(nlls)),
        {"kind": "train", "step": 20, "time": 50.0, **used},
        {"kind": "end", "step": 20, "time": 60.0, "status": "finished"},
    ]
    append_jsonl(folder / name / "events.jsonl", events)
    for index, number in enumerate(right, 1):
        write_evaluation(folder / name, 10 * index, verdict_rows("1" * number + "0" * (10 - number)), seconds=5.0)


def two_objectives(folder: Path) -> ResultTable:
    write_run(folder, "sft", 0, [2.0, 1.5, 1.0], [3, 5])
    write_run(folder, "sft", 1, [2.0, 1.7, 1.2], [4, 7])
    write_run(folder, "dynamic_ft", 0, [2.0, 1.1, 0.9], [6, 8])
    write_run(folder, "dynamic_ft", 1, [2.0, 1.4, 1.3], [2, 3])
    return table_of(folder)


def test_steps_to_the_references_end_and_means_over_training_are_those_worked_by_hand(tmp_path: Path) -> None:
    rows = [(r.condition, r.target, r.steps, r.mean) for r in build_learning(two_objectives(tmp_path))]
    assert rows == [
        # sft ends with 50 and 70 %; trapezoids between steps 10 and 20
        ("sft", "60.0", "20 (1 of 2 seeds)", "47.5 (40.0 to 55.0)"),
        ("dynamic_ft", "60.0", "10 (1 of 2 seeds)", "47.5 (25.0 to 70.0)"),
        # NLL: 1.0 and 1.2; (2 + 1.5) / 4 + (1.5 + 1) / 4 = 1.5, and so on
        ("sft", "1.100", "20 (1 of 2 seeds)", "1.575 (1.500 to 1.650)"),
        ("dynamic_ft", "1.100", "10 (1 of 2 seeds)", "1.400 (1.275 to 1.525)"),
    ]


def test_the_target_is_that_of_the_reference_on_the_same_data(tmp_path: Path) -> None:
    for source, sft, dynamic in (
        ("clean", [2.0, 1.5, 1.0], [2.0, 0.9, 0.8]),
        ("noisy", [4.0, 3.5, 3.0], [4.0, 3.6, 3.2]),
    ):
        write_run(tmp_path, "sft", 0, sft, [], source=source)
        write_run(tmp_path, "dynamic_ft", 0, dynamic, [], source=source)
    assert [(r.condition, r.target, r.steps) for r in build_learning(table_of(tmp_path))] == [
        ("sft (source clean)", "1.000", "20"),
        ("dynamic_ft (source clean)", "1.000", "10"),
        ("sft (source noisy)", "3.000", "20"),
        ("dynamic_ft (source noisy)", "3.000", "not reached"),
    ]


def test_rates_of_one_objective_are_measured_by_the_first_of_them_on_their_data(tmp_path: Path) -> None:
    for source in ("clean", "noisy"):
        for lr, end in ((1e-4, 1.0), (1e-3, 0.5)):
            write_run(tmp_path, "sft", 0, [2.0, 1.5, end], [], lr=lr, source=source)
    targets = {r.condition: r.target for r in build_learning(table_of(tmp_path))}
    assert len(targets) == 4
    assert set(targets.values()) <= {"1.000", "0.500"}
    for source in ("clean", "noisy"):
        assert len({target for label, target in targets.items() if source in label}) == 1


def test_the_mean_of_a_curve_weighs_steps_by_their_distance() -> None:
    assert mean_height([(0, 0.0), (10, 10.0), (40, 10.0), (90, 0.0)], 0, 40) == pytest.approx((50 + 300) / 40)
    assert mean_height([(0, 1.0)], 0, 0) is None


def test_a_target_that_is_never_met_has_no_step() -> None:
    assert steps_to([(1, 0.2), (2, 0.4)], 0.5, higher_is_better=True) is None
    assert steps_to([(1, 0.7), (2, 0.4)], 0.5, higher_is_better=False) == 2


def test_three_seeds_make_a_band_and_two_make_lines() -> None:
    curves = [[(1.0, 1.0), (2.0, 5.0)], [(1.0, 3.0), (2.0, 4.0)], [(1.0, 2.0), (2.0, 9.0)]]
    three, two = line_of("a", 1, curves, markers=True), line_of("a", 1, curves[:2], markers=True)
    assert (three.band, three.replicates) == ([(1.0, 1.0, 3.0), (2.0, 4.0, 9.0)], ())
    assert three.mean == [(1.0, 2.0), (2.0, 6.0)]
    assert (list(two.band), list(two.replicates)) == ([], curves[:2])


def test_runs_that_differ_in_the_learning_rate_make_a_line_an_objective(tmp_path: Path) -> None:
    for lr, right in ((1e-5, 2), (1e-4, 6), (1e-3, 4)):
        write_run(tmp_path, "sft", 0, [2.0, 1.0 + lr], [right], lr=lr)
        write_run(tmp_path, "dynamic_ft", 0, [2.0, 1.5], [right + 1], lr=lr)
    table = table_of(tmp_path)
    accuracy, nll = sensitivity_charts(table, table.trained[-1:])
    assert (accuracy.title, nll.title) == ("Accuracy by learning rate", "NLL on held-out rows by learning rate")
    assert [(line.label, line.style) for line in accuracy.lines] == [("sft", 1), ("dynamic_ft", 6)]
    assert [y for _, y in accuracy.lines[0].mean] == pytest.approx([20, 60, 40])
    assert [x for x, _ in accuracy.lines[1].mean] == [1e-5, 1e-4, 1e-3]
    assert nll.lines[0].mean[-1] == (1e-3, 1.001)
    assert "Sensitivity" in [section.title for section in build_sections(table, table)]


def test_runs_with_one_learning_rate_have_no_such_chart(tmp_path: Path) -> None:
    assert not list(sensitivity_charts(two_objectives(tmp_path), ()))


def test_cost_adds_up_the_seeds_and_takes_the_largest_peak(tmp_path: Path) -> None:
    sft, dynamic, together = build_cost(two_objectives(tmp_path))
    assert (sft.condition, sft.runs, sft.tokens, sft.training) == ("sft", "2", "2,001", "2.0 min")
    assert (sft.evaluation, sft.memory, dynamic.relative) == ("20 s", "2 MiB", "1.00")
    assert (together.runs, together.tokens, together.relative) == ("4", "4,002", "\N{EM DASH}")


def test_energy_is_that_of_all_seeds_or_not_known(tmp_path: Path) -> None:
    assert "energy" not in cost_table(two_objectives(tmp_path / "without"))
    write_run(tmp_path, "sft", 0, [2.0], [3], gpu_joules=3.6e6, cpu_joules=1800.0)
    write_run(tmp_path, "sft", 1, [2.0], [3], gpu_joules=1.8e6, cpu_joules=5400.0)
    write_run(tmp_path, "dynamic_ft", 0, [2.0], [3], gpu_joules=7200.0, cpu_joules=100.0)
    write_run(tmp_path, "dynamic_ft", 1, [2.0], [3], gpu_joules=7200.0)
    write_run(tmp_path, "power", 0, [2.0], [3])
    sft, dynamic, power, together = rows = build_cost(table_of(tmp_path))
    assert knows_energy(rows)
    assert sft.energy == "1.5 kWh GPU + 2 Wh CPU"
    assert dynamic.energy == "4 Wh GPU"
    assert (power.energy, together.energy) == ("\N{EM DASH}", "\N{EM DASH}")
    assert "1.5 kWh GPU + 2 Wh CPU" in cost_table(table_of(tmp_path))


def test_weights_of_tokens_are_means_over_the_seeds_where_they_were_recorded(tmp_path: Path) -> None:
    def weights(table: ResultTable) -> list[str]:
        figures = [figure for section in build_sections(table, table) for figure in section.figures]
        return [figure.svg for figure in figures if figure.title == "Weights of tokens"]

    assert not weights(two_objectives(tmp_path / "old"))
    for seed, (low, middle, high) in enumerate([(-0.5, 0.2, 2.0), (-0.25, 0.4, 3.0)]):
        write_run(tmp_path, "dpo", seed, [2.0], [3], weight_q10=low, weight_q50=middle, weight_q90=high)
    (drawing,) = weights(table_of(tmp_path))
    assert "<desc>dpo: 0.3 (-0.375 to 2.5)</desc>" in drawing


def test_a_study_shows_other_rates_in_the_charts_over_the_rate_and_nowhere_else(tmp_path: Path) -> None:
    for lr, right in ((1e-5, 2), (1e-4, 6), (1e-3, 4)):
        write_run(tmp_path, "sft", 0, [2.0, 1.0], [right], lr=lr)
    found = read(
        [tmp_path / "noisy-sft-0.0001-0"], swept=[tmp_path / "noisy-sft-1e-05-0", tmp_path / "noisy-sft-0.001-0"]
    )
    assert [row.label for row in found.table.conditions] == ["sft"]
    html = found.write(tmp_path / "out").html.read_text(encoding="utf-8")
    assert "Accuracy by learning rate" in html
    assert "sft-1e-05-0" not in html
