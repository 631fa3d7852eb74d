"""What a dry run says of a recipe, from the disk alone."""

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from dftune.cli import main
from dftune.data.prepare import prepared
from dftune.demo.run import BASE_MODEL
from dftune.files import read_jsonl
from dftune.recipe import load_recipe
from dftune.train.plan import num_parameters, plan_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "examples" / "arithmetic-dpo.yaml"


def overridden(tmp_path: Path, *overrides: str):
    names = ["data.source", "model.path", "evaluate.benchmarks"]
    paths = [
        f"data.source={ROOT}/recipes/examples/data/arithmetic-negatives.jsonl",
        f"model.path={BASE_MODEL}",
        f"evaluate.benchmarks=[{ROOT}/recipes/examples/data/arithmetic-test.jsonl:7]",
        f"data.prepared={tmp_path}/prepared",
        f"output={tmp_path}/run",
    ]
    given = {override.partition("=")[0] for override in overrides}
    kept = [path for path in paths if path.partition("=")[0] not in given or path.partition("=")[0] not in names]
    return load_recipe(RECIPE, [*kept, *overrides])


def test_parameters_are_counted_in_the_files_of_a_checkpoint():
    with safe_open(BASE_MODEL / "model.safetensors", "np") as file:
        expected = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert num_parameters(str(BASE_MODEL)) == (expected, "by its files")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1_500_000_000),
        ("meta-llama/Llama-3.1-8B", 8_000_000_000),
        ("deepseek-ai/deepseek-math-7b-base", 7_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M", 135_000_000),
        ("openai-community/gpt2", 0),
    ],
)
def test_parameters_are_read_off_the_name_of_a_model_on_the_hub(name, count):
    assert num_parameters(name)[0] == count


def test_memory_is_sixteen_bytes_a_parameter_and_two_for_a_frozen_one(tmp_path):
    full = plan_of(overridden(tmp_path, "model.path=owner/model-2B"))
    assert "memory: 29.8 GiB for weights" in "\n".join(full)  # 2e9 * 16 / 2**30
    adapter = plan_of(overridden(tmp_path, "model.path=owner/model-2B", "model.lora.rank=8", "train.precision=bf16"))
    assert "memory: 3.7 GiB for frozen weights" in "\n".join(adapter)  # 2e9 * 2 / 2**30


def test_before_preparation_steps_and_tokens_are_bounds(tmp_path):
    plan = "\n".join(plan_of(overridden(tmp_path)))
    assert "not prepared yet; at most 400 examples" in plan
    assert "at most 50 steps of 24 examples, at most 307,200 tokens" in plan  # 3 epochs of 400, 256 tokens each
    assert "before training: log-probabilities" in plan
    assert "negatives: column rejected, all a row and epoch" in plan
    assert "7 questions, 1 completion each" in plan
    assert "fetch" not in plan and "missing" not in plan


def test_after_preparation_they_are_those_of_the_run(tmp_path):
    recipe = overridden(tmp_path, "data.limit=60", "data.validation=12", "train.epochs=2", "train.batch_size=40")
    dataset = prepared(recipe)
    total = sum(len(dataset.input_ids("train", index)) for index in range(48))
    plan = "\n".join(plan_of(recipe))
    assert "prepared: 48 examples" in plan
    tokens = int(plan.partition(" examples, about ")[2].partition(" tokens")[0].replace(",", ""))
    assert tokens == pytest.approx(2 * total, rel=0.05)  # the mean is over the held-out rows too
    assert "training: 3 steps of 40 examples" in plan  # 96 visits
    assert main(["train", str(RECIPE), *_arguments(recipe), "--no-evaluate"]) == 0
    starts = [row for row in read_jsonl(recipe.output / "events.jsonl") if row["kind"] == "start"]
    assert starts[0]["num_steps"] == 3


def _arguments(recipe) -> list[str]:
    return [
        f"data.source={recipe.data.source}",
        f"data.prepared={recipe.data.prepared}",
        f"model.path={recipe.model.path}",
        f"output={recipe.output}",
        *("data.limit=60", "data.validation=12", "train.epochs=2", "train.batch_size=40", "train.threads=1"),
    ]


def test_what_is_not_there_is_named(tmp_path):
    recipe = overridden(
        tmp_path, "data.source=nowhere/data.jsonl", "model.path=owner/model-2B", "evaluate.benchmarks=[gsm8k, no.jsonl]"
    )
    plan = plan_of(recipe)
    assert "missing: data set nowhere/data.jsonl" in plan
    assert "missing: benchmark no.jsonl" in plan
    assert "to fetch: model owner/model-2B, unless it is in the hub's cache" in plan
    assert any(line.startswith("to fetch: benchmark openai/gsm8k") for line in plan)


def test_a_dry_run_refuses_what_training_would_refuse(tmp_path, capsys):
    arguments = [str(RECIPE), "--dry-run", "data.columns.negatives=null"]
    assert main(["train", *arguments]) == 2
    assert "the data has none" in capsys.readouterr().err
