"""The recipes of published tables: complete, resolvable without a network, and able to run."""

import filecmp
import re
import runpy
import socket
from pathlib import Path

import pytest
import yaml

from dftune.audit import read
from dftune.cli import main
from dftune.config import RecipeError
from dftune.evaluate.named import NAMED
from dftune.evaluate.protocols import get_protocol
from dftune.files import read_json, read_jsonl
from dftune.recipe import load_recipe
from dftune.sweep.config import load_sweep

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "recipes" / "papers"
SEARCHES = ["think-answer-sft-search"]
NAMES = sorted({path.stem for path in PAPERS.glob("*.yaml")} - set(SEARCHES))
SEEDS = ROOT / "../shared/seeds"
REPRESENTATIVE = [
    "discriminative-ft-metamathqa",
    "discriminative-ft-ultrafeedback-ref-free",
    "dynamic-ft-table2-qwen2.5-math-1.5b-iw-sft",
    "dynamic-ft-table3-qwen2.5-math-1.5b-offline-dpo",
    "think-answer-sft",
]
GENERAL = {"mmlu", "truthfulqa", "hellaswag", "winogrande", "gsm8k", "arc", "ifeval"}


def test_the_files_are_what_the_script_writes(tmp_path):
    runpy.run_path(str(ROOT / "scripts" / "make_paper_recipes.py"))["write"](tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(NAMES + SEARCHES)
    names = [f"{name}.yaml" for name in NAMES + SEARCHES]
    assert filecmp.cmpfiles(tmp_path, PAPERS, names, shallow=False)[0] == names


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty folder without a network."""

    def refused(*_args, **_options):
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("offline")
def test_a_dry_run_resolves_it_without_a_network_or_a_model(name, tmp_path, capsys):
    assert main(["train", str(PAPERS / name), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["name"] == name
    plan = [line for line in shown.splitlines() if line.startswith("# ")]
    assert any(re.match(r"# memory: \d+\.\d GiB", line) for line in plan)
    assert any(line.startswith("# to fetch: model ") for line in plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.usefixtures("offline")
def test_a_dry_run_resolves_a_search_too(name, capsys):
    assert main(["sweep", str(PAPERS / name), "--dry-run"]) == 0
    assert f"sweeps/{name}" in capsys.readouterr().out
    assert "\n# Needs, estimated and not measured: 1 GPU of 80 GB" in (PAPERS / f"{name}.yaml").read_text()


def test_the_search_is_the_space_that_its_source_searched():
    """step2_hyper/step2_sft_hyper.py of the repository that the recipe names."""
    sweep = load_sweep(PAPERS / "think-answer-sft-search")
    rate, sizes = sweep.sweep.space["optimizer.lr"], sweep.sweep.space["train.batch_size"]
    assert (rate.low, rate.high, rate.log) == (5e-6, 1e-4, True)
    assert sizes.values == (128, 256, 512, 1024)
    assert (sweep.sweep.num_trials, sweep.sweep.sampler, sweep.sweep.seed) == (15, "tpe", 42)
    trial = sweep.trial(0, sweep.first)
    assert (trial.train.steps, trial.optimizer.weight_decay) == (200, 0.01)
    assert trial.train.steps * trial.optimizer.warmup_ratio == 20


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_was_published_where_and_what_it_needs(name):
    text = (PAPERS / f"{name}.yaml").read_text()
    recipe = load_recipe(PAPERS / name)
    assert re.search(r"^# Needs, estimated and not measured: \d GPUs? of 80 GB", text, re.MULTILINE)
    assert re.search(r"training about [\d.]+ (min|h)", text)
    published = recipe.published
    assert published is not None and published.source
    assert published.scores or any("not printed" in note for note in published.notes)
    benchmarks = {name.partition(":")[0] for name in recipe.evaluate.benchmarks}
    protocols = [get_protocol(protocol).name for protocol in recipe.evaluate.protocols]
    asked = {f"{benchmark}.{protocol}" for benchmark in benchmarks for protocol in protocols}
    lm_eval = {f"{task}.lm_eval" for task in GENERAL}
    assert set(published.scores) in (asked, lm_eval, set())
    assert benchmarks <= set(NAMED)


def recipe_of(table: int, row) -> str | None:
    """The recipe of a row of the published tables; None for a base, another table's row, and the online setting."""
    model = {"DeepSeekMath-7B": "deepseek-math-7b"}.get(row.model, row.model.lower())
    objective = {"DFT": "dynamic-ft"}.get(row.method, row.method.lower())
    wanted = {
        1: {"SFT": "", "DFT": ""},
        2: {"iw-SFT": ""},
        3: {"Offline": "offline-", "SFT": "sft-setting-"},
    }[table]
    setting = wanted.get(row.setting if table == 3 else row.method)
    if setting is None or row.method == "Base" or (setting, row.method) == ("sft-setting-", "iw-SFT"):
        return None
    return f"dynamic-ft-table{table}-{model}-{setting}{objective}"


def test_published_scores_are_those_of_the_tables_and_no_row_is_missing():
    paths = sorted(SEEDS.glob("002_*.txt"))
    if not paths:
        pytest.skip(f"the published tables are not at {SEEDS}")
    tables = read(paths[0]).tables

    def printed(table, row) -> list[float]:
        return [float(row.cells[column].printed.value) for column in table.scores]

    bases = {row.model: printed(tables[0], row) for row in tables[0].rows if row.method == "Base"}
    named = {}
    for number, table in enumerate(tables, 1):
        rows = {recipe_of(number, row): row for row in table.rows}
        named |= {name: (row.model, printed(table, row)) for name, row in rows.items() if name}
    assert sorted(named) == [name for name in NAMES if name.startswith("dynamic-ft-table")]
    for name, (model, scores) in named.items():
        published = load_recipe(PAPERS / name).published
        assert list(published.scores.values()) == scores, name
        assert list(published.base.values()) == bases[model], name


SMALL = [
    "model.path={root}/src/dftune/demo/base",
    "model.revision=null",
    "model.gradient_checkpointing=false",
    "data.source={root}/recipes/examples/data/arithmetic-negatives.jsonl",
    "data.sources=[]",
    "data.columns.problem=problem",
    "data.columns.solution=solution",
    "data.prompt_format=plain",
    "data.max_length=256",
    "data.limit=40",
    "data.validation=8",
    "data.prepared=prepared",
    "data.decontaminate.action=skip",
    "train.steps=2",
    "train.epochs=null",
    "train.batch_size=4",
    "train.micro_batch_tokens=1024",
    "train.checkpoint_every=null",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "distributed.strategy=auto",
    "evaluate.benchmarks=[{root}/recipes/examples/data/arithmetic-test.jsonl:2]",
    "evaluate.prompt_format=plain",
    "evaluate.max_tokens=8",
]


def smoke_run(name: str, folder: Path, monkeypatch) -> None:
    """Prepare, train two steps and evaluate, with the demo's base on the example data."""
    recipe = load_recipe(PAPERS / name)
    overrides = [text.format(root=ROOT) for text in SMALL]
    if recipe.data.columns.negatives is not None:
        overrides.append("data.columns.negatives=rejected")
    few = [re.sub(r"@\d+", "@2", protocol) for protocol in recipe.evaluate.protocols]
    overrides.append(f"evaluate.protocol=[{', '.join(few)}]")
    if recipe.evaluate.num_samples > 1:
        overrides.append("evaluate.num_samples=2")
    monkeypatch.chdir(folder)
    assert main(["train", str(PAPERS / name), *overrides]) == 0
    run = folder / "runs" / name
    rows = [row for row in read_jsonl(run / "events.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2]
    assert read_json(run / "manifest.json")["objective"]["name"] == recipe.objective.name
    evaluated = list((run / "evals" / "step-2").glob("*.jsonl"))
    assert len(evaluated) == len({get_protocol(protocol).sampling for protocol in few})
    if recipe.published is not None and recipe.published.scores:
        assert main(["report", str(run)]) == 0
        assert "## Published against measured" in (run / "report.md").read_text()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_runs_with_the_demo_base_for_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [text.format(root=ROOT) for text in SMALL if not text.startswith(("data.prepared", "train.batch_size"))]
    sizes = "sweep.space={optimizer.lr: {low: 5e-6, high: 1e-4, log: true}, train.batch_size: {values: [4, 8]}}"
    assert main(["sweep", str(PAPERS / name), "--workers", "1", *overrides, sizes, "sweep.num_trials=1"]) == 0
    folder = tmp_path / "sweeps" / name
    assert [trial["state"] for trial in read_json(folder / "sweep.json")["trials"]] == ["complete"]
    assert load_recipe(folder / "best.yaml").train.steps == 2


MADE = {  # commands of the README, and what they make
    "dynamic-ft-table3-qwen2.5-math-1.5b-offline-rft rollouts": "rollouts.samples.jsonl",
    "dynamic-ft-table3-qwen2.5-math-1.5b-offline-rft rft": "rft.jsonl",
    "dynamic-ft-table3-qwen2.5-math-1.5b-offline-dpo pairs": "pairs.jsonl",
    "discriminative-ft-metamathqa negatives": "negatives.parquet",
}


def test_the_commands_of_the_readme_make_the_data_that_the_recipes_read(tmp_path, monkeypatch):
    readme = (PAPERS / "README.md").read_text()
    named = re.findall(r"^dftune generate recipes/papers/(.+)$", readme, re.MULTILINE)
    assert named == list(MADE)
    monkeypatch.chdir(tmp_path)
    few = [text.format(root=ROOT) for text in SMALL if not text.startswith(("data.source", "data.columns"))]
    few += [f"generate.problems={{source: {ROOT}/recipes/examples/data/arithmetic-negatives.jsonl, limit: 12}}"]
    few += ["generate.rollouts.max_tokens=48", "generate.negatives.max_tokens=48", "generate.negatives.num_samples=2"]
    for command, file in MADE.items():
        name, what = command.split()
        recipe = load_recipe(PAPERS / name)
        assert main(["generate", str(PAPERS / name), what, *few, "--device", "cpu"]) == 0
        made = recipe.generate.folder / file
        assert made.is_file()
        assert what == "rollouts" or Path(recipe.data.source) == made
    for recipe in map(load_recipe, map(PAPERS.joinpath, NAMES)):
        if recipe.data.source.startswith("generated/numinamath"):
            assert Path(recipe.data.source).is_file()


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_it_runs_with_the_demo_base_for_two_steps(name, tmp_path, monkeypatch):
    smoke_run(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(REPRESENTATIVE)))
def test_every_other_one_runs_too(name, tmp_path, monkeypatch):
    smoke_run(name, tmp_path, monkeypatch)


def test_a_published_score_is_in_per_cent():
    recipe = PAPERS / "think-answer-sft"
    with pytest.raises(RecipeError, match="published"):
        load_recipe(recipe, ["published.scores=[1]"])
