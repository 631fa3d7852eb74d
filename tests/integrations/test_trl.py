"""Against TRL's own trainer: the same run where it knows the loss, the formula where it does not."""

import pytest
import torch
from tests.integrations.tiny import ROWS, USERS_OBJECTIVES, load_model, load_tokenizer, score

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
from datasets import load_dataset  # noqa: E402
from transformers import MixtralConfig, MixtralForCausalLM  # noqa: E402

from dftune.integrations.trl import ObjectiveSFTTrainer, check_version  # noqa: E402

NUM_STEPS = 5
PACKED = {"packing": True, "max_length": 64}


@pytest.fixture
def users_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USERS_OBJECTIVES)
    return path


def make_mixture(folder):
    """Mixture of experts, with a router loss beside the token loss."""
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(load_tokenizer(folder)),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            num_local_experts=4,
            router_aux_loss_coef=0.3,
            output_router_logits=True,
            initializer_range=0.2,
        )
    )


def make_trainer(folder, output, objective=None, options=None, *, model=None, peft_config=None, metrics=None, **args):
    """TRL's trainer, or ours where an objective is named, on the same files and settings."""
    rows = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=str(output / "cache"))
    settings = {
        "output_dir": str(output / "out"),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": len(ROWS),
        "learning_rate": 1e-3,
        "max_steps": NUM_STEPS,
        "logging_steps": 1,
        "max_grad_norm": 0.5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    common = {
        "model": load_model(folder) if model is None else model,
        "args": trl.SFTConfig(**(settings | args)),
        "train_dataset": rows,
        "eval_dataset": rows,
        "processing_class": load_tokenizer(folder),
        "peft_config": peft_config,
        "compute_metrics": metrics,
    }
    if objective is None:
        return trl.SFTTrainer(**common)
    return ObjectiveSFTTrainer(objective=str(objective), objective_options=options, **common)


def train(*args, **kwargs):
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def steps(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "grad_norm" in row]


def assert_same_run(ours, theirs, keys=("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")) -> None:
    assert len(steps(ours)) == NUM_STEPS
    for found, expected in zip(steps(ours), steps(theirs), strict=True):
        assert {key: found[key] for key in keys} == pytest.approx({key: expected[key] for key in keys}, rel=1e-4)
    for found, expected in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "loss_type"), [("sft", "nll"), ("dynamic_ft", "dft")])
@pytest.mark.parametrize(
    "args",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {**PACKED, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"padding_free": True, "max_length": None},
    ],
    ids=["padded", "accumulated", "packed", "padding-free"],
)
def test_a_run_is_trls_own_loss_gradient_metrics_and_weights(name, loss_type, args, folder, tmp_path):
    ours, theirs = train(folder, tmp_path, name, **args), train(folder, tmp_path, loss_type=loss_type, **args)
    assert_same_run(ours, theirs)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


def test_a_run_with_lora_is_trls_own(folder, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    ours = train(folder, tmp_path, "dynamic_ft", peft_config=config)
    assert_same_run(ours, train(folder, tmp_path, loss_type="dft", peft_config=config))


def test_a_run_of_a_mixture_of_experts_adds_trls_router_loss(folder, tmp_path):
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ours = train(folder, tmp_path, "dynamic_ft", model=make_mixture(folder), **args)
    theirs = train(folder, tmp_path, loss_type="dft", model=make_mixture(folder), **args)
    assert steps(ours)[0]["aux_loss"] > 0
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("packing", [{}, PACKED], ids=["padded", "packed"])
def test_accumulating_eight_batches_of_one_is_four_of_two(packing, folder, tmp_path):
    ones, twos = (
        train(folder, tmp_path, "dynamic_ft", per_device_train_batch_size=size, gradient_accumulation_steps=8 // size,
              **packing)
        for size in (1, 2)
    )  # fmt: skip
    assert_same_run(ones, twos, keys=("loss", "grad_norm", "nll", "p_mean", "weight_mean", "ess"))


def test_without_the_stop_gradient_the_loss_is_the_same_and_the_gradient_is_not(users_file, folder, tmp_path):
    theirs, ours, leaky = (
        steps(train(folder, tmp_path, name, max_steps=1, **args))[0]
        for name, args in [(None, {"loss_type": "dft"}), ("dynamic_ft", {}), (f"{users_file}:leaky", {})]
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert leaky["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert abs(leaky["grad_norm"] / theirs["grad_norm"] - 1) > 0.1


def test_the_logged_means_are_over_all_tokens_since_the_last_log(folder, tmp_path):
    trainer = make_trainer(
        folder, tmp_path, "dynamic_ft", {"clip": 0.5}, learning_rate=0.0, max_steps=2, logging_steps=2,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train()
    with torch.no_grad():
        logps = torch.cat([logps for logps, _ in score(trainer.model, trainer.train_dataset.select(range(16)))])
    p = logps.exp()
    weights = p.clamp(max=0.5)
    (row,) = steps(trainer)
    expected = {
        "nll": -logps.mean().item(),
        "p_mean": p.mean().item(),
        "weight_mean": weights.mean().item(),
        "ess": (weights.sum() ** 2 / (len(weights) * weights.square().sum())).item(),
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_evaluation_gives_the_nll_beside_the_objectives_loss_whatever_was_trained_before(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, "dynamic_ft", logging_steps=3, eval_strategy="steps", eval_steps=2)
    trainer.train()
    before = trainer.state.log_history[0]
    assert before["eval_nll"] > 0
    assert "eval_ess" not in before
    with torch.no_grad():
        logps = torch.cat([logps for logps, _ in score(trainer.model, trainer.eval_dataset)])
    found = trainer.evaluate()
    assert found["eval_nll"] == pytest.approx(-logps.mean().item(), rel=1e-5)
    assert found["eval_p_mean"] == pytest.approx(logps.exp().mean().item(), rel=1e-5)
    assert found["eval_loss"] == pytest.approx(-(logps.exp() * logps).mean().item(), rel=1e-5)


def test_metrics_on_logits_still_work(folder, tmp_path):
    def hits(prediction):
        logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        return {"hits": float((logits.argmax(-1) == labels)[labels != -100].mean())}

    trainer = make_trainer(folder, tmp_path, "dynamic_ft", metrics=hits)
    found = trainer.evaluate()
    assert found["eval_hits"] == pytest.approx(found["eval_mean_token_accuracy"], abs=1e-6)


def test_packed_sequences_are_told_apart(users_file, folder, tmp_path):
    objective = f"{users_file}:by_sequence"
    packed = make_trainer(folder, tmp_path, objective, **PACKED)
    assert any(len(lengths) > 1 for lengths in packed.eval_dataset["seq_lengths"])
    padded = make_trainer(folder, tmp_path, objective)
    with torch.no_grad():
        logps = [logps for logps, _ in score(padded.model, padded.eval_dataset)]
    num_tokens = sum(len(row) for row in logps)
    for found in (packed.evaluate(), padded.evaluate()):
        assert found["eval_loss"] == pytest.approx(-sum(len(r) * r.sum().item() for r in logps) / num_tokens, rel=1e-5)
        assert found["eval_mean_length"] == pytest.approx(sum(len(r) ** 2 for r in logps) / num_tokens, rel=1e-6)


def test_deft_gets_the_sum_of_squared_probabilities(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, "deft")
    with torch.no_grad():
        found = score(trainer.model, trainer.eval_dataset)
    logps, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    exponents = rows.exp().square().sum(1)
    expected = ((1 - logps.exp() ** exponents) / exponents).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < expected


def test_the_entropy_comes_with_its_gradient(users_file, folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, f"{users_file}:confident", max_grad_norm=0.0)
    model = trainer.model
    expected = torch.cat([torch.special.entr(rows.exp()).sum(1) for _, rows in score(model, trainer.eval_dataset)])
    wanted = torch.autograd.grad(expected.mean(), list(model.parameters()))
    (batch,) = trainer.get_eval_dataloader()
    loss = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(loss, expected.mean().float(), rtol=1e-5, atol=0)
    for found, want in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-6)


def test_a_micro_batch_without_supervised_tokens_gives_a_differentiable_zero(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, "dynamic_ft")
    batch = dict(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, batch | {"labels": torch.full_like(batch["labels"], -100)})
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    assert loss.item() == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert "nll" not in logs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("iw_sft", "needs ref_logps"),
        ("psft", "needs old_logps"),
        ("asft", "needs ref_kl"),
        ("eaft", "needs top_k_entropy"),
        ("talr", "statistic of the whole batch"),
        ("dpo", "needs groups, ref_logps; its loss is a mean over groups"),
        ("discriminative_ft", "estimate for each example"),
    ],
)
def test_what_trl_cannot_provide_is_refused_with_the_command_that_can(name, reason, folder, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}.*TRL's SFTTrainer.*{reason}.*`dftune train`.*name: {name}"):
        make_trainer(folder, tmp_path, name)


def test_a_mean_over_sequences_is_refused(users_file, folder, tmp_path):
    with pytest.raises(ValueError, match="mean over sequences, and here the loss is divided by a count of tokens"):
        make_trainer(folder, tmp_path, f"{users_file}:mean_of_means")


@pytest.mark.parametrize(
    ("args", "found"), [({"loss_type": "dft"}, "loss_type='dft'"), ({"label_smoothing_factor": 0.1}, "label_smoothing")]
)
def test_settings_that_would_change_the_loss_are_refused(args, found, folder, tmp_path):
    with pytest.raises(ValueError, match=f"'dynamic_ft' cannot be trained with {found}"):
        make_trainer(folder, tmp_path, "dynamic_ft", **args)


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_packing_that_cuts_sequences_is_refused_only_where_sequences_matter(strategy, users_file, folder, tmp_path):
    args = {**PACKED, "packing_strategy": strategy}
    with pytest.raises(ValueError, match=f"packing_strategy='{strategy}', which cuts sequences; use 'bfd'"):
        make_trainer(folder, tmp_path, f"{users_file}:by_sequence", **args)
    assert make_trainer(folder, tmp_path, "dynamic_ft", **args).objective.name == "dynamic_ft"


@pytest.mark.parametrize("version", ["1.15.2", "1.16.0.dev0", "2.0.0.dev0", "2.0.0"])
def test_another_version_of_trl_is_refused_with_the_range(version):
    with pytest.raises(ValueError, match=rf"TRL .*>=1.16.*{version} is installed.*pip install"):
        check_version(version)


@pytest.mark.parametrize("version", ["1.16.0", "1.16.1", "1.29.0"])
def test_the_supported_versions_of_trl_are_taken(version):
    check_version(version)


def test_the_installed_version_is_looked_at_when_a_trainer_is_made(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trl, "__version__", "1.15.0")
    with pytest.raises(ValueError, match=r"1\.15\.0 is installed"):
        make_trainer(folder, tmp_path, "sft")
