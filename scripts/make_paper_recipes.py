"""Write recipes/papers: one complete recipe for each row of the published tables, from the tables below.

    python scripts/make_paper_recipes.py

Sources: arXiv 2508.05629 (Dynamic Fine-Tuning) and github.com/yongliang-wu/DFT; a re-implementation,
github.com/shreyansh26/dynamic-fine-tuning; arXiv 2502.18679 (Discriminative Fine-Tuning), github.com/PenGuln/DFT; arXiv
2507.12856 (iw-SFT); github.com/nirmalpratheep/Alignment_and_Reasoning_RL, step1_sft. Where a source does not say how
something was done, the recipe's notes do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "recipes" / "papers"
BENCHMARKS = {"math500": 500, "minerva_math": 272, "olympiadbench": 675, "aime24": 30, "amc23": 40, "gsm8k": 1319}
BENCHMARKS |= {"math": 5000}
FIVE = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
NUMINA = "AI-MO/NuminaMath-CoT"
OFFLINE = "generated/numinamath-cot-offline"
METAMATH_NEGATIVES = "generated/metamathqa-mistral"


@dataclass(frozen=True)
class Model:
    """A base model: hub id, parameters, prompt formats of training and of evaluation, GPUs of 80 GB."""

    hub: str
    num_parameters: float
    trained: Any
    evaluated: str | None
    num_gpus: int
    base: tuple[float, ...] = ()
    lr: float = 5e-5


MODELS = {
    "llama-3.2-3b": Model(
        "meta-llama/Llama-3.2-3B", 3.21e9, "llama-base-boxed", None, 4, (1.63, 1.36, 1.01, 0.41, 1.56)
    ),
    "llama-3.1-8b": Model(
        "meta-llama/Llama-3.1-8B", 8.03e9, "llama-base-boxed", None, 8, (1.86, 0.98, 0.94, 0.21, 1.01)
    ),
    "deepseek-math-7b": Model(
        "deepseek-ai/deepseek-math-7b-base", 6.91e9, "deepseek-math", None, 8, (6.15, 2.15, 1.74, 0.21, 2.97)
    ),
    "qwen2.5-math-1.5b": Model(
        "Qwen/Qwen2.5-Math-1.5B", 1.54e9, "qwen25-math-cot", "qwen-boxed", 1, (31.66, 8.51, 15.88, 4.16, 19.38)
    ),
    "qwen2.5-math-7b": Model(
        "Qwen/Qwen2.5-Math-7B", 7.62e9, "qwen25-math-cot", "qwen-boxed", 8, (40.12, 14.39, 17.12, 6.68, 27.96)
    ),
}
SMALL = "qwen2.5-math-1.5b"

# Per cent on FIVE, as printed.
TABLE_1 = {
    "llama-3.2-3b": {"sft": (8.65, 2.38, 2.06, 0.00, 3.13), "dynamic_ft": (12.79, 2.84, 2.90, 0.83, 3.91)},
    "llama-3.1-8b": {"sft": (16.85, 5.78, 3.88, 0.00, 5.16), "dynamic_ft": (27.44, 8.26, 6.94, 0.41, 12.03)},
    "deepseek-math-7b": {"sft": (26.83, 7.26, 6.33, 0.41, 8.28), "dynamic_ft": (41.46, 16.79, 15.00, 1.24, 16.25)},
    "qwen2.5-math-1.5b": {"sft": (43.76, 13.04, 12.63, 1.87, 18.75), "dynamic_ft": (64.89, 20.94, 27.08, 6.87, 38.13)},
    "qwen2.5-math-7b": {"sft": (53.96, 16.66, 18.93, 2.48, 26.09), "dynamic_ft": (68.20, 30.16, 33.83, 8.56, 45.00)},
}
TABLE_2 = {
    "llama-3.2-3b": (5.13, 2.63, 1.51, 0.00, 2.03),
    "llama-3.1-8b": (18.21, 4.31, 4.31, 0.20, 7.34),
    "deepseek-math-7b": (35.32, 8.75, 11.11, 0.61, 18.28),
    "qwen2.5-math-1.5b": (59.38, 17.08, 26.82, 8.13, 40.00),
    "qwen2.5-math-7b": (70.28, 25.70, 34.46, 16.46, 51.09),
}
TABLE_3_SFT = {"sft": (43.14, 11.64, 13.41, 1.03, 14.84), "dynamic_ft": (62.50, 22.94, 26.87, 7.31, 33.75)}
TABLE_3_OFFLINE = {
    "rft": (48.23, 14.19, 22.29, 4.37, 30.78),
    "dpo": (46.89, 11.53, 22.86, 4.58, 30.16),
    "iw_sft": (60.80, 18.13, 27.83, 8.33, 44.21),
    "dynamic_ft": (64.71, 25.16, 30.93, 7.93, 48.44),
}
LEARNING_RATES = (2e-4, 1e-4, 5e-5, 1e-5)
BATCH_SIZES = (32, 64, 128, 256)
REIMPLEMENTED = {  # greedy, then the vote of 16 samples at temperature 0.2
    "sft": ((62.4, 26.4, 28.4), (69.4, 28.6, 32.0)),
    "dynamic_ft": ((63.0, 21.3, 25.3), (64.8, 21.7, 26.2)),
}
GENERAL = ("mmlu", "truthfulqa", "hellaswag", "winogrande", "gsm8k", "arc", "ifeval")
ULTRAFEEDBACK = {
    False: (61.69, 52.23, 83.95, 78.37, 48.22, 64.25, 51.20),
    True: (61.66, 54.14, 83.20, 77.82, 45.49, 64.42, 51.20),
}
METAMATH = {False: (79.15, 28.34), True: (78.77, 28.62)}
MISTRAL_CHAT = {
    "name": "mistral-handbook",
    "template": "<|user|>\n{problem}</s>\n<|assistant|>\n",
    "end_of_turn": "</s>",
}

CHECKED = "the released code checks no training row against the benchmarks; what is found here is reported and kept"
RELEASED = (
    "the released code adds up the gradients of 8 micro-batches before it clips; to follow it: "
    "train.micro_batch_size=4 train.normalization=micro_batch_mean_sum, in 8 processes"
)
TWO_FORMATS = "trained with the tokenizer's chat template and evaluated with qwen-boxed, as released"
ONE_FORMAT = "the prompt of training is not published for this model; here it is that of the evaluation"
ONE_RATE = "the released command trains Qwen2.5-Math-1.5B; its learning rate is taken for this model too"
BF16 = "the released code holds weights and optimizer in bfloat16, this one in float32"


@dataclass(frozen=True)
class Recipe:
    """A file: its name, what it is, what it needs, its sections, what was published, and what to know."""

    name: str
    title: str
    needs: str
    sections: Mapping[str, Any]
    published: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """The file."""
        head = [f"# {self.title}", f"# Needs, estimated and not measured: {self.needs}"]
        head += [f"# {remark}" for remark in self.remarks]
        head.append("# Written by scripts/make_paper_recipes.py from the published table; change it there.")
        values: dict[str, Any] = {"name": self.name, "seed": 0, **self.sections}
        if self.published:
            values["published"] = self.published
        return "\n".join(head) + "\n" + dump(values)


class _Dumper(yaml.SafeDumper):
    """Indented lists, short numbers, and numbers by name on one line each."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    shown = repr(value) if 1e-3 <= abs(value) < 1e16 or value == 0 else f"{value:g}".replace("e-0", "e-")
    return dumper.represent_scalar("tag:yaml.org,2002:float", shown)


_Dumper.add_representer(float, _float)


def dump(values: Mapping[str, Any]) -> str:
    """YAML with a blank line between sections."""
    parts = [yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=110) for key, value in values.items()]
    text = parts[0] + parts[1] + "".join(f"\n{part}" for part in parts[2:])
    return re.sub(r"!!float '([^']*)'", r"\1", text)  # 5e-5 is a number to dftune, and text to PyYAML


def needs(model: Model, train_tokens: float, steps: float, eval_tokens: float, *, sequences: int = 1) -> str:
    """GPUs and hours.

    8 FLOP a parameter and token (with recomputation) at 400 TFLOP/s a GPU and 0.3 s a step; in generation 25e12
    parameters times tokens a second and GPU.
    """
    train = 8 * model.num_parameters * train_tokens * sequences / (4e14 * model.num_gpus) + 0.3 * steps
    answers = model.num_parameters * eval_tokens / (2.5e13 * model.num_gpus)
    gib = 16 * model.num_parameters / 2**30
    gpus = f"{model.num_gpus} GPU{'' if model.num_gpus == 1 else 's'} of 80 GB"
    return (
        f"{gpus} ({gib:.0f} GiB for weights, gradients and AdamW in float32);\n# training about {_time(train)}, "
        f"evaluation about {_time(answers)} with a server on each GPU."
    )


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def scores(values: tuple[float, ...], protocol: str, names: tuple[str, ...] = FIVE) -> dict[str, float]:
    """By BENCHMARK.PROTOCOL."""
    return {f"{name}.{protocol}": value for name, value in zip(names, values, strict=True)}


def mean(values: tuple[float, ...]) -> str:
    """As the table prints it."""
    return f"{sum(values) / len(values) + 1e-9:.2f}"


# --- Dynamic FT ------------------------------------------------------------------------------------


def _math_data(key: str, **changes: Any) -> dict[str, Any]:
    return {
        "source": NUMINA,
        "limit": 100000,
        "prompt_format": MODELS[key].trained,
        "max_length": 2048,
        "decontaminate": {"action": "report"},
        "prepared": f"prepared/numinamath-cot-100k-{key}",
        **changes,
    }


def _dynamic(
    name: str,
    title: str,
    key: str,
    objective: str,
    published: dict[str, Any],
    *,
    lr: float | None = None,
    batch_size: int = 256,
    data: dict[str, Any] | None = None,
    generate: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    num_examples: int = 100_000,
) -> Recipe:
    model = MODELS[key]
    evaluate: dict[str, Any] = {"benchmarks": list(FIVE), "protocol": "avg@16", "num_samples": 16}
    evaluate |= {"temperature": 1.0, "max_tokens": 4096}
    if model.evaluated:
        evaluate["prompt_format"] = model.evaluated
    sections = {
        "data": data or _math_data(key),
        "model": {"path": model.hub, "gradient_checkpointing": True},
        "objective": _OBJECTIVES[objective],
        "optimizer": {"lr": lr or model.lr, "betas": [0.9, 0.95], "weight_decay": 0.01, **_COSINE},
        "train": {
            "epochs": 1,
            "batch_size": batch_size,
            "micro_batch_tokens": 16384,
            "precision": "bf16",
            **(train or {}),
        },
        "evaluate": evaluate,
    }
    if generate:
        sections["generate"] = generate
    if model.num_gpus > 1:
        sections["distributed"] = {"strategy": "fsdp"}
    formats = TWO_FORMATS if model.evaluated else ONE_FORMAT
    rates = [] if key == SMALL else [ONE_RATE]
    notes = [*published.pop("notes", ()), formats, *rates, RELEASED, BF16, CHECKED]
    cost = needs(
        model, num_examples * 450, num_examples / batch_size, sum(BENCHMARKS[name] for name in FIVE) * 16 * 800
    )
    return Recipe(name, title, cost, sections, {**published, "notes": notes})


_COSINE = {"max_grad_norm": 1.0, "schedule": "cosine", "warmup_ratio": 0.1}
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "rft": {"name": "sft"},
    "dynamic_ft": {"name": "dynamic_ft"},
    "iw_sft": {"name": "iw_sft", "form": "sequence", "temperature": 1.0, "w_min": 0.0, "w_max": 16.0},
    "dpo": {"name": "dpo", "loss": "sigmoid", "beta": 0.1},
}
_SPELLED = {"sft": "SFT", "dynamic_ft": "Dynamic FT", "iw_sft": "iw-SFT", "rft": "RFT", "dpo": "DPO"}
_PAPER = "arXiv:2508.05629"


def _table_row(
    table: str, key: str, objective: str, values: tuple[float, ...], setting: str = "", **more: Any
) -> Recipe:
    model, base = MODELS[key], MODELS[key].base
    row = f"{model.hub.rpartition('/')[2]}, {_SPELLED[objective]}{f', {setting}' if setting else ''}"
    parts = ["dynamic-ft", f"table{table}", key, setting.replace(" ", "-"), objective.replace("_", "-")]
    published = {
        "source": f"{_PAPER}, table {table}: {row}",
        "scores": scores(values, "avg@16"),
        "base": scores(base, "avg@16"),
        "notes": more.pop("notes", ()),
    }
    title = f"Dynamic FT, table {table}: {row}. Published average {mean(values)}, of the base {mean(base)}."
    return _dynamic("-".join(filter(None, parts)), title, key, objective, published, **more)


def dynamic_tables() -> Iterator[Recipe]:
    """Tables 1, 2 and 3, without the rows that are another's, and without PPO and GRPO."""
    iw_note = "the options of iw-SFT in this comparison are not published; these are those of its authors"
    for key, rows in TABLE_1.items():
        for objective, values in rows.items():
            yield _table_row("1", key, objective, values)
    for key, values in TABLE_2.items():
        yield _table_row("2", key, "iw_sft", values, notes=(iw_note,))
    twice = "the recipe is that of table 1, whose scores for it are others: two runs of one setting"
    for objective, values in TABLE_3_SFT.items():
        yield _table_row("3", SMALL, objective, values, "sft setting", notes=(twice,))
    for objective, values in TABLE_3_OFFLINE.items():
        yield _offline(objective, values, iw_note)


def _offline(objective: str, values: tuple[float, ...], iw_note: str) -> Recipe:
    pairs = objective == "dpo"
    file = "pairs" if pairs else "rft"
    data = _math_data(SMALL, source=f"{OFFLINE}/{file}.jsonl", prepared=f"prepared/offline-{file}-{SMALL}")
    data |= {"columns": {"negatives": "rejected"}} if pairs else {}
    if not pairs:
        del data["limit"]
    generate = {
        "folder": OFFLINE,
        "problems": {"source": NUMINA, "limit": 100000},
        "rollouts": {"num_samples": 4, "temperature": 1.0, "max_tokens": 2048},
    }
    notes = ["4 samples a problem of the base at temperature 1; README.md has the commands that make the data"]
    notes += [iw_note] if objective == "iw_sft" else []
    notes += ["neither learning rate nor beta of DPO is in the sources; these are common ones"] if pairs else []
    more = {"lr": 1e-6} if pairs else {}
    setting = "offline"
    return _table_row(
        "3",
        SMALL,
        objective,
        values,
        setting,
        data=data,
        generate=generate,
        notes=notes,
        num_examples=100_000 if pairs else 140_000,
        **more,
    )


def dynamic_figures() -> Iterator[Recipe]:
    """Figure 1, and the two grids of figure 3; their values are in pictures alone."""
    key, lost = SMALL, "the figure's values are not printed as numbers"
    for objective in ("sft", "dynamic_ft"):
        short = objective.replace("_", "-")
        published = {"source": f"{_PAPER}, figure 1: {_SPELLED[objective]}", "base": scores(MODELS[key].base, "avg@16")}
        curves = {"checkpoint_every": 10}
        title = (
            f"Dynamic FT, figure 1: accuracy along training, {_SPELLED[objective]} (evaluate RUN --all-checkpoints)."
        )
        yield _dynamic(
            f"dynamic-ft-figure1-{short}", title, key, objective, {**published, "notes": (lost,)}, train=curves
        )
        for lr, batch_size in [(lr, 256) for lr in LEARNING_RATES] + [(5e-5, size) for size in BATCH_SIZES[:-1]]:
            side = "left" if batch_size == BATCH_SIZES[-1] else "right"
            both = " and right" if (lr, batch_size) == (5e-5, BATCH_SIZES[-1]) else ""
            rate = f"{lr:g}".replace("e-0", "e-") if lr < 1e-4 else f"{lr * 1e4:g}e-4"
            what = f"learning rate {rate}, batch size {batch_size}, {_SPELLED[objective]}"
            title = f"Dynamic FT, figure 3 ({side}{both}): {what}."
            published = {"source": f"{_PAPER}, figure 3, {side}{both}: {what}", "notes": (lost,)}
            name = f"dynamic-ft-figure3-lr-{rate}-batch-{batch_size}-{short}"
            yield _dynamic(name, title, key, objective, published, lr=lr, batch_size=batch_size)


def reimplementation() -> Iterator[Recipe]:
    """The independent re-implementation, both protocols in one run."""
    model = MODELS[SMALL]
    three = FIVE[:3]
    for objective, (greedy, voted) in REIMPLEMENTED.items():
        sections = {
            "data": {
                "source": NUMINA,
                "sources": ["synthetic_amc", "synthetic_math"],
                "prompt_format": model.trained,
                "max_length": 8192,
                "validation": 46000,
                "decontaminate": {"action": "report"},
                "prepared": f"prepared/numinamath-cot-synthetic-{SMALL}",
            },
            "model": {"path": model.hub, "gradient_checkpointing": True},
            "objective": _OBJECTIVES[objective],
            "optimizer": {"lr": 5e-5, "betas": [0.9, 0.95], "weight_decay": 0.01, **_COSINE},
            "train": {"epochs": 1, "batch_size": 256, "micro_batch_tokens": 16384, "precision": "bf16"},
            "evaluate": {
                "benchmarks": list(three),
                "protocol": ["greedy", "maj@16"],
                "num_samples": 16,
                "temperature": 0.2,
                "max_tokens": 4096,
            },
        }
        published = {
            "source": f"github.com/shreyansh26/dynamic-fine-tuning, both tables: {_SPELLED[objective]}",
            "scores": scores(greedy, "greedy", three) | scores(voted, "maj@16", three),
            "notes": [
                "printed as shares with three digits; some were cut off rather than rounded",
                "held out are 20 % of the rows (random there, by a hash of their ids here)",
                "the longest completion is not published",
                "votes are counted there by text, here by classes of equal answers",
                CHECKED,
            ],
        }
        shown = "63.0, 21.3, 25.3" if objective == "dynamic_ft" else "62.4, 26.4, 28.4"
        title = (
            f"Dynamic FT re-implemented, {_SPELLED[objective]}: greedy ({shown}), and 16 samples at 0.2 with a vote."
        )
        cost = needs(model, 184_000 * 400, 184_000 / 256, sum(BENCHMARKS[name] for name in three) * 17 * 800)
        yield Recipe(f"dynamic-ft-reimplemented-{objective.replace('_', '-')}", title, cost, sections, published)


# --- Discriminative FT -----------------------------------------------------------------------------


def discriminative() -> Iterator[Recipe]:
    """Both variants, on UltraFeedback and on MetaMathQA."""
    for ref_free in (False, True):
        yield _ultrafeedback(ref_free)
        yield _metamath(ref_free)


def _variant(ref_free: bool) -> tuple[dict[str, Any], str, str]:
    options = {"ref_free": ref_free, "tau": 0.3 if ref_free else 1.0, "gamma": 0.9 if ref_free else 0.85, "u_init": 0.0}
    suffix = "-ref-free" if ref_free else ""
    called = "without a reference (the authors' DFT2)" if ref_free else "with a reference (the authors' DFT)"
    return {"name": "discriminative_ft", **options}, suffix, called


_MISTRAL = Model("mistralai/Mistral-7B-v0.1", 7.24e9, MISTRAL_CHAT, None, 8)


def _mistral_sections(objective: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {**data, "num_negatives": 2, "rotate_negatives": True, "decontaminate": {"action": "report"}},
        "model": {
            "path": _MISTRAL.hub,
            "revision": "7231864981174d9bee8c7687c24c8344414eae6b",
            "gradient_checkpointing": True,
        },
        "objective": objective,
        "optimizer": {"lr": 2e-6, "betas": [0.9, 0.999], "weight_decay": 0.0, **_COSINE},
        "train": {"epochs": 2, "batch_size": 128, "micro_batch_tokens": 16384, "precision": "bf16"},
        "distributed": {"strategy": "fsdp"},
    }


def _ultrafeedback(ref_free: bool) -> Recipe:
    objective, suffix, called = _variant(ref_free)
    data = {
        "source": "siqi00/mistral_ultrafeedback_unhelpful_chatprompt_0.7_1.0_50_320",
        "columns": {"problem": "real", "solution": "real", "negatives": "generated_"},
        "prompt_format": MISTRAL_CHAT,
        "max_length": 1024,
        "truncation": "left",
        "prepared": "prepared/ultrafeedback-mistral-negatives",
    }
    sections = _mistral_sections(objective, data)
    sections["evaluate"] = {"benchmarks": [], "max_tokens": 512}
    published = {
        "source": "arXiv:2502.18679, general language tasks; github.com/PenGuln/DFT, README",
        "scores": scores(ULTRAFEEDBACK[ref_free], "lm_eval", GENERAL),
        "notes": [
            "scored by lm_eval, after training: dftune evaluate RUN --tasks " + " ".join(GENERAL),
            "number of examples in the prompt, and the lm_eval metric of each column, are not published",
            "the released code trains on the header of the assistant's turn too, and ends turns with two end tokens",
            "from the second epoch on the released code averages moving estimates over ranks that hold stale copies",
        ],
    }
    average = sum(ULTRAFEEDBACK[ref_free]) / len(GENERAL)
    title = f"Discriminative FT on UltraFeedback, {called}. Published average over seven tasks {average:.2f}."
    cost = needs(_MISTRAL, 61_000 * 2 * 350, 61_000 * 2 / 128, 40e6, sequences=3 if ref_free else 4)
    return Recipe(f"discriminative-ft-ultrafeedback{suffix}", title, cost, sections, published)


def _metamath(ref_free: bool) -> Recipe:
    objective, suffix, called = _variant(ref_free)
    data = {
        "source": f"{METAMATH_NEGATIVES}/negatives.parquet",
        "columns": {"problem": "real", "solution": "real", "negatives": "generated_"},
        "prompt_format": "metamath",
        "max_length": 1024,
        "prepared": "prepared/metamathqa-mistral-negatives",
    }
    sections = _mistral_sections(objective, data)
    sections["generate"] = {
        "folder": METAMATH_NEGATIVES,
        "problems": {"source": "metamathqa"},
        "negatives": {"num_samples": 4, "temperature": 0.7, "top_k": 50, "max_tokens": 256},
    }
    sections["evaluate"] = {"benchmarks": ["gsm8k", "math"], "protocol": "greedy", "max_tokens": 512}
    published = {
        "source": "arXiv:2502.18679, mathematical reasoning; github.com/PenGuln/DFT, README",
        "scores": scores(METAMATH[ref_free], "greedy", ("gsm8k", "math")),
        "base": {"gsm8k.greedy": 52.2, "math.greedy": 13.1},
        "notes": [
            "no recipe for this data set is published: learning rate, epochs, tau and gamma are those of UltraFeedback",
            "negatives are sampled from the base, 256 tokens each; README.md has the command",
            "the authors' rival is SFT on the same data, MetaMath-Mistral-7B: gsm8k 77.7, math 28.2",
        ],
    }
    gsm8k, math = METAMATH[ref_free]
    title = f"Discriminative FT on MetaMathQA, {called}. Published: GSM8K {gsm8k}, MATH {math}."
    cost = needs(_MISTRAL, 395_000 * 2 * 300, 395_000 * 2 / 128, 6319 * 300, sequences=3 if ref_free else 4)
    return Recipe(f"discriminative-ft-metamathqa{suffix}", title, cost, sections, published)


# --- think and answer ------------------------------------------------------------------------------


def think_answer() -> Iterator[Recipe]:
    """The run with evaluation every 1000 steps, its search, and the best trial of that."""
    repository = "github.com/nirmalpratheep/Alignment_and_Reasoning_RL, step1_sft"
    padded = "the published run trained on padding, most of it end tokens; here every completion has one end token"
    protocol = "strict-format-original@1"
    yield _think(
        "think-answer-sft",
        "SFT on thoughts and answers, evaluated every 1000 steps. Published: 7.80 after the last step, base 2.84.",
        {"lr": 2e-5, "warmup_ratio": 0.0133},
        {"epochs": 1, "batch_size": 1, "checkpoint_every": 1000},
        {
            "source": f"{repository}: baseline and final SFT",
            "scores": {f"math.{protocol}": 7.80},
            "base": {f"math.{protocol}": 2.84},
            "notes": [
                "published after 1000, 2000, ... steps (labelled 0 to 6000): 5.48, 7.34, 6.90, 7.52, 7.92, 7.82, 7.80",
                "`dftune evaluate RUN --all-checkpoints` gives the curve; dftune counts the evaluations by their steps",
                "its table says batch 32; its code takes one example a step, as here",
                padded,
            ],
        },
        "math",
    )
    yield _think(
        "think-answer-sft-best-trial",
        "SFT on thoughts and answers, the best trial of the hyper-parameter search. Published: 3.0 on 200 problems.",
        {"lr": 7.98e-6, "warmup_ratio": 0.1},
        {"steps": 200, "batch_size": 256},
        {
            "source": f"{repository}: optimal hyperparameters, trial 1",
            "scores": {f"math.{protocol}": 3.0},
            "notes": [
                "searched: learning rate 5e-6 to 1e-4 (log), batch size 128, 256, 512 or 1024; 15 trials "
                "(think-answer-sft-search)",
                "chosen by 200 problems of the test set, on which 3 % is 6 right answers",
                "batch size had no effect in its code, which takes one example a step; here it has",
                padded,
            ],
        },
        "math:200",
    )
    yield _search()


def _think_sections(optimizer: dict[str, Any], train: dict[str, Any], benchmark: str) -> dict[str, Any]:
    return {
        "data": {
            "source": "generated/math-think-answer.jsonl",
            "prompt_format": "r1-zero",
            "max_length": 1024,
            "decontaminate": {"action": "report"},
            "prepared": f"prepared/math-think-answer-{SMALL}",
        },
        "model": {"path": MODELS[SMALL].hub, "gradient_checkpointing": True},
        "objective": {"name": "sft"},
        "optimizer": {
            **optimizer,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "max_grad_norm": None,
            "schedule": "linear",
        },
        "train": {**train, "precision": "bf16"},
        "evaluate": {
            "benchmarks": [benchmark],
            "protocol": "strict-format-original@1",
            "temperature": 1.0,
            "max_tokens": 1024,
        },
    }


def _think(  # noqa: PLR0917
    name: str, title: str, optimizer: dict[str, Any], train: dict[str, Any], published: dict[str, Any], benchmark: str
) -> Recipe:
    num_examples = train.get("steps", 0) * train["batch_size"] or 7500
    questions = int(benchmark.partition(":")[2] or BENCHMARKS["math"])
    cost = needs(
        MODELS[SMALL],
        num_examples * 400,
        num_examples / train["batch_size"],
        questions * 280 * (7 if "checkpoint_every" in train else 1),
    )
    return Recipe(name, title, cost, _think_sections(optimizer, train, benchmark), published)


def _search() -> Recipe:
    sizes, trials, steps = (128, 256, 512, 1024), 15, 200
    sweep = {
        "space": {
            "optimizer.lr": {"low": 5e-6, "high": 1e-4, "log": True},
            "train.batch_size": {"values": list(sizes)},
        },
        "sampler": "tpe",
        "seed": 42,
        "num_trials": trials,
        "prune": None,
        "select": {"metric": "accuracy"},
        "test": "best",
    }
    sections = _think_sections({"warmup_ratio": 0.1}, {"steps": steps}, "math:200")
    del sections["data"]["prepared"]  # a sweep prepares its data in its own folder
    sections["data"]["validation"] = 200
    examples = trials * steps * sum(sizes) / len(sizes)
    remarks = (
        "dftune sweep recipes/papers/think-answer-sft-search",
        "The space, the sampler, its seed and the number of trials are those of step2_hyper/step2_sft_hyper.py in",
        "github.com/nirmalpratheep/Alignment_and_Reasoning_RL, commit 8f167a6. It evaluates a trial once, so it prunes",
        "none. It chose by accuracy on 200 problems of the test set; here it is greedy answers to 200 held-out rows.",
        "Its code takes one example a step whatever the batch size; here a batch is a batch. A later version of the",
        "source searches batch sizes of 32 to 256 and weight decays of 0 to 0.1 in 20 trials, by the loss on tests.",
    )
    title = "SFT on thoughts and answers, the search. Published: 15 trials, the best 3.0 on 200 test problems."
    cost = needs(MODELS[SMALL], examples * 400, trials * steps, (trials + 1) * 200 * 280)
    return Recipe("think-answer-sft-search", title, cost, {"sweep": sweep, **sections}, remarks=remarks)


def recipes() -> Iterator[Recipe]:
    """All of them."""
    yield from dynamic_tables()
    yield from dynamic_figures()
    yield from reimplementation()
    yield from discriminative()
    yield from think_answer()


def write(folder: Path) -> None:
    """Write every recipe into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in recipes():
        (folder / f"{recipe.name}.yaml").write_text(recipe.text(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
