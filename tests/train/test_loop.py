"""Whole runs on a tiny model: what they leave behind, and that a break changes nothing."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import assert_same_run, rows_of, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dftune.data.prepare import prepared
from dftune.data.prompts import get_format
from dftune.files import read_json
from dftune.train.checkpoint import list_checkpoints
from dftune.train.loop import train

ALWAYS_LOGGED = {
    *("loss", "nll", "p_mean", "p_q10", "p_q50", "p_q90", "weight_mean", "ess", "p_eot", "grad_norm", "lr", "epoch"),
    *("weight_q10", "weight_q50", "weight_q90"),
    *("tokens", "supervised_tokens", "tokens_per_s", "padding_share", "peak_memory_bytes"),
}


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dftune", "train", str(path), *arguments]


def test_a_run_leaves_a_folder_that_explains_itself(make_recipe):
    recipe, _ = make_recipe()
    folder = run(recipe).path
    rows = rows_of(folder, "train")
    assert sorted(rows) == list(range(1, 9))
    assert all(row.keys() >= ALWAYS_LOGGED for row in rows.values())
    assert rows[8]["nll"] < rows[1]["nll"]
    assert all(row["loss"] <= 1 / math.e + 1e-6 for row in rows.values())
    for quantile in ("q10", "q50", "q90"):  # the weight of a token is its probability
        assert all(row[f"weight_{quantile}"] == pytest.approx(row[f"p_{quantile}"], abs=1e-5) for row in rows.values())
    validation = rows_of(folder, "validation")
    assert sorted(validation) == [0, 8]
    assert sum(validation[8]["p_histogram"]) == validation[8]["num_tokens"]
    assert validation[0]["nll"] == pytest.approx(math.log(300), rel=0.1)
    manifest = read_json(folder / "manifest.json")
    assert manifest["objective"] == {
        "name": "dynamic_ft",
        "options": {"floor": None, "clip": None},
        "unit": "token",
    }
    assert manifest["prompt_format"]["fingerprint"] == get_format("plain", None).fingerprint
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-6", "step-3"]
    assert rows_of(folder, "end")[8]["status"] == "finished"


def test_the_final_model_loads_with_its_tokenizer_and_the_prompt_format_as_chat_template(make_recipe):
    recipe, _ = make_recipe()
    path = run(recipe).model
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    problem = "What is 1 + 2?"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == get_format("plain", tokenizer).render(problem)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    ids = torch.tensor([get_format("plain", tokenizer).encode_prompt(tokenizer, problem)])
    assert model.generate(ids, max_new_tokens=4).shape[1] <= ids.shape[1] + 4
    assert all(
        (file.stat().st_mode & 0o044) == 0o044 for file in path.iterdir()
    )  # readable by others, as the umask says


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_resumed_equals_an_unbroken_one(make_recipe):
    """kill -9 once a checkpoint is there, at whatever point the process has then reached."""
    unbroken, _ = make_recipe("unbroken")
    expected = run(unbroken).path
    recipe, path = make_recipe("broken")
    process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (recipe.output / "checkpoints" / "step-3").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before its first checkpoint"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (recipe.output / "model").exists()
    done = subprocess.run(command(path, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert_same_run(recipe.output, expected)


def test_a_second_run_with_the_same_seed_is_the_same_run_and_another_seed_is_not(make_recipe):
    folders = [run(make_recipe(name, (f"seed={seed}",))[0]).path for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert_same_run(folders[0], folders[1])
    assert rows_of(folders[0], "train")[1]["nll"] != rows_of(folders[2], "train")[1]["nll"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_recipe):
    recipe, _ = make_recipe()
    folder = run(recipe)
    expected = load_file(folder.model / "model.safetensors")
    subprocess.run(["rm", "-r", str(folder.model)], check=True)
    weights = folder.checkpoints / "step-6" / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-100] ^= 1  # one flipped bit, which safetensors loads without a word
    weights.write_bytes(raw)
    said: list[str] = []
    train(recipe, prepared(recipe), resume=True, say=said.append)
    assert any("step-6 is damaged" in line and "Falling back" in line for line in said)
    assert any("at step 3 of 8" in line for line in said)
    found = load_file(folder.model / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_folder_that_holds_a_run_is_not_written_over(make_recipe):
    recipe, _ = make_recipe()
    run(recipe)
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        run(recipe)
    other, _ = make_recipe(overrides=("optimizer.lr=1e-4",))
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0\.003 then, 0\.0001 now"):
        run(other, resume=True)
    assert rows_of(run(other, overwrite=True).path, "train")[8]["lr"] < 1e-4


def test_overwrite_does_not_delete_a_folder_that_is_not_a_run(make_recipe):
    recipe, _ = make_recipe()
    recipe.output.mkdir(parents=True)
    (recipe.output / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="will not be deleted"):
        run(recipe, overwrite=True)
    assert (recipe.output / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_keeps_the_checkpoint_before(make_recipe):
    recipe, _ = make_recipe(overrides=("train.steps=4",))
    run(recipe)
    size = (recipe.output / "checkpoints" / "step-3" / "optimizer.safetensors").stat().st_size
    full, full_path = make_recipe("full")

    def limit() -> None:  # files larger than the optimizer's cannot be written, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = subprocess.run(command(full_path), capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((full.output / "checkpoints").glob("*"))
    again = subprocess.run(command(full_path, "--resume"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (full.output / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_cannot_write_one_run(make_recipe):
    recipe, path = make_recipe(overrides=("train.steps=200",))
    first = subprocess.Popen(command(path, "train.steps=200"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (recipe.output / "events.jsonl").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        second = subprocess.run(
            command(path, "train.steps=200", "--resume"), capture_output=True, text=True, check=False
        )
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert f"being written by another process ({os.uname().nodename}, process {first.pid})" in second.stderr


def test_a_world_that_was_not_asked_for_is_refused(make_recipe):
    _, path = make_recipe()
    done = subprocess.run(
        command(path), capture_output=True, text=True, check=False, env=os.environ | {"WORLD_SIZE": "2"}
    )
    assert done.returncode == 2
    assert "WORLD_SIZE is 2" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model.scratch=null", "model.path=./no/such/model"), "no/such/model"),
        (("model.scratch=null", "model.path=nobody/nothing"), "nobody/nothing"),
        (("train.micro_batch_tokens=10",), "Raise it to at least"),
        (("data.prompt_format=qwen-boxed",), "<|im_end|>"),
        (("data.prompt_format=chat",), "chat template"),
        (("train.device=cuda",), "cuda"),
        (("objective.name=ppo",), "needs rollouts with advantages"),
        (("objective.name=psft",), "Set train.inner_loop"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_screen(make_recipe, overrides, expected):
    if expected == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    _, path = make_recipe()
    done = subprocess.run(command(path, *overrides), capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25


def test_packed_and_padded_runs_learn_the_same(make_recipe):
    packed = run(make_recipe("packed")[0]).path
    padded = run(make_recipe("padded", ("train.packing=false",))[0]).path
    left, right = rows_of(packed, "train"), rows_of(padded, "train")
    assert right[1]["padding_share"] > 0 == left[1]["padding_share"]
    for step in left:
        assert left[step]["nll"] == pytest.approx(right[step]["nll"], rel=2e-3)


def test_gradient_checkpointing_changes_nothing_but_memory(make_recipe):
    plain = run(make_recipe("plain")[0]).path
    recomputed = run(make_recipe("recomputed", ("model.gradient_checkpointing=true",))[0]).path
    for step, row in rows_of(plain, "train").items():
        assert row["nll"] == pytest.approx(rows_of(recomputed, "train")[step]["nll"], rel=1e-5)


def test_epochs_visit_every_example_once_each(make_recipe):
    recipe, _ = make_recipe(overrides=("train.steps=null", "train.epochs=2", "train.batch_size=32"))
    rows = rows_of(run(recipe).path, "train")
    assert sorted(rows) == list(range(1, 8))  # 2 * 104 / 32 = 6.5
    assert rows[7]["epoch"] == 2.0
    assert json.dumps(rows[7])  # every value is plain JSON
