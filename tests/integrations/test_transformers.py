import math

import pytest
import torch
from tests.integrations.tiny import ROWS, USERS_OBJECTIVES, encode, load_model, load_tokenizer, score
from transformers.modeling_outputs import CausalLMOutput

from dftune.integrations.transformers import compute_loss_func

VOCAB = 30


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 5, VOCAB) and labels; the first label of a row is supervised too, and predicted by nothing."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 5, VOCAB, generator=generator)
    labels = torch.randint(VOCAB, (3, 5), generator=generator)
    labels[0, 1:3] = labels[1, 4] = -100
    labels[2] = -100
    return logits, labels


def weighted(logits: torch.Tensor, labels: torch.Tensor, weight) -> torch.Tensor:
    """The sum of - w(row of probabilities, p) log p, position by position in float64; w has no gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            if (target := labels[row, position]) != -100:
                logps = logits[row, position - 1].double().log_softmax(0)
                probabilities = logps.detach().exp()
                total = total - weight(probabilities, probabilities[target].item()) * logps[target]
    return total


def top20_share(probabilities: torch.Tensor) -> float:
    largest = sorted(probabilities.tolist())[-20:]
    return -sum(p / sum(largest) * math.log(p / sum(largest)) for p in largest) / math.log(20)


@pytest.mark.parametrize(
    ("name", "options", "weight"),
    [
        ("sft", {}, lambda probabilities, p: 1.0),
        ("dynamic_ft", {}, lambda probabilities, p: p),
        ("dynamic_ft", {"floor": 0.2}, lambda probabilities, p: max(p, 0.2)),
        ("eaft", {"alpha": 2.0}, lambda probabilities, p: top20_share(probabilities) ** 2),
    ],
)
@pytest.mark.parametrize("num_items_in_batch", [None, 40, torch.tensor(40)])
def test_the_value_and_gradient_are_those_of_a_loop_over_positions(name, options, weight, num_items_in_batch):
    logits, labels = random_batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = compute_loss_func(name, **options)(CausalLMOutput(logits=ours), labels, num_items_in_batch)
    num_tokens = 5 if num_items_in_batch is None else 40
    expected = weighted(theirs, labels, weight) / num_tokens
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(found, torch.autograd.grad(expected, theirs)[0], rtol=1e-4, atol=1e-7)


def test_deft_gets_the_sum_of_squared_probabilities():
    logits, labels = random_batch()
    loss = compute_loss_func("deft")(CausalLMOutput(logits=logits), labels)
    expected = []
    for row, position in ((0, 3), (0, 4), (1, 1), (1, 2), (1, 3)):
        probabilities = logits[row, position - 1].double().softmax(0)
        exponent = probabilities.square().sum()
        expected.append((1 - probabilities[labels[row, position]] ** exponent) / exponent)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_the_entropy_comes_with_its_gradient(tmp_path):
    (tmp_path / "mine.py").write_text(USERS_OBJECTIVES)
    logits, labels = random_batch()
    logits[0, 2, 7] = -torch.inf  # a masked-out vocabulary entry adds nothing, and no NaN
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = compute_loss_func(f"{tmp_path}/mine.py:confident")(CausalLMOutput(logits=ours), labels)
    rows = theirs[:, :-1][labels[:, 1:] != -100]
    expected = torch.distributions.Categorical(logits=rows).entropy().mean()
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(found[0, 3:], wanted[0, 3:])
    torch.testing.assert_close(found[1], wanted[1])
    assert torch.isfinite(found).all()


def test_half_precision_logits_are_scored_in_float32():
    logits, labels = random_batch()
    rounded = logits.bfloat16()
    loss = compute_loss_func("sft")(CausalLMOutput(logits=rounded), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(weighted(rounded, labels, lambda *_: 1.0).item() / 5, rel=1e-6)


@pytest.mark.parametrize("name", ["sft", "dynamic_ft", "power", "eaft", "deft", "chord_phi"])
def test_a_batch_without_supervised_tokens_gives_a_differentiable_zero(name):
    logits, _ = random_batch()
    logits.requires_grad_()
    loss = compute_loss_func(name)(CausalLMOutput(logits=logits), torch.full((3, 5), -100))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert gradient.count_nonzero() == 0


def test_a_batch_without_labels_says_what_to_do():
    with pytest.raises(ValueError, match=r"no labels .* column `labels`"):
        compute_loss_func("sft")(CausalLMOutput(logits=random_batch()[0]), None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("iw_sft", "needs ref_logps; it mixes the tokens of a sequence"),
        ("psft", "needs old_logps"),
        ("asft", "needs ref_kl"),
        ("talr", "statistic of the whole batch"),
        ("dpo", "needs groups, ref_logps; its loss is a mean over groups"),
        ("discriminative_ft", "estimate for each example"),
        ("grpo", "mean over sequences"),
    ],
)
def test_what_the_trainer_cannot_provide_is_refused_with_the_command_that_can(name, reason):
    with pytest.raises(ValueError, match=rf"{name}.*{reason}.*`dftune train`.*name: {name}"):
        compute_loss_func(name)


def test_an_unknown_option_is_refused_at_once():
    with pytest.raises(ValueError, match="flor: not an option of dynamic_ft"):
        compute_loss_func("dynamic_ft", flor=0.1)


def train(folder, output, loss=None, *, size: int = 8, steps: int = 1):
    """Five optimizer steps of the real Trainer on eight rows each."""
    pytest.importorskip("accelerate")
    from datasets import load_dataset  # noqa: PLC0415
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments  # noqa: PLC0415

    tokenizer = load_tokenizer(folder)
    rows = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=str(output / "cache"))
    trainer = Trainer(
        model=load_model(folder),
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=size,
            per_device_eval_batch_size=len(ROWS),
            gradient_accumulation_steps=steps,
            learning_rate=1e-3,
            logging_steps=1,
            num_train_epochs=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows.map(lambda row: encode(tokenizer, row)),
        eval_dataset=rows.map(lambda row: encode(tokenizer, row)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_loss_func=loss,
    )
    trainer.train()
    return trainer


def curve(trainer) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]


def assert_same_run(trainer, other) -> None:
    assert len(curve(trainer)) == 5
    for found, expected in zip(curve(trainer), curve(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for found, expected in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_sft_trains_as_the_trainers_own_loss_does(folder, tmp_path):
    assert_same_run(train(folder, tmp_path, compute_loss_func("sft")), train(folder, tmp_path))


def test_gradient_accumulation_does_not_change_the_run(folder, tmp_path):
    loss = compute_loss_func("dynamic_ft")
    assert_same_run(train(folder, tmp_path, loss, size=2, steps=4), train(folder, tmp_path, loss))


def test_evaluation_is_a_mean_over_the_supervised_tokens(folder, tmp_path):
    trainer = train(folder, tmp_path, compute_loss_func("dynamic_ft"))
    with torch.no_grad():
        logps = torch.cat([logps for logps, _ in score(trainer.model, trainer.eval_dataset)])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(-(logps.exp() * logps).mean().item(), rel=1e-5)
