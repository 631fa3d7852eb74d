"""The two flows end to end, by the command line, with the demo's base model."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.generate.recipes import read, recipe_in
from tests.train.runs import rows_of

from dftune import config
from dftune.cli import main
from dftune.data.dataset import PreparedDataset
from dftune.data.prompts import FORMATS
from dftune.demo.problems import generate
from dftune.demo.run import BASE_MODEL, write_problems
from dftune.files import read_json
from dftune.generate.load import load_tokenizer
from dftune.generate.serve import serving


def dftune(*words):
    """Run a command; it must succeed."""
    assert main([str(word) for word in words]) == 0


def benchmark(folder: Path) -> str:
    path = folder / "test.jsonl"
    write_problems(path, generate(4, seed=0, split="test"))
    return str(path)


def negatives_recipe(folder: Path, **generated) -> Path:
    recipe = recipe_in(
        folder,
        num_problems=16,
        data={
            "source": str(folder / "generated" / "negatives.parquet"),
            "columns": {"problem": "real", "solution": "real", "negatives": "generated_"},
            "num_negatives": 2,
            "rotate_negatives": True,
        },
        objective={"name": "discriminative_ft", "ref_free": False, "tau": 1.0, "gamma": 0.85},
        train={"steps": 3, "batch_size": 6},
        evaluate={"benchmarks": [benchmark(folder)], "max_tokens": 40},
        generate={
            "problems": {"source": str(folder / "train.jsonl")},
            "negatives": {"num_samples": 4, "drop_equal": True},
            **generated,
        },
    )
    path = folder / "negatives.yaml"
    path.write_text(config.dump(recipe))
    return path


@pytest.mark.parametrize("engine", ["local", pytest.param("server", marks=pytest.mark.slow)])
def test_negatives_are_sampled_merged_given_reference_logps_trained_against_and_evaluated(engine, tmp_path, capfd):
    by_server = engine == "server"
    with serving(BASE_MODEL, sizes=None, device="cpu", wait_s=120) if by_server else nullcontext() as url:
        path = negatives_recipe(tmp_path, **({"server": [url], "concurrency": 4} if by_server else {}))
        dftune("generate", path, "negatives", "--device", "cpu")
    rows = read(tmp_path / "generated" / "negatives.samples.jsonl")
    assert len(rows) == 16 * 4
    assert len({(row["id"], row["completion"]) for row in rows}) > 16  # its samples differ
    counts = read_json(tmp_path / "generated" / "negatives.manifest.json")["counts"]
    assert counts["kept"] + sum(counts["left_out"].values()) == 64
    assert counts["flagged"]["correct"] == sum(row["verdict"] == "correct" for row in rows)

    dftune("generate", path, "reference")
    (stored,) = [folder for folder in (tmp_path / "data" / "reference").iterdir() if folder.is_dir()]
    written = stored.stat().st_mtime_ns
    data = PreparedDataset.load(tmp_path / "data")
    assert_negatives_are_the_samples(data, rows)

    for name, ref_free in (("with-reference", "false"), ("ref-free", "true")):
        output = tmp_path / name
        capfd.readouterr()
        dftune("train", path, f"name={name}", f"output={output}", f"objective.ref_free={ref_free}")
        said = capfd.readouterr().out
        manifest = read_json(output / "manifest.json")
        assert manifest["reference"] == (stored.name if ref_free == "false" else None)
        assert "computed once" not in said
        assert all(row["grad_norm"] > 0 for row in rows_of(output, "train").values())
        (evaluated,) = (output / "evals" / "step-3").glob("*.jsonl")
        assert len(read(evaluated)) == 4
    assert stored.stat().st_mtime_ns == written
    assert [folder for folder in stored.parent.iterdir() if folder.is_dir()] == [stored]


def assert_negatives_are_the_samples(data, rows):
    """Every negative that is trained on has the tokens of the completion of its id, and its end token."""
    tokenizer = load_tokenizer(BASE_MODEL)
    sampled = {f"{row['id']}#{row['sample']}": row["completion"] for row in rows}
    found = {
        example.id: [int(token) for token in example.input_ids[example.completion_mask]]
        for index in range(len(data.train))
        for example in data.train.group(index)
        if not example.is_chosen
    }
    assert found
    assert found == {name: FORMATS["plain"].encode_completion(tokenizer, sampled[name]) for name in found}


def test_rollouts_are_graded_made_into_sets_and_trained_on(tmp_path, capfd):
    recipe = recipe_in(tmp_path, num_problems=24, generate={"rft": {"per_problem": 2}})
    path = tmp_path / "offline.yaml"
    path.write_text(config.dump(recipe))
    folder = tmp_path / "generated"
    dftune("generate", path, "rollouts", "--device", "cpu")
    assert "pass rate" in capfd.readouterr().out
    rollouts = read(folder / "rollouts.samples.jsonl")
    dftune("grade", folder / "rollouts.samples.jsonl", "--in-place")
    assert read(folder / "rollouts.samples.jsonl") == rollouts
    for what in ("rft", "pairs", "weighted"):
        dftune("generate", path, what)

    correct = {(row["id"], row["completion"]) for row in rollouts if row["verdict"] == "correct"}
    incorrect = {(row["id"], row["completion"]) for row in rollouts if row["verdict"] == "incorrect"}
    rft, pairs = read(folder / "rft.jsonl"), read(folder / "pairs.jsonl")
    assert {(row["problem_id"], row["solution"]) for row in rft + pairs} <= correct
    assert {(row["problem_id"], row["rejected"]) for row in pairs} <= incorrect

    runs = [(name, "rft", []) for name in ("sft", "dynamic_ft", "iw_sft")]
    runs += [("iw_sft", "weighted", ["data.keep_duplicates=true"])]
    runs += [("dpo", "pairs", ["data.columns.negatives=rejected"])]
    for objective, what, more in runs:
        output = tmp_path / f"{objective}-{what}"
        own = [f"objective.name={objective}", f"output={output}", f"data.prepared={tmp_path / what}"]
        dftune("train", path, *own, f"data.source={folder / what}.jsonl", *more)
        manifest = read_json(output / "manifest.json")
        assert manifest["data"]["num_train"] == len(read(folder / f"{what}.jsonl"))
        assert [row["grad_norm"] > 0 for row in rows_of(output, "train").values()] == [True, True]


def test_sets_are_made_again_without_the_model_and_with_the_same_bytes(tmp_path):
    recipe = recipe_in(tmp_path)
    path = tmp_path / "offline.yaml"
    path.write_text(config.dump(recipe))
    dftune("generate", path, "rollouts", "--device", "cpu")
    gone = ["model.path=nowhere/at-all", f"data.source={tmp_path / 'gone.jsonl'}"]
    folder = tmp_path / "generated"
    for what in ("rft", "pairs", "weighted"):
        dftune("generate", path, what)
        names = (f"{what}.jsonl", f"{what}.manifest.json")
        before = [(folder / name).read_bytes() for name in names]
        dftune("generate", path, what, *gone)
        assert [(folder / name).read_bytes() for name in names] == before
    assert json.loads((folder / "rollouts.difficulty.json").read_text())["num_problems"] == 12
