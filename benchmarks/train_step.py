"""A whole training run against TRL's SFTTrainer with its dft loss: real tokens a second, and peak memory.

    python benchmarks/train_step.py                  # large and small, some minutes on two cores
    python benchmarks/train_step.py --steps 4 --only large
    python benchmarks/train_step.py --device cuda    # 1.5b: tokens/s, MFU and peak memory on a GPU

Same random Qwen2, same examples, same tokens a step, packing on both sides, each side in its own process. Lengths are
log-normal with a median of about 150; 20 to 50 % of each is prompt, which is not trained on. Real tokens only: padding
counts for nobody. Memory above the model at rest: the peak resident set, on a GPU the peak that the allocator gave out.
MFU is dftune's (docs/run-folder.md) on both sides, and shown where the device's peak is known. TRL is an extra
(`pip install 'dftune[trl]'`). It attends with flash-attn where that is installed on a GPU, else with sdpa. Settings:

    large   4 layers, 256 wide, vocabulary 151,936, float32, no recompute
    small   4 layers, 256 wide, vocabulary 4,096, bfloat16 autocast, recompute (gradient checkpointing) on
    1.5b    Qwen2.5-1.5B's shapes, bfloat16 autocast, no recompute, 8,192 packed tokens a step
    tiny    for trying the benchmark out, on any device
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    vocab: int
    bf16: bool
    recompute: bool = False
    hidden: int = 256
    intermediate: int = 704
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    max_length: int = 512
    rows: int = 8
    """Of max_length tokens, a step."""
    mean_length: int = 190
    """Of an example, about; decides how many there are."""

    @property
    def tokens_a_step(self) -> int:
        return self.rows * self.max_length


SETTINGS = {
    "large": Setting(vocab=151_936, bf16=False),
    "small": Setting(vocab=4_096, bf16=True, recompute=True),
    "1.5b": Setting(
        vocab=151_936, bf16=True, hidden=1536, intermediate=8960, layers=28, heads=12, max_length=2048, rows=4
    ),
    "tiny": Setting(vocab=512, bf16=True, hidden=64, intermediate=96, layers=2, max_length=64, rows=4, mean_length=55),
}
DEFAULT = {"cpu": ["large", "small"], "cuda": ["1.5b"]}


def make_examples(num: int, setting: Setting) -> list[dict[str, Any]]:
    """Random examples as token ids and completion masks."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num):
        length = int(np.clip(rng.lognormal(np.log(150), 0.7), 16, setting.max_length))
        prompt = int(length * rng.uniform(0.2, 0.5))
        mask = [0] * prompt + [1] * (length - prompt)
        rows.append({"input_ids": rng.integers(3, setting.vocab, length).tolist(), "completion_mask": mask})
    return rows


def make_model(setting: Setting, implementation: str) -> Any:
    """The same random weights on both sides."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=setting.vocab,
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM._from_config(config, attn_implementation=implementation)


class PeakMemory:
    """Peak memory above what it is at the start: of the GPU's allocator, or the resident set, sampled every 5 ms."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"

    def __enter__(self) -> "PeakMemory":
        if self.on_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        self.start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.on_cuda:
            import torch

            self.peak = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._thread.join()
        self.mib = (self.peak - self.start) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def now(device: str) -> tuple[float, float]:
    """Wall and CPU seconds, when the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def run_ours(setting: Setting, device: str, examples: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Our training step over the examples, with the metrics that are always logged."""
    import numpy as np
    import torch

    from dftune.data.batches import Example, micro_batches
    from dftune.objectives import get_objective
    from dftune.ops.attention import register
    from dftune.train.config import OptimizerConfig
    from dftune.train.metrics import token_metrics
    from dftune.train.model import ScoredModel
    from dftune.train.optim import make_optimizer
    from dftune.train.step import train_step

    model = make_model(setting, register()).to(device)
    if setting.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scored = ScoredModel(model, torch.bfloat16 if setting.bf16 else torch.float32).train()
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-5))
    rows = [
        Example(str(i), np.array(row["input_ids"], np.int32), np.array(row["completion_mask"], bool))
        for i, row in enumerate(examples)
    ]
    share = len(rows) / (steps + 1)  # the first step warms up
    objective, started, tokens = get_objective("dynamic_ft"), (0.0, 0.0), 0
    with PeakMemory(device) as memory:
        for step in range(steps + 1):
            if step == 1:
                started = now(device)
            chosen = rows[round(step * share) : round((step + 1) * share)]
            batches = [
                batch.to(torch.device(device)) for batch in micro_batches(chosen, max_tokens=setting.tokens_a_step)
            ]
            result = train_step(scored, optimizer, objective, batches, lr=1e-5, max_grad_norm=1.0)
            token_metrics(result, end_token_id=0)
            tokens += sum(batch.num_tokens for batch in batches) if step else 0
    return summary(scored, device, tokens, started, memory.mib)


def run_trl(setting: Setting, device: str, examples: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """TRL's SFTTrainer with loss_type dft, packing best-fit decreasing."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from dftune.train.model import ScoredModel

    words = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1, "<eos>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    marks: dict[str, tuple[float, float]] = {}
    seen = {"tokens": 0}

    class Meter(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 1:
                marks["started"] = now(device)

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            loss_type="dft",
            packing=True,
            packing_strategy="bfd",
            max_length=setting.max_length,
            per_device_train_batch_size=setting.rows,
            max_steps=steps + 1,
            learning_rate=1e-5,
            use_cpu=device == "cpu",
            bf16=setting.bf16,
            gradient_checkpointing=setting.recompute,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
        model = make_model(setting, "flash_attention_2" if flash else "sdpa").to(device)
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            callbacks=[Meter()],
        )
        inner = trainer.data_collator

        def count(rows: list[dict[str, Any]]) -> Any:
            seen["tokens"] += sum(len(row["input_ids"]) for row in rows) if "started" in marks else 0
            return inner(rows)

        trainer.data_collator = count
        with PeakMemory(device) as memory:
            trainer.train()
    scored = ScoredModel(model, torch.bfloat16 if setting.bf16 else torch.float32)
    return summary(scored, device, seen["tokens"], marks["started"], memory.mib)


def summary(scored: Any, device: str, tokens: int, started: tuple[float, float], mib: float) -> dict[str, float]:
    """Real tokens a second of wall and of CPU time, MFU (0 where it is not known), and memory."""
    import torch

    from dftune.train.metrics import model_flops_utilisation

    wall, cpu = (end - start for end, start in zip(now(device), started, strict=True))
    return {
        "tokens_per_s": tokens / wall,
        "tokens_per_cpu_s": tokens / cpu,
        "mfu": model_flops_utilisation(scored, tokens / wall, torch.device(device)) or 0.0,
        "extra_memory_mib": mib,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": tokens,
    }


def child(side: str, name: str, device: str, steps: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, name, "--device", device, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, device: str, steps: int, rounds: int) -> None:
    """Print the rows of one setting: each side's medians, and their ratios."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in ("trl", "ours")}
    for _ in range(rounds):
        for side, rows in found.items():
            rows.append(child(side, name, device, steps))
    middle = {
        side: {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]} for side, rows in found.items()
    }
    for side, row in middle.items():
        speeds = f"{row['tokens_per_s']:,.0f} | {row['tokens_per_cpu_s']:,.0f}"
        mfu = f"{100 * row['mfu']:.1f} %" if row["mfu"] else ""
        print(f"| {name} | {side} | {speeds} | {mfu} | {row['extra_memory_mib']:,.0f} |")
    ratios = {key: middle["ours"][key] / middle["trl"][key] for key in ("tokens_per_s", "tokens_per_cpu_s")}
    memory = middle["ours"]["extra_memory_mib"] / max(middle["trl"]["extra_memory_mib"], 1e-9)
    print(
        f"| {name} | ours / trl | {ratios['tokens_per_s']:.2f} | {ratios['tokens_per_cpu_s']:.2f} | | {memory:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after one that is not (default 8)")
    parser.add_argument("--only", choices=SETTINGS, help="one setting")
    parser.add_argument("--rounds", type=int, default=2, help="each side so many times, in turn; medians are printed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, name = arguments.child
        setting = SETTINGS[name]
        num = round((arguments.steps + 1) * setting.tokens_a_step / setting.mean_length)
        examples = make_examples(num, setting)
        run = {"ours": run_ours, "trl": run_trl}[side]
        print(json.dumps(run(setting, arguments.device, examples, arguments.steps)))
        return
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device")
        print(torch.cuda.get_device_name())
    if not importlib.util.find_spec("trl"):
        parser.error("TRL is what this compares with, and is not installed: pip install 'dftune[trl]'")
    print(
        "| setting | side | tokens/s | tokens per CPU second | MFU | extra memory, MiB |\n|---|---|---:|---:|---:|---:|"
    )
    for name in [arguments.only] if arguments.only else DEFAULT[arguments.device]:
        compare(name, arguments.device, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
