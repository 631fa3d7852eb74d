"""Pickles and code that somebody has put where models, runs and data lie: nothing reads them."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.train.runs import rows_of, run

import dftune
from dftune.cli import main
from dftune.data.prepare import prepared
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.runner import evaluate
from dftune.recipe import Recipe
from dftune.report.load import read_run
from dftune.train.export import export_run
from dftune.train.loop import train
from dftune.watch.watcher import Watcher

# Names that trainers, torch's distributed checkpoints and peft give to pickles, and code that transformers would run.
NAMES = (
    *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "adapter_model.bin", "training_args.bin"),
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "random_states_0.pkl", "state.pkl"),
    *(".metadata", "__0_0.distcp", "consolidated.00.pth", "tokenizer.pkl", "data.arrow.pkl", "cache.joblib"),
)
CODE = ("modeling_qwen2.py", "configuration_qwen2.py", "tokenization_qwen2.py", "sitecustomize.py", "__init__.py")
EVALUATE = EvaluateConfig(max_tokens=4)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "has-run"


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"id": "1", "problem": "1 + 1?", "answer": "2"}) + "\n")
    return path


def plant(folder: Path, canary: Path) -> None:
    for name in NAMES:
        (folder / name).write_bytes(pickle.dumps(Planted(canary)))
    for name in CODE:
        (folder / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")


def listening(below: Path) -> None:
    """Have every planted file that is opened, and every class that is unpickled, written down."""

    def hear(event: str, arguments: tuple) -> None:
        if event == "open":
            path = Path(str(arguments[0]))
            if path.name in (*NAMES, *CODE) and path.is_relative_to(below):
                note(f"opened {path}")
        elif event == "pickle.find_class":
            note(f"unpickled {'.'.join(arguments)}")

    def note(line: str) -> None:
        descriptor = os.open(below / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    sys.addaudithook(hear)


def use_everything(recipe: Recipe, again: Recipe, problems: Path, folder: Path) -> None:
    """Read a run, its data and its models in every way there is."""
    listening(folder)
    train(recipe, prepared(recipe), resume=True, say=lambda line: None)
    train(again, prepared(again), say=lambda line: None)
    for name in ("model", "checkpoints/step-6/model"):
        evaluate(str(recipe.output / name), [str(problems)], EVALUATE, folder / "evaluated", step=0, overwrite=True)
        shutil.rmtree(folder / "evaluated", ignore_errors=True)
    Watcher(recipe.output, EVALUATE.model_copy(update={"benchmarks": (str(problems),)})).watch(once=True)
    export_run(recipe.output, folder / "final")
    export_run(recipe.output, folder / "third", step=3)
    read_run(recipe.output)
    assert main(["top", str(recipe.output), "--once"]) == 0
    assert main(["report", str(recipe.output), "--output", str(folder / "report.html")]) == 0


def test_no_planted_file_is_opened_and_nothing_is_unpickled_but_what_a_process_has_written_itself(
    make_recipe, tmp_path, canary, problems
):
    recipe, _ = make_recipe()
    model = run(recipe).model
    again, _ = make_recipe(
        "again", ("model.scratch=null", f"model.path={model}", f"data.prepared={tmp_path / 'other'}")
    )
    prepared(again)
    events = recipe.output / "events.jsonl"
    events.write_text(events.read_text().replace("finished", "failed"))  # so that it can be taken up again
    spared = recipe.output / "checkpoints" / "step-3"
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        if spared not in (folder, *folder.parents):
            plant(folder, canary)
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    canary.rmdir()  # it works, where it is read
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dftune.train.loop", "transformers.models.qwen2.modeling_qwen2"])
    process = context.Process(target=use_everything, args=(recipe, again, problems, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not canary.exists()
    assert rows_of(recipe.output, "start")[3]["resumed"]
    seen = (tmp_path / "seen").read_text().splitlines() if (tmp_path / "seen").exists() else []
    assert [line for line in seen if not line.startswith("unpickled dftune.data.")] == []
    for exported in (tmp_path / "final", tmp_path / "third"):
        assert not {path.name for path in exported.iterdir()} & {*NAMES, *CODE}


def test_a_model_that_is_there_as_a_pickle_alone_is_refused(make_recipe, tmp_path, canary, problems):
    recipe, _ = make_recipe(overrides=("train.steps=2",))
    model = run(recipe).model
    (model / "model.safetensors").unlink()
    plant(model, canary)
    other, _ = make_recipe("other", ("model.scratch=null", f"model.path={model}", f"data.prepared={tmp_path / 'new'}"))
    with pytest.raises(ValueError, match="safetensors"):
        run(other)
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        evaluate(str(model), [str(problems)], EVALUATE, tmp_path / "out", step=0)
    assert not canary.exists()


def test_an_adapter_that_is_there_as_a_pickle_alone_is_refused(make_recipe, tmp_path, canary, problems):
    pytest.importorskip("peft")
    base = run(make_recipe("base", ("train.steps=2",))[0]).model
    settings = ("model.scratch=null", f"model.path={base}", "model.lora.rank=2", f"data.prepared={tmp_path / 'new'}")
    recipe, _ = make_recipe("lora", (*settings, "train.steps=2"))
    folder = run(recipe).path
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    plant(folder / "adapter", canary)
    with pytest.raises(ValueError, match=r"without adapter_model\.safetensors"):
        evaluate(str(folder / "adapter"), [str(problems)], EVALUATE, tmp_path / "out", step=0)
    assert not canary.exists()


def test_a_checkpoint_of_torch_s_own_format_is_none(make_recipe, canary):
    """Its metadata is a pickle, which torch's reader runs."""
    recipe, _ = make_recipe(overrides=("train.checkpoint_every=null",))
    folder = run(recipe)
    shutil.rmtree(folder.model)
    (folder.checkpoints / "step-5").mkdir(parents=True)
    plant(folder.checkpoints / "step-5", canary)
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* is as it was written"):
        run(recipe, resume=True)
    assert not canary.exists()


def test_no_source_can_read_a_pickle_but_the_one_that_reads_back_its_own_nameless_file():
    sources = {path: path.read_text() for path in Path(dftune.__file__).parent.rglob("*.py")}
    words = r"\bimport (c?[Pp]ickle|dill|cloudpickle|joblib|shelve|marshal)\b|torch\.load\(|allow_pickle|find_class"
    words += (
        r"|trust_remote_code=True|weights_only|distributed\.checkpoint|pandas\.read_pickle|yaml\.(unsafe_|full_)?load\("
    )
    assert [path.name for path, text in sources.items() if re.search(words, text)] == ["spool.py"]
