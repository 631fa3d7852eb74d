"""The values and gradients of TRL's own trainers, where TRL is installed (the `trl` extra)."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.data.tokenizer import blank_tokenizer
from dftune.objectives import TokenBatch, get_objective

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS = [
    {"prompt": "2+2=", "chosen": " four", "rejected": " five, I think"},
    {"prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Rome"},
    {"prompt": "x", "chosen": "y", "rejected": "z?"},
]


def make_model(seed: int) -> Qwen2ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(blank_tokenizer()),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=24,
                initializer_range=0.3,  # far from uniform, so that a mistake shows
            )
        )


def settings_of(config, folder, **options):
    return config(
        output_dir=str(folder),
        per_device_train_batch_size=len(ROWS),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=True,
        **options,
    )


def first_batch(trainer) -> dict[str, torch.Tensor]:
    return dict(next(iter(trainer.get_train_dataloader())))


def logps_of(model, input_ids, attention_mask, supervised) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of the supervised tokens, flat, from full logits; and the row of each."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    found = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]
    rows = torch.arange(len(input_ids))[:, None].expand_as(found)
    kept = supervised[:, 1:].bool()
    return found[kept], rows[kept]


def assert_same_gradient(loss: torch.Tensor, other: torch.Tensor, model) -> None:
    found = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.autograd.grad(other, list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "loss_type"), [("sft", "nll"), ("dynamic_ft", "dft")])
def test_the_loss_and_gradient_of_the_sft_trainer(name, loss_type, tmp_path):
    data = datasets.Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS])
    trainer = trl.SFTTrainer(
        model=make_model(0),
        args=settings_of(trl.SFTConfig, tmp_path, loss_type=loss_type),
        train_dataset=data,
        processing_class=blank_tokenizer(),
    )
    batch, model = first_batch(trainer), trainer.model
    supervised = batch["labels"] != -100
    num_tokens = supervised[:, 1:].sum()
    theirs = trainer.compute_loss(model, dict(batch), num_items_in_batch=num_tokens)
    logps, rows = logps_of(model, batch["input_ids"], batch["attention_mask"], supervised)
    ours = get_objective(name)(TokenBatch(logps=logps, sequence_ids=rows, num_sequences=len(ROWS))).total / len(logps)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_same_gradient(ours, theirs, model)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("sigmoid", {"beta": 0.1}),
        ("sigmoid", {"beta": 2.0}),
        ("hinge", {"beta": 0.5}),
        ("ipo", {"beta": 0.3}),
        ("robust", {"beta": 0.5, "label_smoothing": 0.2}),
    ],
)
def test_the_loss_and_gradient_of_the_dpo_trainer(loss, options, tmp_path):
    reference = make_model(1)
    trainer = trl.DPOTrainer(
        model=make_model(0),
        ref_model=reference,
        args=settings_of(trl.DPOConfig, tmp_path, loss_type=[loss], **options),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=blank_tokenizer(),
    )
    batch, model = first_batch(trainer), trainer.model
    theirs = trainer.compute_loss(model, dict(batch))
    inputs = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    logps, rows = logps_of(model, *inputs)
    with torch.no_grad():
        ref_logps, _ = logps_of(trainer.ref_model, *inputs)
    num_pairs = len(ROWS)
    tokens = TokenBatch(
        logps=logps,
        ref_logps=ref_logps,
        sequence_ids=rows,
        num_sequences=2 * num_pairs,
        group_ids=torch.arange(num_pairs).repeat(2),  # TRL's batch: all chosen, then all rejected
        num_groups=num_pairs,
        is_chosen=torch.arange(2 * num_pairs) < num_pairs,
    )
    ours = get_objective("dpo", loss=loss, **options)(tokens).total / num_pairs
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_same_gradient(ours, theirs, model)


@pytest.mark.parametrize(
    ("name", "options", "theirs_options"),
    [
        ("grpo", {"clip_low": 0.1, "clip_high": 0.3}, {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.3}),
        ("grpo", {"kl_weight": 0.2}, {"loss_type": "grpo"}),
        ("grpo", {"ratio": "sequence"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
        ("ppo", {"kl_weight": 0.2}, {"loss_type": "bnpo"}),  # a mean over the tokens of the batch
    ],
)
def test_the_loss_and_gradient_of_the_grpo_trainer(name, options, theirs_options, tmp_path):
    trainer = trl.GRPOTrainer(
        model=make_model(0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings_of(trl.GRPOConfig, tmp_path, num_generations=3, use_bias_correction_kl=False, **theirs_options),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=blank_tokenizer(),
    )
    trainer.beta = options.get("kl_weight", 0.0)  # given earlier, it would load a reference by the model's name
    model = trainer.model.eval()  # its normalisation in training depends on the accumulation steps of a running loop
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (torch.randint(len(blank_tokenizer()), (3, n), generator=generator) for n in (2, 5))
    completion_mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    input_ids = torch.cat([prompts, completions], 1)
    attention_mask = torch.cat([torch.ones_like(prompts), completion_mask.long()], 1)
    supervised = torch.cat([torch.zeros_like(prompts), completion_mask.long()], 1)
    logps, rows = logps_of(model, input_ids, attention_mask, supervised)

    def around(logps: torch.Tensor) -> torch.Tensor:
        return logps.detach() + 0.4 * torch.randn(logps.shape, generator=generator)

    old_logps, ref_logps, advantages = around(logps), around(logps), torch.tensor([1.0, -2.0, 0.5])
    padded = [torch.zeros(completion_mask.shape).masked_scatter(completion_mask, x) for x in (old_logps, ref_logps)]
    theirs = trainer._compute_loss(
        model,
        {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": completions,
            "completion_mask": completion_mask.long(),
            "advantages": advantages,
            "old_per_token_logps": padded[0],
            "ref_per_token_logps": padded[1],
        },
    )
    tokens = TokenBatch(
        logps=logps,
        old_logps=old_logps,
        ref_logps=ref_logps,
        advantages=advantages,
        sequence_ids=rows,
        num_sequences=3,
    )
    objective = get_objective(name, **options)
    ours = objective(tokens).total / (len(logps) if objective.unit == "token" else 3)
    assert objective(tokens).metrics["clipped_share"] > 0 or "ratio" in options
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_same_gradient(ours, theirs, model)
