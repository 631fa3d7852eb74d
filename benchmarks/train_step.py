"""A whole training run against TRL's SFTTrainer with its dft loss: real tokens a second, and peak memory.

    python benchmarks/train_step.py            # both settings, some minutes on two cores
    python benchmarks/train_step.py --steps 4 --only large

Same random Qwen2 (4 layers, 256 wide, tied), same examples, same tokens a step, packing on both sides, each side in its
own process. Lengths are log-normal with a median of about 150 and at most 512; 20 to 50 % of each is prompt, which is
not trained on. Real tokens only: padding counts for nobody. Memory is the peak resident set above the model at rest.
TRL is an extra (`pip install 'dftune[trl]'`); each setting:

    large   vocabulary 151,936, float32, no recompute
    small   vocabulary 4,096, bfloat16 autocast, recompute (gradient checkpointing) on
"""

import argparse
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

SETTINGS: dict[str, dict[str, Any]] = {
    "large": {"vocab": 151_936, "bf16": False, "recompute": False},
    "small": {"vocab": 4_096, "bf16": True, "recompute": True},
}
MAX_LENGTH, TOKENS_A_STEP = 512, 8 * 512


def make_examples(num: int, vocab: int) -> list[dict[str, Any]]:
    """Random examples as token ids and completion masks."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num):
        length = int(np.clip(rng.lognormal(np.log(150), 0.7), 16, MAX_LENGTH))
        prompt = int(length * rng.uniform(0.2, 0.5))
        mask = [0] * prompt + [1] * (length - prompt)
        rows.append({"input_ids": rng.integers(3, vocab, length).tolist(), "completion_mask": mask})
    return rows


def make_model(vocab: int, implementation: str) -> Any:
    """The same random weights on both sides."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=vocab, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    return Qwen2ForCausalLM._from_config(config, attn_implementation=implementation)


class PeakMemory:
    """Peak resident set above what it is at the start, sampled every 5 ms and from the kernel's own maximum."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
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


def run_ours(setting: dict[str, Any], examples: list[dict[str, Any]], steps: int) -> dict[str, float]:
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

    model = make_model(setting["vocab"], register())
    if setting["recompute"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scored = ScoredModel(model, torch.bfloat16 if setting["bf16"] else torch.float32).train()
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-5))
    rows = [
        Example(str(i), np.array(row["input_ids"], np.int32), np.array(row["completion_mask"], bool))
        for i, row in enumerate(examples)
    ]
    share = len(rows) / (steps + 1)  # the first step warms up
    objective, started, cpu, tokens = get_objective("dynamic_ft"), 0.0, 0.0, 0
    with PeakMemory() as memory:
        for step in range(steps + 1):
            if step == 1:
                started, cpu = time.perf_counter(), time.process_time()
            chosen = rows[round(step * share) : round((step + 1) * share)]
            batches = micro_batches(chosen, max_tokens=TOKENS_A_STEP)
            result = train_step(scored, optimizer, objective, batches, lr=1e-5, max_grad_norm=1.0)
            token_metrics(result, end_token_id=0)
            tokens += sum(batch.num_tokens for batch in batches) if step else 0
    return summary(tokens, started, cpu, memory.mib)


def run_trl(setting: dict[str, Any], examples: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """TRL's SFTTrainer with loss_type dft, packing best-fit decreasing, eight rows of 512 a step."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1, "<eos>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    marks: dict[str, float] = {}
    seen = {"tokens": 0}

    class Meter(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 1:
                marks["started"], marks["cpu"] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            loss_type="dft",
            packing=True,
            packing_strategy="bfd",
            max_length=MAX_LENGTH,
            per_device_train_batch_size=8,
            max_steps=steps + 1,
            learning_rate=1e-5,
            use_cpu=True,
            bf16=setting["bf16"],
            gradient_checkpointing=setting["recompute"],
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        model = make_model(setting["vocab"], "sdpa")
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
        with PeakMemory() as memory:
            trainer.train()
    return summary(seen["tokens"], marks["started"], marks["cpu"], memory.mib)


def summary(tokens: int, started: float, cpu: float, mib: float) -> dict[str, float]:
    """Real tokens a second of wall and of CPU time, and memory."""
    return {
        "tokens_per_s": tokens / (time.perf_counter() - started),
        "tokens_per_cpu_s": tokens / (time.process_time() - cpu),
        "extra_memory_mib": mib,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": tokens,
    }


def child(side: str, name: str, steps: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, name, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after one that is not (default 8)")
    parser.add_argument("--only", choices=SETTINGS, help="one setting")
    parser.add_argument("--rounds", type=int, default=2, help="each side so many times, in turn; medians are printed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, name = arguments.child
        setting = SETTINGS[name]
        # about 190 tokens an example, and some to spare so that packing does not run dry
        examples = make_examples(round((arguments.steps + 1) * TOKENS_A_STEP / 190), setting["vocab"])
        print(json.dumps({"ours": run_ours, "trl": run_trl}[side](setting, examples, arguments.steps)))
        return
    print("| setting | side | tokens/s | tokens per CPU second | extra memory, MiB |\n|---|---|---:|---:|---:|")
    for name in [arguments.only] if arguments.only else SETTINGS:
        found = {side: [] for side in ("trl", "ours")}
        for _ in range(arguments.rounds):
            for side, rows in found.items():
                rows.append(child(side, name, arguments.steps))
        best = {
            side: {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
            for side, rows in found.items()
        }
        for side, row in best.items():
            speeds = f"{row['tokens_per_s']:,.0f} | {row['tokens_per_cpu_s']:,.0f}"
            print(f"| {name} | {side} | {speeds} | {row['extra_memory_mib']:,.0f} |")
        ratios = {key: best["ours"][key] / best["trl"][key] for key in best["ours"]}
        print(
            f"| {name} | ours / trl | {ratios['tokens_per_s']:.2f} | {ratios['tokens_per_cpu_s']:.2f} | "
            f"{ratios['extra_memory_mib']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
