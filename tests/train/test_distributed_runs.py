"""Whole runs of several processes: what they leave behind, broken off and taken up by another number of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.train.ranks import spawn
from tests.train.runs import assert_same_run, rows_of, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dftune.data.prepare import prepared
from dftune.files import read_json
from dftune.recipe import Recipe
from dftune.train.checkpoint import list_checkpoints, verify
from dftune.train.distributed import divided
from dftune.train.loop import train
from dftune.train.model import load_model
from dftune.train.world import World

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
TOLERANT = ("optimizer.eps=1e-5",)  # from noise in gradients that are 0 Adam would make steps of its own
NEGATIVES = ("data.columns.negatives=wrong", "data.num_negatives=1", "data.rotate_negatives=true")
FSDP = ("distributed.strategy=fsdp",)
RUNS = {
    "ddp": ("objective.name=dynamic_ft",),
    "fsdp": ("objective.name=iw_sft", "train.log_every=3", *FSDP),
    "inner loop": ("objective.name=psft", "train.inner_loop=4", *FSDP),
    "epochs of estimates": ("objective.name=discriminative_ft", "train.batch_size=40", *NEGATIVES, *FSDP),
    "batch": ("objective.name=talr", "train.packing=false"),
    "in parts": ("objective.name=asft", "distributed.sequence_parallel=2", "train.micro_batch_tokens=128"),
}
NOT_COMPARED = {"kind", "time", "tokens_per_s", "peak_memory_bytes", "padding_share", "p_histogram"}


def train_all(world: World, folder: Path, jobs: list[tuple[Recipe, bool]]) -> None:
    """Run recipes on these ranks; the lines that they say go to a file of the rank."""
    said: list[str] = []
    for recipe, resume in jobs:
        shared = divided(world, recipe.distributed.sequence_parallel)
        train(recipe, prepared(recipe), resume=resume, say=said.append, world=shared)
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


def on_ranks(tmp_path: Path, *jobs: tuple[Recipe, bool], size: int = 2) -> list[list[str]]:
    """Run them on so many ranks; returns what each rank said."""
    folder = tmp_path / f"ranks-{time.monotonic_ns()}"
    spawn(size, folder, train_all, list(jobs))
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(size)]


def assert_alike(first: Path, second: Path, rel: float = 2e-4) -> None:
    """The same metrics and the same weights, up to rounding."""
    for kind in ("train", "validation"):
        left, right = rows_of(first, kind), rows_of(second, kind)
        assert left.keys() == right.keys()
        for step, row in left.items():
            assert row.keys() == right[step].keys()
            for key in row.keys() - NOT_COMPARED:
                assert row[key] == pytest.approx(right[step][key], rel=rel, abs=1e-6), (kind, step, key)
    left, right = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=rel, atol=2e-5)


def test_two_processes_leave_what_one_does(make_recipe, tmp_path):
    settings = (*TOLERANT, "data.columns.negatives=wrong")
    alone = ("distributed.strategy=auto", "distributed.sequence_parallel=1", "train.micro_batch_tokens=256")
    one = {name: make_recipe(f"one-{i}", (*RUNS[name], *settings, *alone))[0] for i, name in enumerate(RUNS)}
    two = {name: make_recipe(f"two-{i}", (*RUNS[name], *settings))[0] for i, name in enumerate(RUNS)}
    folders = {name: run(recipe).path for name, recipe in one.items()}
    shutil.rmtree(one["fsdp"].data.prepared / "reference")
    said, other = on_ranks(tmp_path, *((recipe, False) for recipe in two.values()))
    assert other == []  # rank 0 alone speaks
    assert sum("over 2 processes" in line for line in said) == len(RUNS)
    assert sum("computed once" in line for line in said) == 2  # for completions alone, and with their negatives
    for name, recipe in two.items():
        assert_alike(recipe.output, folders[name])
        manifest, expected = (read_json(path / "manifest.json") for path in (recipe.output, folders[name]))
        strategy = "fsdp" if set(FSDP) <= set(RUNS[name]) else "ddp"
        assert (manifest["distributed"]["world_size"], manifest["distributed"]["strategy"]) == (2, strategy)
        assert manifest["reference"] == expected["reference"]
        assert [row["status"] for row in rows_of(recipe.output, "end").values()] == ["finished"]
        verify(recipe.output / "checkpoints" / "step-6")
    AutoModelForCausalLM.from_pretrained(two["fsdp"].output / "model")
    first, second = (
        read_json(recipes["epochs of estimates"].output / "checkpoints" / "step-6" / "objective-state.json")
        for recipes in (one, two)
    )
    assert len(first) == len(prepared(one["ddp"]).train)  # 6 steps of 40: every example more than twice
    assert second == pytest.approx(first, rel=1e-4)
    again, unbroken = two["inner loop"], tmp_path / "unbroken"
    shutil.copytree(again.output, unbroken)
    shutil.rmtree(again.output / "model")
    on_ranks(tmp_path, (again, True))
    assert_same_run(again.output, unbroken)  # taken up by as many processes: to the bit


def test_of_a_checkpoint_that_is_trained_rank_0_reads_the_weights_and_the_others_get_them(make_recipe, tmp_path):
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null", "objective.name=sft"))
    path = run(base).model
    settings = ("model.scratch=null", f"model.path={path}", f"data.prepared={tmp_path / 'again'}", "train.steps=3")
    settings = (*settings, "objective.name=asft", *TOLERANT)
    expected = run(make_recipe("alone", settings)[0]).path
    several = {name: make_recipe(name, (*settings, f"distributed.strategy={name}"))[0] for name in ("ddp", "fsdp")}
    on_ranks(tmp_path, *((recipe, False) for recipe in several.values()))
    for recipe in several.values():
        assert_alike(recipe.output, expected)
    tokenizer = AutoTokenizer.from_pretrained(path)
    read, empty = (load_model(several["ddp"].model, tokenizer, seed=0, empty=empty) for empty in (False, True))
    shapes = [
        {name: (value.shape, value.dtype, value.device) for name, value in (*m.named_parameters(), *m.named_buffers())}
        for m in (read, empty)
    ]
    assert shapes[0] == shapes[1]
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert type(empty) is type(read)
    assert empty.config._attn_implementation == read.config._attn_implementation


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_saved_by_two_is_resumed_by_one_and_the_other_way_round(make_recipe, tmp_path, strategy):
    settings = ("objective.name=discriminative_ft", "train.batch_size=40", *NEGATIVES, *TOLERANT)
    alone, _ = make_recipe("alone", settings)
    expected = tmp_path / "expected"
    shutil.copytree(run(alone).path, expected)
    shutil.rmtree(alone.output / "model")
    several, _ = make_recipe("several", (*settings, f"distributed.strategy={strategy}"))
    on_ranks(tmp_path, (several, False))
    shutil.rmtree(several.output / "model")
    # the checkpoints that one process wrote, taken up by two, and the checkpoints that two wrote, taken up by one
    by_two = alone.model_copy(update={"distributed": several.distributed})
    by_one = several.model_copy(update={"distributed": alone.distributed})
    (said, _), heard = on_ranks(tmp_path, (by_two, True)), []
    run(by_one, say=heard.append, resume=True)
    for lines in (said, heard):
        assert any("at step 6 of 8" in line for line in lines)
    assert_alike(alone.output, expected)
    assert_alike(several.output, expected)


def test_a_sharded_adapter_is_saved_taken_up_and_merged(make_recipe, tmp_path):
    pytest.importorskip("peft")
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null", "objective.name=sft"))
    path = run(base).model
    settings = ("model.scratch=null", f"model.path={path}", "model.lora.rank=4", "objective.name=asft", *TOLERANT)
    settings = (*settings, f"data.prepared={tmp_path / 'prepared-again'}", "optimizer.lr=1e-2")
    alone, _ = make_recipe("alone", settings)
    expected = run(alone).path
    several, _ = make_recipe("several", (*settings, *FSDP))
    on_ranks(tmp_path, (several, False))
    assert_alike(several.output, expected)
    for part in (several.output / "model", several.output / "checkpoints" / "step-6"):
        shutil.rmtree(part)
    on_ranks(tmp_path, (several, True))
    assert_alike(several.output, expected)
    left, right = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (several.output, expected))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=2e-4, atol=2e-5)


# --- The command line ------------------------------------------------------------------------------


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dftune", "train", str(path), "--nproc", "2", *arguments]


@pytest.mark.slow
def test_nproc_trains_in_two_processes_and_torchrun_does_the_same(make_recipe):
    recipe, path = make_recipe("short")
    done = subprocess.run(command(path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("short: dynamic_ft")] == [lines[-4]]
    assert "ddp over 2 processes" in lines[-4]
    assert lines[-1] == f"model: {recipe.output / 'model'}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    other, path = make_recipe("long")
    arguments = ["-m", "dftune", "train", str(path), "distributed.world_size=2"]
    again = subprocess.run([*launcher, *arguments], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert_alike(recipe.output, other.output, rel=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_the_run_with_one_message_and_a_status(make_recipe, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "from dftune.objectives import LossSum, objective\n\n\n"
        "@objective(unit='token', separable='sequence')\n"
        "def broken(tokens):\n"
        "    return LossSum(-tokens.logps.sum() * (float('nan') if 'add/7' in tokens.example_ids else 1.0))\n"
    )
    recipe, path = make_recipe()
    done = subprocess.run(
        command(path, f"objective.name={file}:broken", "train.steps=40"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("loss nan") == 1
    assert "Traceback" not in done.stderr
    (failed,) = (recipe.output / "failed-batches").iterdir()
    assert "add/7" in [row["id"] for row in read_json(failed)["examples"]]
    assert not (recipe.output / "model").exists()
    assert list(rows_of(recipe.output, "end").values())[-1]["status"] == "failed"


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_the_status_passes_through(make_recipe):
    recipe, path = make_recipe()
    recipe.output.mkdir(parents=True)
    (recipe.output / "recipe.yaml").write_text("name: other\n")
    done = subprocess.run(command(path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("already holds a run") == 1
    assert "Traceback" not in done.stderr
    asked = subprocess.run(command(path, "distributed.world_size=4"), capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert "--nproc is 2, and must be 4" in asked.stderr


@pytest.mark.slow
def test_an_interrupt_ends_all_processes_and_the_run_says_so(make_recipe):
    recipe, path = make_recipe()
    process = subprocess.Popen(
        command(path, "train.steps=100000", "train.checkpoint_every=null"), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not (recipe.output / "events.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("Interrupted.") == 1
    assert list(rows_of(recipe.output, "end").values())[-1]["status"] == "interrupted"


@pytest.mark.slow
def test_a_killed_process_takes_the_other_with_it_and_leaves_whole_checkpoints_to_go_on_from(make_recipe):
    recipe, path = make_recipe()
    process = subprocess.Popen(command(path, "train.steps=100000"), stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    deadline = time.monotonic() + 200
    while not (recipe.output / "checkpoints" / "step-6").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks = [int(pid) for pid in children.read_text().split() if "train" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGKILL
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    saved = list_checkpoints(recipe.output / "checkpoints")
    assert len(saved) >= 2
    for checkpoint in saved:
        verify(checkpoint)
