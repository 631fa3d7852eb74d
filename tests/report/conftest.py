"""Run folders as training and evaluation write them (docs/run-folder.md), with plausible numbers from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dftune.files import append_jsonl, fingerprint, write_json, write_jsonl, write_text

NUM_STEPS = 200
BASE_FINGERPRINT = fingerprint("base model")
PROMPT_FORMAT = {"name": "plain", "fingerprint": fingerprint("plain")}


def make_problem(index: int) -> tuple[str, str, str]:
    """Problem, solution and answer of the index-th question."""
    generator = random.Random(index)
    boxes, each, away = generator.randint(3, 12), generator.randint(4, 15), generator.randint(2, 11)
    answer = boxes * each - away
    problem = f"Tom has {boxes} boxes of {each} pens and gives away {away}. How many pens are left?"
    return problem, f"{boxes}*{each}={boxes * each}, {boxes * each}-{away}={answer}. \\boxed{{{answer}}}", str(answer)


def make_completion(index: int, skill: float, generator: random.Random) -> dict[str, Any]:
    """What a model of this skill, in [0, 1], writes to a question; questions differ in how hard they are."""
    problem, solution, answer = make_problem(index)
    hardness = random.Random(f"hardness {index}").random()
    right = generator.random() < 1 / (1 + math.exp(-6 * (skill - hardness)))
    row: dict[str, Any] = {
        "id": f"arith-{index}",
        "sample": 0,
        "problem": problem,
        "target": answer,
        "prompt": f"Question: {problem}\nAnswer: ",
        "completion": solution,
        "finish_reason": "stop",
        "num_tokens": len(solution),
        "answer": answer,
        "verdict": "correct",
        "rule": "boxed",
        "stage": "string",
        "reason": "same string",
    }
    if right:
        return row
    kind = generator.choices(["wrong", "no answer", "truncated"], [6, 2, 1 + 2 * (1 - skill)])[0]
    row |= {"verdict": "incorrect", "reason": "different numbers"}
    if kind == "wrong":
        slip = str(int(answer) + generator.choice([-10, -1, 1, 10]))
        return row | {
            "answer": slip,
            "completion": solution.replace(f"={answer}.", f"={slip}.").replace(f"{{{answer}}}", f"{{{slip}}}"),
        }
    if kind == "no answer":
        return row | {
            "answer": None,
            "completion": solution.split(" \\boxed", maxsplit=1)[0],
            "reason": "no answer found",
        }
    endless = solution.split(",", maxsplit=1)[0] + ", " + "7-2=5, " * 24
    return row | {
        "answer": None,
        "completion": endless,
        "finish_reason": "length",
        "num_tokens": 256,
        "reason": "cut off",
    }


def write_evaluation(
    run: Path,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    *,
    benchmark: str = "arith",
    protocol: str = "greedy",
    num_problems: int | None = None,
    num_samples: int = 1,
    **settings: Any,
) -> None:
    """Write completions and how they were made; ``num_problems`` larger than the rows makes the file incomplete."""
    folder = run / "evals" / f"step-{step}"
    num_problems = num_problems or len({row["id"] for row in rows})
    write_jsonl(folder / f"{benchmark}.{protocol}.jsonl", rows)
    described = {
        "benchmark": benchmark,
        "protocol": protocol,
        "benchmark_path": f"benchmarks/{benchmark}.jsonl",
        "benchmark_fingerprint": fingerprint(benchmark, num_problems),
        "num_problems": num_problems,
        "num_samples": num_samples,
        "model": str(run.name),
        "model_fingerprint": fingerprint(str(run.name), step) if step else BASE_FINGERPRINT,
        "step": step,
        "prompt_format": PROMPT_FORMAT,
        "trained_prompt_format": PROMPT_FORMAT if step else None,
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "stop": [], "seed": 0},
        "grader": "1",
        "engine": "local",
        "seconds": 12.5,
    }
    write_json(folder / f"{benchmark}.{protocol}.json", described | settings)


def make_recipe(name: str, objective: Mapping[str, Any], seed: int, **data: Any) -> dict[str, Any]:
    """A resolved recipe."""
    return {
        "name": name,
        "output": f"runs/{name}",
        "seed": seed,
        "data": {
            "source": "data/noisy.jsonl",
            "validation": 64,
            "prompt_format": "plain",
            "prepared": f"prepared/{name}",
        }
        | data,
        "model": {"path": "base", "gradient_checkpointing": False},
        "objective": dict(objective),
        "optimizer": {"lr": 0.001, "betas": [0.9, 0.95], "schedule": "cosine", "max_grad_norm": 1.0},
        "train": {"steps": NUM_STEPS, "batch_size": 32, "device": "cpu", "threads": 1},
        "evaluate": {"benchmarks": ["benchmarks/arith.jsonl"], "protocol": "greedy", "max_tokens": 256},
    }


def write_manifest(run: Path, kind: str, seed: int | None, objective: Mapping[str, Any] | None, **more: Any) -> None:
    """Write manifest.json."""
    manifest = {
        "name": run.name,
        "kind": kind,
        "dftune_version": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "command": f"dftune {kind} {run.name}",
        "started": "2026-11-20T09:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        "hardware": {"platform": "Linux", "device": "cpu", "device_name": "CPU", "num_cores": 2, "num_threads": 1},
        "seed": seed,
        "objective": objective,
        "model": {"path": "base", "num_parameters": 812_544, "fingerprint": BASE_FINGERPRINT},
        "data": {
            "fingerprint": fingerprint("data"),
            "counts": {"rows_read": 6467, "kept": 6464, "dropped": {"too long": {"count": 3, "examples": ["line 7"]}}},
            "num_train": 6400,
            "num_validation": 64,
            "tokens": {"total": {"mean": 128.1, "max": 211, "sum": 828_040}},
        },
        "tokenizer_fingerprint": fingerprint("tokenizer"),
        "prompt_format": PROMPT_FORMAT,
        "scorer": "plain",
    }
    write_json(run / "manifest.json", manifest | more)


def make_events(name: str, seed: int, num_steps: int = NUM_STEPS) -> list[dict[str, Any]]:
    """The rows of a run: NLL falls, p rises, dynamic_ft weighs unlikely tokens down."""
    generator = random.Random(f"{name} {seed}")
    dynamic = name == "dynamic_ft"
    start = 1.79e9 + 1000 * seed
    events: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "time": start, "num_steps": num_steps, "resumed": False}
    ]
    for step in range(num_steps + 1):
        fall = math.exp(-step / (60 if dynamic else 40))
        nll = (0.52 if dynamic else 0.38) + 1.1 * fall
        p_mean = (0.86 if dynamic else 0.82) - 0.45 * fall
        p_eot = 0.99 - 0.7 * fall
        seconds = start + 0.4 * step
        if step:
            noise = 1 + generator.gauss(0, 0.05)
            lr = 1e-3 * min(step / 20, 0.5 * (1 + math.cos(math.pi * max(step - 20, 0) / (num_steps - 20))))
            events.append(
                {
                    "kind": "train",
                    "step": step,
                    "time": seconds,
                    "loss": (0.2 - 0.08 * (1 - fall)) * noise if dynamic else nll * noise,
                    "nll": nll * noise,
                    "p_mean": p_mean,
                    "p_q10": p_mean / 4,
                    "p_q50": p_mean,
                    "p_q90": 0.999,
                    "weight_mean": p_mean if dynamic else 1.0,
                    "weight_q10": p_mean / 4 if dynamic else 1.0,
                    "weight_q50": p_mean if dynamic else 1.0,
                    "weight_q90": 1.0,
                    "ess": min(0.97, 0.6 + 0.35 * (1 - fall) + generator.gauss(0, 0.01)) if dynamic else 1.0,
                    "p_eot": min(1.0, p_eot + generator.gauss(0, 0.01)),
                    "grad_norm": (0.35 if dynamic else 1.2) * (0.3 + fall) * math.exp(generator.gauss(0, 0.15)),
                    "lr": lr,
                    "epoch": step * 32 / 6400,
                    "tokens": step * 4100,
                    "supervised_tokens": step * 1900,
                    "tokens_per_s": 10_000 + generator.gauss(0, 300),
                    "padding_share": 0.0,
                    "peak_memory_bytes": 640 * 2**20,
                }
            )
        if step % 50 == 0:
            events.append(
                {
                    "kind": "validation",
                    "step": step,
                    "time": seconds,
                    "num_examples": 64,
                    "num_tokens": 4000,
                    "nll": nll * 1.04,
                    "p_mean": p_mean,
                    "p_eot": p_eot,
                    "loss": nll,
                    "p_histogram": make_histogram(p_mean, polarised=dynamic and step > 0),
                }
            )
    events.append(
        {"kind": "end", "step": num_steps, "time": start + 0.4 * num_steps + 5, "status": "finished", "message": ""}
    )
    return events


def make_histogram(p_mean: float, *, polarised: bool) -> list[int]:
    """Counts of 4,000 tokens in 50 bins; ``polarised`` leaves more of them near zero."""
    sharp = 4 + 40 * max(p_mean - 0.4, 0)
    weights = [
        math.exp(-sharp * (1 - (i + 0.5) / 50)) + (0.6 if polarised else 0.15) * math.exp(-i / 3) + 0.01
        for i in range(50)
    ]
    return [round(4000 * weight / sum(weights)) for weight in weights]


def write_training_run(
    folder: Path,
    objective: str,
    seed: int,
    skill: float,
    *,
    num_questions: int = 200,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """One finished run with evaluations at steps 100 and 200."""
    run = folder / f"{objective}-seed{seed}"
    described = {"name": objective, **(options or {})}
    write_text(run / "recipe.yaml", yaml.safe_dump(make_recipe(run.name, described, seed), sort_keys=False))
    write_manifest(run, "train", seed, {"name": objective, "options": dict(options or {}), "unit": "token"})
    append_jsonl(run / "events.jsonl", make_events(objective, seed))
    for step, reached in ((NUM_STEPS // 2, 0.7), (NUM_STEPS, 1.0)):
        generator = random.Random(f"{objective} {seed} {step}")
        write_evaluation(run, step, [make_completion(i, skill * reached, generator) for i in range(num_questions)])
    return run


def write_base_run(folder: Path, *, num_questions: int = 200, skill: float = 0.05) -> Path:
    """The evaluation of the base model."""
    run = folder / "base"
    write_manifest(run, "evaluate", None, None)
    generator = random.Random("base")
    write_evaluation(run, 0, [make_completion(i, skill, generator) for i in range(num_questions)])
    return run


def write_study(folder: Path, *, num_questions: int = 200) -> Path:
    """Two objectives with two seeds each, and their base."""
    for seed, (sft, dynamic) in enumerate(((0.52, 0.68), (0.55, 0.66))):
        write_training_run(folder, "sft", seed, sft, num_questions=num_questions)
        write_training_run(folder, "dynamic_ft", seed, dynamic, num_questions=num_questions)
    write_base_run(folder, num_questions=num_questions)
    return folder


def verdict_rows(verdicts: str, **more: Any) -> list[dict[str, Any]]:
    """Completions from a string: ``1`` correct, ``0`` incorrect, ``?`` ungraded; ids q0, q1, ..."""
    words = {"1": "correct", "0": "incorrect", "?": "ungraded"}
    common = {"sample": 0, "problem": "What is 1?", "target": "1", "completion": "text", "finish_reason": "stop"}
    return [
        common | {"id": f"q{index}", "num_tokens": 3, "answer": "1", "verdict": words[mark], "reason": ""} | more
        for index, mark in enumerate(verdicts)
    ]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five run folders; tests read them and leave them as they are."""
    return write_study(tmp_path_factory.mktemp("study") / "runs")
