"""Replicates, references, bases, and the values in the cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dftune.evaluate.quantiles import wilson_interval
from dftune.files import fingerprint, write_text
from dftune.report.groups import group_runs, reference_of
from dftune.report.load import Run, find_runs, read_run
from dftune.report.markdown import summary_table
from dftune.report.notes import notes
from dftune.report.tables import Cell, ResultTable, build_table
from dftune.report.verdict import verdict
from dftune.report.wording import doubt
from tests.report.conftest import make_recipe, verdict_rows, write_evaluation, write_manifest


def make_run(name: str, objective: str, seed: int, **recipe: Any) -> Run:
    values = make_recipe(name, {"name": objective, **recipe.pop("options", {})}, seed, **recipe)
    manifest = {"seed": seed, "objective": {"name": objective}, "started": f"2026-11-{20 + seed}"}
    return Run(name, "train", manifest, values, (), (), "finished", 0.0, {}, ())


def write_scored(folder: Path, name: str, objective: str, seed: int, verdicts: str, **settings: Any) -> Path:
    """A finished run with one evaluation after 10 steps; ``source`` names its training data."""
    run = folder / name
    data = {"source": source} if (source := settings.pop("source", None)) else {}
    write_text(run / "recipe.yaml", yaml.safe_dump(make_recipe(name, {"name": objective}, seed, **data)))
    write_manifest(run, "train", seed, {"name": objective})
    write_text(
        run / "events.jsonl",
        '{"kind": "start", "step": 0, "time": 0}\n{"kind": "end", "step": 10, "time": 1, "status": "finished"}\n',
    )
    write_evaluation(run, settings.pop("step", 10), verdict_rows(verdicts), **settings)
    return run


def write_base(folder: Path, verdicts: str, **manifest: Any) -> Path:
    write_manifest(folder / "base", "evaluate", None, None, **manifest)
    write_evaluation(folder / "base", 0, verdict_rows(verdicts))
    return folder / "base"


def table_of(folder: Path) -> ResultTable:
    return build_table([read_run(path) for path in find_runs([folder])])


def notes_of(folder: Path) -> str:
    runs = [read_run(path) for path in find_runs([folder])]
    return "\n".join(notes(build_table(runs), runs))


def cell_of(table: ResultTable, label: str) -> Cell:
    return table.cells[label, table.columns[0]]


# --- Groups --------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_name_output_seed_and_prepared_folder_are_replicates() -> None:
    runs = [make_run("a", "sft", 0), make_run("b", "sft", 1), make_run("c", "dynamic_ft", 0)]
    groups, _ = group_runs(runs)
    assert [(group.label, [run.name for run in group.runs]) for group in groups] == [
        ("sft", ["a", "b"]),
        ("dynamic_ft", ["c"]),
    ]


def test_sft_comes_first_whatever_the_order_of_the_folders() -> None:
    groups, _ = group_runs([make_run("a", "power", 0, options={"alpha": 0.5}), make_run("b", "sft", 0)])
    assert [group.objective for group in groups] == ["sft", "power"]


def test_a_label_names_the_keys_in_which_groups_differ_and_no_others() -> None:
    runs = [
        make_run("a", "sft", 0),
        make_run("b", "sft", 0, source="data/clean.jsonl"),
        make_run("c", "power", 0, options={"alpha": 0.5}),
    ]
    groups, _ = group_runs(runs)
    assert [group.label for group in groups] == [
        "sft (source noisy)",
        "power (source noisy)",
        "sft (source clean)",
    ]


def test_an_option_of_an_objective_is_named_where_that_objective_has_several() -> None:
    runs = [
        make_run("a", "sft", 0),
        make_run("b", "power", 0, options={"alpha": 0.5}),
        make_run("c", "power", 0, options={"alpha": 0.25}),
        make_run("d", "prior_ft", 0, options={"alpha": 1.0}),
    ]
    groups, _ = group_runs(runs)
    assert [group.label for group in groups] == ["sft", "power (alpha 0.5)", "power (alpha 0.25)", "prior_ft"]


def test_each_condition_is_compared_with_sft_on_the_same_data_and_stands_behind_it() -> None:
    clean = {"source": "data/clean.jsonl"}
    runs = [
        make_run("a", "sft", 0),
        make_run("b", "sft", 0, **clean),
        make_run("c", "dynamic_ft", 0, **clean),
        make_run("d", "dynamic_ft", 0),
    ]
    groups, _ = group_runs(runs)
    references = [reference_of(group, groups) for group in groups]
    assert [group.runs[0].name for group in groups] == ["a", "d", "b", "c"]
    assert [reference and reference.runs[0].name for reference in references] == [None, "a", None, "b"]


def test_with_a_learning_rate_of_its_own_a_condition_still_meets_sft_on_the_same_data() -> None:
    def run(name: str, objective: str, source: str, lr: float) -> Run:
        made = make_run(name, objective, 0, source=f"{source}.jsonl")
        return replace(made, recipe={**made.recipe, "optimizer": {"lr": lr}})

    runs = [
        run("a", "sft", "noisy", 1e-3),
        run("b", "sft", "clean", 1e-4),
        run("c", "dynamic_ft", "clean", 1e-3),  # one key from either
        run("d", "dynamic_ft", "noisy", 1e-3),
    ]
    groups, _ = group_runs(runs)
    references = {group.runs[0].name: reference_of(group, groups) for group in groups}
    assert {name: one and one.runs[0].name for name, one in references.items()} == {
        "a": None,
        "b": None,
        "c": "b",
        "d": "a",
    }


def test_the_same_recipe_and_seed_twice_is_no_second_seed() -> None:
    earlier, later = make_run("first", "sft", 0), make_run("again", "sft", 0)
    later = Run(**{**later.__dict__, "manifest": {**later.manifest, "started": "2026-12-01"}})
    groups, left_out = group_runs([later, earlier])
    assert [run.name for run in groups[0].runs] == ["again"]
    assert "first and again have the same recipe and the same seed 0" in left_out[0]


# --- Cells ---------------------------------------------------------------------------------------


def test_accuracy_gain_and_paired_difference_are_the_values_worked_by_hand(tmp_path: Path) -> None:
    write_base(tmp_path, "1000000000")
    write_scored(tmp_path, "s0", "sft", 0, "1111000000")
    write_scored(tmp_path, "s1", "sft", 1, "1100000000")
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1111110000")
    write_scored(tmp_path, "d1", "dynamic_ft", 1, "0111110000")
    table = table_of(tmp_path)
    sft, dynamic = cell_of(table, "sft"), cell_of(table, "dynamic_ft")
    assert [row.label for row in table.conditions] == ["base", "sft", "dynamic_ft"]
    assert sft.estimate is not None
    assert sft.estimate.mean == pytest.approx((0.4 + 0.2) / 2)
    assert sft.estimate.num_seeds == 2
    assert sft.gain is not None
    assert sft.gain.mean == pytest.approx(0.3 - 0.1)
    assert dynamic.versus is not None
    # by question, over both seeds: -1/2, 0, 1/2, 1/2, 1, 1, 0, 0, 0, 0
    assert dynamic.versus.mean == pytest.approx(2.5 / 10)
    assert dynamic.reference == "sft"
    assert sft.versus is None


def write_seeds(folder: Path, objective: str, *right: int, **settings: Any) -> None:
    """Runs with seeds 0, 1, ... that answer so many of 100 questions, the first ones."""
    for seed, number in enumerate(right):
        name = f"{settings.get('source', '')}{objective}{seed}"
        write_scored(folder, name, objective, seed, "1" * number + "0" * (100 - number), **settings)


def test_seed_variance_is_pooled_over_conditions_and_over_matched_comparisons(tmp_path: Path) -> None:
    write_seeds(tmp_path, "sft", 40, 44, source="a.jsonl")
    write_seeds(tmp_path, "dynamic_ft", 60, 70, source="a.jsonl")
    write_seeds(tmp_path, "sft", 50, 50, source="b.jsonl")
    write_seeds(tmp_path, "dynamic_ft", 80, 82, source="b.jsonl")
    table = table_of(tmp_path)
    spreads = table.spreads[table.columns[0]]
    assert spreads.conditions is not None
    assert spreads.differences is not None
    # Half of the squared distance of two seeds: 8, 50, 0 and 2 squared points; of the differences, (6, 2): 18 and 2.
    assert (spreads.conditions.variance, spreads.conditions.degrees) == pytest.approx((15e-4, 4))
    assert (spreads.differences.variance, spreads.differences.degrees) == pytest.approx((10e-4, 2))
    assert (spreads.conditions.num_pooled, spreads.differences.num_pooled) == (4, 2)


def test_comparisons_with_one_reference_pool_fewer_degrees_than_comparisons(tmp_path: Path) -> None:
    write_seeds(tmp_path, "sft", 40, 44)
    write_seeds(tmp_path, "dynamic_ft", 60, 70)
    write_seeds(tmp_path, "power", 50, 50)
    table = table_of(tmp_path)
    differences = table.spreads[table.columns[0]].differences
    assert differences is not None
    assert differences.degrees == pytest.approx(2 / 1.25)


def test_a_consistent_gap_over_two_seeds_is_seen_with_the_seeds_of_other_conditions(tmp_path: Path) -> None:
    write_seeds(tmp_path, "sft", 58, 60, source="a.jsonl")
    write_seeds(tmp_path, "dynamic_ft", 30, 17, source="a.jsonl")
    alone = cell_of(table_of(tmp_path), "dynamic_ft").versus
    write_seeds(tmp_path, "sft", 54, 53, source="b.jsonl")
    write_seeds(tmp_path, "dynamic_ft", 70, 62, source="b.jsonl")
    together = cell_of(table_of(tmp_path), "dynamic_ft (source a)").versus
    assert alone is not None
    assert together is not None
    assert (alone.sign, together.sign) == (0, -1)


def test_one_seed_and_one_sample_show_wilsons_interval(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1110000000")
    estimate = cell_of(table_of(tmp_path), "sft").estimate
    assert estimate is not None
    assert (estimate.low, estimate.high) == wilson_interval(3, 10)


def test_a_run_counts_with_its_last_step(tmp_path: Path) -> None:
    run = write_scored(tmp_path, "s0", "sft", 0, "1100")
    write_evaluation(run, 5, verdict_rows("0000"))
    write_evaluation(run, 20, verdict_rows("1110"))
    estimate = cell_of(table_of(tmp_path), "sft").estimate
    assert estimate is not None
    assert estimate.mean == 0.75


def test_step_zero_of_a_run_is_its_base_and_several_of_the_same_model_are_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = write_scored(tmp_path, f"s{seed}", "sft", seed, "1110")
        write_evaluation(run, 0, verdict_rows("1000"))
    table = table_of(tmp_path)
    base = cell_of(table, "base").estimate
    assert base is not None
    assert (base.mean, base.num_seeds) == (0.25, 1)
    gain = cell_of(table, "sft").gain
    assert gain is not None
    assert gain.mean == 0.5


def test_each_base_model_is_a_row_and_gains_are_over_the_one_that_training_started_from(tmp_path: Path) -> None:
    for model, right in (("small", 10), ("large", 40)):
        described = {"path": f"models/{model}", "fingerprint": fingerprint(model)}
        write_manifest(tmp_path / f"base-{model}", "evaluate", None, None, model=described)
        write_evaluation(tmp_path / f"base-{model}", 0, verdict_rows("1" * right + "0" * (100 - right)))
        run = write_scored(tmp_path, f"sft-{model}", "sft", 0, "1" * (right + 30) + "0" * (70 - right))
        recipe = make_recipe(run.name, {"name": "sft"}, 0)
        write_text(run / "recipe.yaml", yaml.safe_dump({**recipe, "model": {"path": f"models/{model}"}}))
        write_manifest(run, "train", 0, {"name": "sft"}, model=described)
    table = table_of(tmp_path)
    bases = {row.label: cell_of(table, row.label).estimate for row in table.conditions if row.kind == "base"}
    assert {label: estimate and (estimate.mean, estimate.num_seeds) for label, estimate in bases.items()} == {
        "base (large)": (0.4, 1),
        "base (small)": (0.1, 1),
    }
    gains = {row.label: cell_of(table, row.label).gain for row in table.trained}
    assert {label: gain and gain.mean for label, gain in gains.items()} == pytest.approx(
        {"sft (path large)": 0.3, "sft (path small)": 0.3}
    )
    words = verdict(table)
    assert "Over the 40.0 % of base (large) on arith.greedy, sft (path large) gains 30.0 points." in words
    assert "Over the 10.0 % of base (small) on arith.greedy, sft (path small) gains 30.0 points." in words


def test_a_gain_is_over_the_base_asked_in_the_format_of_the_training(tmp_path: Path) -> None:
    for name, right in (("alpaca", 10), ("plain", 40)):
        used = {"name": name, "fingerprint": name}
        write_manifest(tmp_path / f"base-{name}", "evaluate", None, None)
        write_evaluation(
            tmp_path / f"base-{name}", 0, verdict_rows("1" * right + "0" * (100 - right)), prompt_format=used
        )
        run = write_scored(tmp_path, name, "sft", 0, "1" * 60 + "0" * 40, source=f"{name}.jsonl")
        write_evaluation(run, 10, verdict_rows("1" * 60 + "0" * 40), prompt_format=used)
    table = table_of(tmp_path)
    gains = {row.label: cell_of(table, row.label).gain for row in table.trained}
    assert {label: gain and gain.mean for label, gain in gains.items()} == pytest.approx(
        {"sft (source alpaca)": 0.5, "sft (source plain)": 0.2}
    )
    assert [row.label for row in table.conditions if row.kind == "base"] == [
        "base (asked as alpaca)",
        "base (asked as plain)",
    ]


def test_an_evaluated_model_that_no_run_started_from_is_a_row_of_its_own(tmp_path: Path) -> None:
    write_base(tmp_path, "1000")
    write_scored(tmp_path, "s0", "sft", 0, "1110")
    write_manifest(tmp_path / "rival", "evaluate", None, None, model={"fingerprint": fingerprint("another")})
    write_evaluation(tmp_path / "rival", 0, verdict_rows("1111"))
    assert [(row.label, row.kind) for row in table_of(tmp_path).conditions] == [
        ("base", "base"),
        ("sft", "trained"),
        ("rival", "model"),
    ]


def test_a_single_evaluated_model_is_the_base_even_if_its_fingerprint_is_unknown(tmp_path: Path) -> None:
    write_base(tmp_path, "1000", model={"path": "elsewhere"})
    write_scored(tmp_path, "s0", "sft", 0, "1110")
    assert [row.kind for row in table_of(tmp_path).conditions] == ["base", "trained"]


def test_an_incomplete_evaluation_is_labelled_and_never_averaged(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1100", num_problems=4)
    write_scored(tmp_path, "s1", "sft", 1, "111", num_problems=4)
    cell = cell_of(table_of(tmp_path), "sft")
    assert cell.estimate is not None
    assert (cell.estimate.mean, cell.estimate.num_seeds) == (0.5, 1)
    assert [str(shortfall) for shortfall in cell.incomplete] == ["s1: 3 of 4 completions"]
    assert "some evaluations are incomplete" in verdict(table_of(tmp_path))
    assert "50.0 (15.0 to 85.0), 1 left out: 3 of 4" in summary_table(table_of(tmp_path))  # Wilson at 2 of 4
    assert "left out of sft: s1: 3 of 4 completions" in notes_of(tmp_path)


def test_without_a_complete_evaluation_there_is_no_score(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "111", num_problems=4)
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1111", num_problems=4)
    table = table_of(tmp_path)
    assert cell_of(table, "sft").estimate is None
    assert cell_of(table, "dynamic_ft").versus is None
    assert "none is compared" in verdict(table)


def test_two_versions_of_a_benchmark_are_two_columns_and_are_not_compared(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1100", benchmark_fingerprint="aaaaaaaaaaaaaaaa")
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1111", benchmark_fingerprint="bbbbbbbbbbbbbbbb")
    table = table_of(tmp_path)
    assert [table.name(column) for column in table.columns] == ["arith.greedy (aaaaaa)", "arith.greedy (bbbbbb)"]
    assert all(cell.versus is None for cell in table.cells.values())


def test_ungraded_questions_are_left_out_on_both_sides_and_counted(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "10?0")
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1110")
    table = table_of(tmp_path)
    sft, dynamic = cell_of(table, "sft"), cell_of(table, "dynamic_ft")
    assert sft.estimate is not None
    assert sft.estimate.mean == pytest.approx(1 / 3)
    assert sft.num_ungraded == 1
    assert dynamic.versus is not None
    assert dynamic.versus.num_questions == 3
    assert dynamic.versus.mean == pytest.approx(1 / 3)
    assert "counted as wrong or as right they would make it 25.0 or 50.0 %" in notes_of(tmp_path)


def test_another_prompt_format_than_in_training_is_marked(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1100", prompt_format={"name": "chat", "fingerprint": "0"})
    assert cell_of(table_of(tmp_path), "sft").format_differs
    assert "with prompt format chat, but trained with plain" in notes_of(tmp_path)


def test_scores_taken_in_different_ways_are_noted_but_sampling_seeds_may_differ(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1100", sampling={"temperature": 0.0, "seed": 0})
    write_scored(tmp_path, "s1", "sft", 1, "1100", sampling={"temperature": 0.0, "seed": 1})
    assert "sampling" not in notes_of(tmp_path)
    write_scored(tmp_path, "s2", "sft", 2, "1100", sampling={"temperature": 0.7, "seed": 2}, step=12)
    found = notes_of(tmp_path)
    assert "differ in sampling: temperature 0.0; temperature 0.7" in found
    assert "sft averages runs scored on arith.greedy after 10 and 12 steps." in found


def test_numbers_of_steps_are_noted_only_between_a_condition_and_its_reference(tmp_path: Path) -> None:
    for source, step in (("a", 10), ("b", 20)):
        for objective in ("sft", "dynamic_ft"):
            write_scored(tmp_path, f"{source}-{objective}", objective, 0, "1100", source=f"{source}.jsonl", step=step)
    assert "steps" not in notes_of(tmp_path)
    write_evaluation(tmp_path / "b-dynamic_ft", 1500, verdict_rows("1100"))
    assert notes_of(tmp_path) == (
        "dynamic_ft (source b) was scored on arith.greedy after 1,500 steps, sft (source b) after 20."
    )


def test_a_run_without_its_end_is_noted(tmp_path: Path) -> None:
    run = write_scored(tmp_path, "s0", "sft", 0, "1100")
    write_text(
        run / "events.jsonl", '{"kind": "start", "step": 0, "time": 0}\n{"kind": "train", "step": 7, "time": 1}\n'
    )
    assert "s0 is unfinished; its last recorded step is 7" in notes_of(tmp_path)


# --- Words ---------------------------------------------------------------------------------------


def test_the_verdict_names_a_winner_outside_the_noise(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1" * 40 + "0" * 60)
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1" * 70 + "0" * 30)
    words = verdict(table_of(tmp_path))
    assert words.startswith(
        "On arith (100 questions), dynamic_ft answers 30.0 points more than sft (greedy, 95 % interval "
    )
    assert "rests on one seed" in words


def test_the_verdict_says_fewer_with_a_positive_number_and_its_interval_the_right_way_round(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1" * 70 + "0" * 30)
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "1" * 40 + "0" * 60)
    words = verdict(table_of(tmp_path))
    assert "dynamic_ft answers 30.0 points fewer than sft" in words
    low, high = words.split("95 % interval ")[1].split(")")[0].split(" to ")
    assert 0 < float(low) < 30 < float(high)


def test_the_verdict_claims_no_winner_inside_the_noise(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "10" * 20)
    write_scored(tmp_path, "d0", "dynamic_ft", 0, "10" * 19 + "11")
    words = verdict(table_of(tmp_path))
    assert words.startswith(
        "On arith (40 questions), the difference between dynamic_ft and sft is within the noise: +2.5 points (greedy, "
    )
    assert "more than" not in words
    assert "fewer than" not in words


def test_one_sentence_compares_a_pair_under_both_protocols(tmp_path: Path) -> None:
    for source, right in (("noisy", 60), ("clean", 31)):
        for objective, number in (("sft", 30), ("dynamic_ft", right)):
            name, verdicts = f"{source}-{objective}", "1" * number + "0" * (100 - number)
            run = write_scored(tmp_path, name, objective, 0, verdicts, source=f"{source}.jsonl")
            write_evaluation(run, 10, verdict_rows(verdicts), protocol="sample")
    words = verdict(table_of(tmp_path))
    ends = "20.0 to 38.8"  # Bonett and Price at 30 of 100 won: 30/102 -+ 1.9838 sqrt((32/102 - (30/102)^2) / 101)
    assert words.startswith(
        "On arith (100 questions), trained on noisy: dynamic_ft answers 30.0 points more than sft "
        f"(greedy, 95 % interval {ends}) and 30.0 points more when sampled ({ends}). "
        "Trained on clean: the difference between dynamic_ft and sft is within the noise: +1.0 points (greedy, "
    )
    assert words.count("arith has 100 questions: with one seed, differences under about ") == 1
    assert "What is called a difference here holds for all 4 comparisons together (Holm)." in words


def test_what_is_clear_under_one_protocol_alone_is_said_first(tmp_path: Path) -> None:
    for objective, greedy, sampled in (("sft", 30, 30), ("dynamic_ft", 31, 60)):
        run = write_scored(tmp_path, objective, objective, 0, "1" * greedy + "0" * (100 - greedy))
        write_evaluation(run, 10, verdict_rows("1" * sampled + "0" * (100 - sampled)), protocol="sample")
    words = verdict(table_of(tmp_path))
    assert "dynamic_ft answers 30.0 points more than sft (sampled, 95 % interval 20.0 to 38.8); " in words
    assert "with greedy decoding the difference is within the noise (+1.0 points, " in words


def test_many_comparisons_without_a_finding_are_one_sentence(tmp_path: Path) -> None:
    write_scored(tmp_path, "s0", "sft", 0, "1" * 40 + "0" * 60)
    for objective, right in (("dynamic_ft", 42), ("eaft", 39), ("power", 41), ("talr", 40)):
        write_scored(tmp_path, objective, objective, 0, "1" * right + "0" * (100 - right))
    words = verdict(table_of(tmp_path))
    assert words.startswith(
        "On arith (100 questions), none of 4 conditions differs clearly from sft (\N{MINUS SIGN}1.0 to +2.0 points). "
        "arith has 100 questions: with one seed, differences under about "
    )
    write_scored(tmp_path, "best", "deft", 0, "1" * 90 + "0" * 10)
    words = verdict(table_of(tmp_path))
    assert words.startswith("On arith (100 questions), deft answers 50.0 points more than sft")
    assert "). No other difference is clear (\N{MINUS SIGN}1.0 to +2.0 points). arith has 100 questions" in words


def test_conditions_under_the_same_circumstances_are_told_together_findings_first(tmp_path: Path) -> None:
    rights = {"clean": (40, 41, 42, 43, 39), "noisy": (40, 90, 41, 42, 43)}
    for source, numbers in rights.items():
        for objective, right in zip(("sft", "dynamic_ft", "eaft", "power", "talr"), numbers, strict=True):
            verdicts = "1" * right + "0" * (100 - right)
            write_scored(tmp_path, f"{source}-{objective}", objective, 0, verdicts, source=f"{source}.jsonl")
    words = verdict(table_of(tmp_path))
    assert words.startswith(
        "On arith (100 questions), trained on noisy: dynamic_ft answers 50.0 points more than sft ("
    )
    assert "There, no other difference is clear (+1.0 to +3.0 points). Trained on clean: none of 4 conditions " in words
    assert "differs clearly from sft (\N{MINUS SIGN}1.0 to +3.0 points). arith has 100 questions" in words


def test_a_learning_rate_is_a_circumstance_where_all_have_it_and_part_of_the_names_where_not(tmp_path: Path) -> None:
    def write(objective: str, lr: float, source: str) -> None:
        name = f"{source}-{objective}"
        run = write_scored(tmp_path, name, objective, 0, "10" * 50, source=f"{source}.jsonl")
        recipe = make_recipe(name, {"name": objective}, 0, source=f"{source}.jsonl")
        write_text(run / "recipe.yaml", yaml.safe_dump({**recipe, "optimizer": {"lr": lr}}))

    for source, lr in (("a", 3e-4), ("b", 5e-4)):
        write("sft", lr, source)
        write("dynamic_ft", lr, source)
    words = verdict(table_of(tmp_path))
    assert "trained on a with lr 3e-4: the difference between dynamic_ft and sft is within the noise" in words
    write("dynamic_ft", 1e-3, "b")
    words = verdict(table_of(tmp_path))
    assert "Trained on b: the difference between dynamic_ft (lr 1e-3) and sft (lr 5e-4) is within the noise" in words


def test_many_findings_are_listed_without_their_intervals(tmp_path: Path) -> None:
    write_scored(tmp_path, "s", "sft", 0, "1" * 50 + "0" * 50)
    names = ("dynamic_ft", "deft", "eaft", "power", "talr", "asft")
    for objective in names:
        write_scored(tmp_path, objective, objective, 0, "1" * 90 + "0" * 10)
    write_scored(tmp_path, "w", "psft", 0, "1" * 20 + "0" * 80)
    write_scored(tmp_path, "q", "chord_phi", 0, "1" * 51 + "0" * 49)
    words = verdict(table_of(tmp_path))
    listed = "asft (+40.0 points), deft (+40.0), dynamic_ft (+40.0), eaft (+40.0), power (+40.0) and talr (+40.0)"
    assert words.startswith(
        f"On arith (100 questions), better than sft are {listed}; worse than sft is psft (\N{MINUS SIGN}30.0). No "
        "other difference is clear (+1.0 points). "
    )


def test_what_is_clear_alone_and_not_among_many_is_called_neither_a_difference_nor_noise(tmp_path: Path) -> None:
    write_scored(tmp_path, "s", "sft", 0, "0" * 100)
    write_scored(tmp_path, "d", "dynamic_ft", 0, "1" * 7 + "0" * 93)
    assert "dynamic_ft answers 7.0 points more than sft" in verdict(table_of(tmp_path))
    for objective in ("eaft", "power", "talr", "deft", "asft"):
        write_scored(tmp_path, objective, objective, 0, "1" * 2 + "0" * 98)
    table = table_of(tmp_path)
    versus = cell_of(table, "dynamic_ft").versus
    assert versus is not None
    assert versus.low > 0
    assert (versus.sign, doubt(versus)) == (0, "not clear after Holm")
    assert doubt(versus, 6) == "not clear among 6 comparisons"
    eaft = cell_of(table, "eaft").versus
    assert eaft is not None
    assert doubt(eaft) == "within the noise"
    assert summary_table(table).count("not clear after Holm") == 1


def test_samples_are_called_by_their_number(tmp_path: Path) -> None:
    for objective, right in (("sft", 30), ("dynamic_ft", 60)):
        run = write_scored(tmp_path, objective, objective, 0, "1" * 30 + "0" * 70)
        rows = [
            row | {"sample": sample} for sample in (0, 1) for row in verdict_rows("1" * right + "0" * (100 - right))
        ]
        settings = {"protocol": "sample", "num_samples": 2, "protocols": ["avg@2", "maj@2"]}
        write_evaluation(run, 10, rows, **settings)
    words = verdict(table_of(tmp_path))
    assert "dynamic_ft answers 30.0 points more than sft (mean of 2 samples, 95 % interval " in words
    assert " and 30.0 points more by majority of 2 samples (" in words


def test_two_seeds_are_said_to_be_few_and_three_are_not(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_scored(tmp_path, f"s{seed}", "sft", seed, "1100")
    assert "rests on 2 seeds" in verdict(table_of(tmp_path))
    write_scored(tmp_path, "s2", "sft", 2, "1100")
    assert "seed" not in verdict(table_of(tmp_path))


def test_runs_without_evaluations_still_make_a_report(tmp_path: Path) -> None:
    write_manifest(tmp_path / "r", "train", 0, {"name": "sft"})
    assert "no score to compare" in verdict(table_of(tmp_path))
