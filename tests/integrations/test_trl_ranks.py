"""Two processes train as one does with their batches together."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.integrations.tiny import load_model, load_tokenizer

trl = pytest.importorskip("trl")

KEYS = ("loss", "grad_norm", "nll", "p_mean", "weight_mean", "ess")


def train(folder: Path, output: Path, size: int) -> list[list[float]]:
    """What three steps of four rows times two micro-batches log, and a sum over the weights that they lead to."""
    from datasets import load_dataset  # noqa: PLC0415

    from dftune.integrations.trl import ObjectiveSFTTrainer  # noqa: PLC0415

    trainer = ObjectiveSFTTrainer(
        objective="dynamic_ft",
        model=load_model(folder),
        args=trl.SFTConfig(
            output_dir=str(output),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=load_dataset(
            "json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=str(output / "cache")
        ),
        processing_class=load_tokenizer(folder),
    )
    trainer.train()
    rows = [[row[key] for key in KEYS] for row in trainer.state.log_history if "grad_norm" in row]
    return [*rows, [sum(parameter.abs().sum().item() for parameter in trainer.model.parameters())]]


def run_rank(rank: int, folder: str, output: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    own = Path(output) / str(rank)
    own.mkdir()
    found = train(Path(folder), own, size=2)
    (own / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_log_and_learn_what_one_process_does(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (str(folder), str(tmp_path), port), nprocs=2)
    first, second = (json.loads((tmp_path / str(rank) / "found.json").read_text()) for rank in (0, 1))
    alone = train(folder, tmp_path / "alone", size=4)
    for found in (first, second):
        for row, expected in zip(found, alone, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
