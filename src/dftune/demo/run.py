"""The demo: the main job of dftune on an embedded default.

A tiny base model is fine-tuned with ``sft`` and with ``dynamic_ft`` on the same demonstrations in the same order, in
two regimes, two seeds each, and everything is compared in a report:

- *noisy*: demonstrations in the base model's own notation, half of them wrong;
- *new notation*: right demonstrations in a notation that the base model has never met.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dftune.demo.problems import Problem, corrupt, generate, restyle
from dftune.files import write_jsonl
from dftune.study.config import StudyRecipe
from dftune.study.config import make_study as study_of
from dftune.study.plan import Plan

BASE_MODEL = Path(__file__).parent / "base"
OBJECTIVES = ("sft", "dynamic_ft")
MAX_TOKENS = 64
NUM_SAMPLES = 2


@dataclass(frozen=True)
class Scale:
    """How much of everything; the default is the demo, smaller ones are for trying the code out."""

    share: float = 1.0
    """Of each regime's demonstrations."""
    num_validation: int = 100
    num_test: int = 300
    seeds: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Regime:
    """What the demonstrations are like, and why it is worth seeing."""

    name: str
    why: str
    num_train: int
    lr: float
    """The same for both objectives."""
    make: Callable[[list[Problem]], list[Problem]]


REGIMES = (
    Regime(
        "noisy",
        "demonstrations in the model's own notation, half of them with one result that is ten too high",
        1920,
        3e-4,
        lambda problems: corrupt(problems, share=0.5, seed=0),
    ),
    Regime(
        "new-notation",
        "right demonstrations in a notation that the model has never met, <<7*6=42>> for 7*6=42",
        3200,
        5e-4,
        restyle,
    ),
)


def run_demo(
    output: Path, *, workers: int | None = None, scale: Scale | None = None, say: Callable[[str], None] = print
) -> Path:
    """Train, evaluate and compare; a demo that was stopped is taken up where it was.

    Args:
        output: folder for the data, the runs and the report.
        workers: processes side by side; None uses the cores there are, at most four.
        scale: how much of everything.
        say: receives lines for a person.

    Returns:
        The HTML report.

    Raises:
        ChildProcessError: a run has failed.
    """
    from dftune.study.run import run_study  # noqa: PLC0415

    started = time.perf_counter()
    scale = scale or Scale()
    recipe = make_study(output, scale)
    Plan(recipe).begin()
    _write_data(output, scale)
    size = _size_of(BASE_MODEL)
    say(f"{' and '.join(OBJECTIVES)}, {len(REGIMES)} regimes, {len(scale.seeds)} seeds, a {size:.1f} MB model")
    for regime in REGIMES:
        say(f"  {regime.name}: {regime.why}")
    outcome = run_study(recipe, workers=workers, retry_failed=True, title="sft and dynamic_ft on a tiny model", say=say)
    if not outcome.sound or outcome.report is None or outcome.html is None:
        listed = "; ".join([*outcome.failed.values(), *outcome.unequal])
        raise ChildProcessError(f"the demo could not be finished: {listed}. {output / 'logs'} says more.")
    say("\n" + outcome.report.summary())
    for note in outcome.report.notes:
        say(f"note: {note}")
    say(f"\n{time.perf_counter() - started:.0f} s. Report: {outcome.html.resolve()}")
    return outcome.html


def make_study(output: Path, scale: Scale) -> StudyRecipe:
    """The demo as a study: the objectives in each regime, alike in everything else."""
    conditions = {
        regime.name: {"data.source": str(output / "data" / f"{regime.name}.jsonl"), "optimizer.lr": regime.lr}
        for regime in REGIMES
    }
    values = {
        "name": "demo",
        "output": str(output),
        "study": {
            "objectives": [{"name": name} for name in OBJECTIVES],
            "seeds": list(scale.seeds),
            "conditions": conditions,
        },
        "data": {"prompt_format": "plain", "max_length": 256, "validation": scale.num_validation},
        "model": {"path": str(BASE_MODEL)},
        "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_ratio": 0.1},
        "train": {"epochs": 1, "batch_size": 32, "validate_every": 20, "device": "cpu", "threads": 1},
        "evaluate": {
            "benchmarks": [str(_test_file(output))],
            "protocol": ["greedy", "sample"],
            "num_samples": NUM_SAMPLES,
            "max_tokens": MAX_TOKENS,
            "batch_size": 300,
        },
    }
    return study_of(values, "demo")


def _test_file(output: Path) -> Path:
    return output / "data" / "arithmetic.jsonl"


def _write_data(output: Path, scale: Scale) -> None:
    """Demonstrations of each regime and the test problems, as JSONL."""
    for regime in REGIMES:
        num = round(scale.share * regime.num_train) + scale.num_validation
        problems = regime.make(generate(num, seed=0, split="train"))
        write_problems(output / "data" / f"{regime.name}.jsonl", problems)
    write_problems(_test_file(output), generate(scale.num_test, seed=0, split="test"))


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSONL that ``dftune prepare`` and ``dftune evaluate`` read."""
    write_jsonl(
        path, ({"id": p.id, "problem": p.problem, "solution": p.solution, "answer": p.answer} for p in problems)
    )


def _size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
