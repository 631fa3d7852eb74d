"""Every objective that fixed data can train, trained: whole runs on a tiny model, broken off and taken up again."""

import hashlib
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import assert_same_run, rows_of, run

from dftune.data.prepare import prepared
from dftune.files import read_json
from dftune.objectives import OBJECTIVES, get_objective
from dftune.train.checkpoint import verify

NEEDS_ROLLOUTS = {"ppo", "grpo"}
EXTRA = {
    "psft": ("train.inner_loop=4",),
    "dpo": ("data.columns.negatives=wrong",),
    "discriminative_ft": (
        "data.columns.negatives=wrong",
        "data.num_negatives=1",
        "data.rotate_negatives=true",
        "train.batch_size=32",  # so that the steps after the last checkpoint see examples again
    ),
}
VARIANTS = {
    "deft cayley": ("objective.name=deft", "objective.exponent=cayley"),
    "iw_sft token": ("objective.name=iw_sft", "objective.form=token"),
    "asft k3": ("objective.name=asft", "objective.kl=k3"),
    "discriminative_ft ref_free": (
        "objective.name=discriminative_ft",
        "objective.ref_free=true",
        "data.columns.negatives=wrong",
    ),
}
RUNS = {
    name: (f"objective.name={name}", *EXTRA.get(name, ())) for name in OBJECTIVES if name not in NEEDS_ROLLOUTS
} | VARIANTS


def test_none_is_left_out_for_another_reason_than_rollouts():
    assert {name for name in OBJECTIVES if "advantages" in get_objective(name).needs} == NEEDS_ROLLOUTS


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_and_a_run_taken_up_again_is_the_same_to_the_bit(make_recipe, tmp_path, name):
    """Checkpoints at 3 and 6 of 8 steps: the second is amid an inner loop, and in psft's second."""
    recipe, _ = make_recipe(overrides=RUNS[name])
    folder = run(recipe)
    rows = rows_of(folder.path, "train")
    assert sorted(rows) == list(range(1, 9))
    assert rows[8]["nll"] < rows[1]["nll"] or name == "discriminative_ft ref_free"
    manifest = read_json(folder.path / "manifest.json")
    assert manifest["scorer"] == "plain"  # so few logits are simply made
    unbroken = tmp_path / "unbroken"
    shutil.copytree(folder.path, unbroken)
    shutil.rmtree(folder.model)  # as a kill after step 6 would have left it
    verify(folder.checkpoints / "step-6")
    run(recipe, resume=True)
    assert_same_run(folder.path, unbroken)


def test_the_objective_s_estimates_are_in_the_checkpoint_under_its_checksums(make_recipe):
    recipe, _ = make_recipe(overrides=RUNS["discriminative_ft"])
    saved = run(recipe).checkpoints / "step-6"
    estimates = read_json(saved / "objective-state.json")
    rows = read_json(saved / "manifest.json")["files"]
    assert "objective-state.json" in rows
    assert set(estimates) == set(prepared(recipe).train.ids)  # 6 steps of 32 see each of them


def test_the_clip_of_psft_acts_within_an_inner_loop_and_not_at_its_start(make_recipe):
    recipe, _ = make_recipe(
        overrides=("objective.name=psft", "objective.clip=0.001", "train.inner_loop=4", "optimizer.warmup_ratio=0")
    )
    shares = [row["clipped_share"] for row in rows_of(run(recipe).path, "train").values()]
    assert shares[0] == shares[4] == 0
    assert min(shares[1:4] + shares[5:]) > 0.1


def test_the_reference_is_the_starting_model_and_is_computed_once(make_recipe):
    """With the k3 penalty alone in sight: 0 at the first step, where the model is the reference, then growing."""
    recipe, _ = make_recipe(overrides=(*RUNS["asft k3"], "train.micro_batch_tokens=300"))
    folder = run(recipe)
    rows = rows_of(folder.path, "train")
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-8)
    assert rows[8]["kl"] > 1e-5
    stored = list((recipe.data.prepared / "reference").glob("[!.]*"))
    assert [path.name for path in stored] == [read_json(folder.path / "manifest.json")["reference"]]
    written = stored[0].stat().st_mtime_ns
    said: list[str] = []
    again, _ = make_recipe("again", ("objective.name=prior_ft",))
    run(again, say=said.append)
    assert list((recipe.data.prepared / "reference").glob("[!.]*")) == stored
    assert stored[0].stat().st_mtime_ns == written
    assert any(str(stored[0]) in line and "computed" not in line for line in said)


def test_a_resumed_run_without_its_reference_computes_it_from_the_base_and_not_from_the_checkpoint(make_recipe):
    recipe, _ = make_recipe(overrides=("objective.name=prior_ft",))
    folder = run(recipe)
    before = load_file(folder.model / "model.safetensors")
    shutil.rmtree(folder.model)
    shutil.rmtree(recipe.data.prepared / "reference")
    run(recipe, resume=True)
    after = load_file(folder.model / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_run_does_not_go_on_with_another_reference(make_recipe):
    recipe, _ = make_recipe(overrides=("objective.name=prior_ft",))
    folder = run(recipe)
    shutil.rmtree(folder.model)
    manifest = folder.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(read_json(manifest)["reference"], "0123456789abcdef"))
    with pytest.raises(ValueError, match="started with the reference log-probabilities 0123456789abcdef"):
        run(recipe, resume=True)


def test_an_objective_of_ones_own_trains_and_its_file_s_digest_is_in_the_manifest(make_recipe, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dftune.objectives import LossSum, objective\n\n\n"
        "@objective(unit='token', separable='token', needs=['entropy', 'ref_logps'])\n"
        "def mine(tokens, *, scale: float = 0.1):\n"
        "    total = -(tokens.logps + scale * tokens.need('entropy')).sum() + 0 * tokens.need('ref_logps').sum()\n"
        "    return LossSum(total, metrics={'entropy_of_mine': tokens.need('entropy').detach().sum()})\n"
    )
    recipe, _ = make_recipe(overrides=(f"objective.name={file}:mine", "train.log_every=3"))
    folder = run(recipe)
    rows = rows_of(folder.path, "train")
    assert sorted(rows) == [3, 6, 8]
    assert all(row["entropy_of_mine"] > 0 for row in rows.values())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_json(folder.path / "manifest.json")["objective"]["file_sha256"] == digest


def test_validation_takes_the_held_out_rows_as_one_batch_however_they_are_split(make_recipe):
    found = []
    for name, tokens in (("wide", 2000), ("narrow", 130)):
        overrides = ("objective.name=talr", f"train.micro_batch_tokens={tokens}", "train.steps=1")
        found.append(rows_of(run(make_recipe(name, overrides)[0]).path, "validation")[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    assert 0 < found[0]["entropy"] <= math.log(300)
    assert 0 <= found[0]["top1"] < 0.2


def test_statistics_for_the_log_are_taken_on_the_steps_that_are_logged(make_recipe):
    """The weights do not notice: a run logged every step is the one logged every fourth."""
    models = []
    for every in (1, 4):
        folder = run(make_recipe(f"every-{every}", (f"train.log_every={every}",))[0])
        assert all(0 <= row["top1"] <= 1 for row in rows_of(folder.path, "train").values())
        models.append(load_file(folder.model / "model.safetensors"))
    assert all(torch.equal(models[1][name], tensor) for name, tensor in models[0].items())


@pytest.mark.parametrize("name", ["asft", "asft k3", "talr", "dpo"])
def test_in_bfloat16_the_first_step_is_that_of_float32_up_to_rounding(make_recipe, name):
    rows = []
    for precision in ("fp32", "bf16"):
        overrides = (*RUNS[name], f"train.precision={precision}", "train.steps=1", "train.micro_batch_tokens=300")
        rows.append(rows_of(run(make_recipe(precision, overrides)[0]).path, "train")[1])
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=0.02)
    assert rows[1]["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=0.05)
