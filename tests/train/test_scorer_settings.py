"""The recipe's ``scorer`` section: what it forces, what it rounds, and what it refuses before anything is loaded."""

import shutil
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import VOCAB, make_examples, make_scored
from tests.train.runs import rows_of, run

from dftune.data.batches import micro_batches
from dftune.files import read_json
from dftune.objectives import get_objective
from dftune.ops.route import ROUTES, has_liger
from dftune.train.config import ScorerConfig
from dftune.train.loop import train
from dftune.train.model import ScoredModel
from dftune.train.setup import route_of


def test_the_recipe_knows_the_scorer_s_routes():
    known = get_args(ScorerConfig.model_fields["route"].annotation)
    assert set(known) == {"auto", "triton", *ROUTES}


@pytest.mark.parametrize("route", ["plain", "stored", "recompute", "one_pass", "liger"])
def test_a_forced_route_trains_what_the_plain_one_does(make_recipe, route):
    if route == "liger" and not has_liger():
        pytest.skip("the package liger-kernel is not installed")
    models = []
    for name in ("plain", route):
        folder = run(make_recipe(f"{name}-{len(models)}", (f"scorer.route={name}", "train.steps=3"))[0])
        assert read_json(folder.path / "manifest.json")["scorer"] == name
        models.append(load_file(folder.model / "model.safetensors"))
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=2e-5)


def test_an_adapter_may_be_trained_by_the_frozen_head_route_and_by_others(make_recipe, tmp_path):
    pytest.importorskip("peft")
    base = tmp_path / "base"
    shutil.copytree(run(make_recipe("base", ("train.steps=1",))[0]).model, base)
    norms = []
    for route in ("frozen_head", "recompute"):
        overrides = ("model.scratch=null", f"model.path={base}", "model.lora={rank: 2}", f"scorer.route={route}")
        folder = run(make_recipe(route, (*overrides, "train.steps=1", f"data.prepared={tmp_path / 'again'}"))[0])
        assert read_json(folder.path / "manifest.json")["scorer"] == route
        norms.append(rows_of(folder.path, "train")[1]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 0


def test_the_settings_are_in_the_manifest(make_recipe):
    overrides = ("train.precision=bf16", "scorer.logits_dtype=bfloat16", "scorer.budget_mib=3", "train.steps=1")
    manifest = read_json(run(make_recipe(overrides=overrides)[0]).path / "manifest.json")
    assert manifest["scorer_settings"] == {"route": "auto", "logits_dtype": "bfloat16", "budget_mib": 3}


def test_the_budget_decides_the_route():
    """Rows of 50 float32 probabilities: 1 MiB holds 5,242 of them, and not 6,000."""
    scored = make_scored("llama-untied")
    for budget, expected in ((1, "recompute"), (2, "stored")):
        model = ScoredModel(scored.model, scorer=ScorerConfig(budget_mib=budget))
        assert route_of(model, get_objective("talr"), lambda: make_examples(4), 6_000) == expected


def test_bfloat16_logits_are_those_of_the_model_s_own_bfloat16_head():
    scored = make_scored("llama-untied")
    (batch,) = micro_batches(make_examples(4), max_tokens=1000)
    wide, rounded = (
        ScoredModel(scored.model, torch.bfloat16, scorer=ScorerConfig(logits_dtype=dtype)).eval()
        for dtype in ("float32", "bfloat16")
    )
    with torch.no_grad():
        hidden = rounded.hidden(batch).bfloat16()
        logits = torch.nn.functional.linear(hidden, scored.model.lm_head.weight.bfloat16()).double()
        expected = logits.log_softmax(1).gather(1, batch.targets[:, None]).squeeze(1)
        found, unrounded = rounded(batch).double(), wide(batch).double()
    assert logits.shape[1] == VOCAB
    assert (found - expected).abs().max() < 5e-6
    assert 1e-5 < (found - unrounded).abs().max() < logits.abs().max() * 2**-7


def test_bfloat16_logits_take_a_step_like_float32_ones_within_bfloat16_s_rounding(make_recipe):
    rows = []
    for dtype in ("float32", "bfloat16"):
        overrides = ("train.precision=bf16", f"scorer.logits_dtype={dtype}", "train.steps=1")
        rows.append(rows_of(run(make_recipe(dtype, overrides)[0]).path, "train")[1])
    assert rows[1]["nll"] != rows[0]["nll"]
    assert rows[1]["nll"] == pytest.approx(rows[0]["nll"], rel=2**-8)
    assert rows[1]["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=2**-5)


def test_the_reference_is_another_where_logits_are_rounded(make_recipe):
    names = set()
    for dtype in ("float32", "bfloat16"):
        overrides = (
            "objective.name=prior_ft", "train.precision=bf16", f"scorer.logits_dtype={dtype}", "train.steps=1"
        )  # fmt: skip
        names.add(read_json(run(make_recipe(dtype, overrides)[0]).path / "manifest.json")["reference"])
    assert len(names) == 2


GROUPED = ("data.columns.negatives=wrong",)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("scorer.logits_dtype=bfloat16", "train.precision=fp32"), r"compute is float32.*Set train\.precision=bf16"),
        (("scorer.route=one_pass", "objective.name=talr"), "one_pass: talr is defined on the whole step"),
        (("scorer.route=one_pass", "objective.name=asft"), "one_pass: asft compares whole rows with the reference's"),
        (("scorer.route=frozen_head",), "frozen_head: it gives the head no gradient, and all weights are trained"),
        (("scorer.route=triton", "objective.name=eaft"), "triton: .*eaft needs top_k_entropy"),
        (("scorer.route=triton",), "triton: .*its kernels run on CUDA"),
    ],
)
def test_what_cannot_be_is_refused_before_the_data_is_looked_at(make_recipe, monkeypatch, overrides, expected):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    recipe, _ = make_recipe(overrides=overrides)
    with pytest.raises(ValueError, match=expected):
        train(recipe, data=None, say=print)
    assert not recipe.output.exists()


@pytest.mark.parametrize("route", ["frozen_head", "liger"])
def test_an_objective_that_needs_the_entropy_s_gradient_is_named(make_recipe, tmp_path, route):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dftune.objectives import LossSum, objective\n\n\n"
        "@objective(unit='token', separable='token', needs=['entropy'])\n"
        "def mine(tokens):\n"
        "    return LossSum(-(tokens.logps + tokens.need('entropy')).sum())\n"
    )
    recipe, _ = make_recipe(overrides=(f"objective.name={file}:mine", f"scorer.route={route}"))
    with pytest.raises(ValueError, match=r"mine needs the entropy, whose gradient it leaves out.*scorer\.route=auto"):
        train(recipe, data=None, say=print)


@pytest.mark.skipif(not has_liger(), reason="the package liger-kernel is not installed")
def test_kernels_that_cannot_score_the_head_are_refused_before_the_first_step(make_recipe):
    """In bfloat16 Liger's fallback rounds logits, which the recipe has not asked for."""
    recipe, _ = make_recipe(overrides=("scorer.route=liger", "train.precision=bf16"))
    with pytest.raises(ValueError, match="off Hopper it rounds logits to bfloat16"):
        run(recipe)
    assert [row["status"] for row in rows_of(recipe.output, "end").values()] == ["failed"]
    assert rows_of(recipe.output, "train") == {}


def test_a_group_objective_may_be_forced_into_one_pass(make_recipe):
    recipe, _ = make_recipe(overrides=("objective.name=dpo", "scorer.route=one_pass", "train.steps=2", *GROUPED))
    assert sorted(rows_of(run(recipe).path, "train")) == [1, 2]


@pytest.mark.parametrize("override", ["scorer.route=fast", "scorer.budget_mib=0", "scorer.logits_dtype=float16"])
def test_unknown_settings_are_recipe_errors(make_recipe, override):
    with pytest.raises(ValueError, match=override.split("=")[0]):
        make_recipe(overrides=(override,))
