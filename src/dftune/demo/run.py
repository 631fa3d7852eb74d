"""The demo: the main job of dftune on an embedded default.

A tiny base model is fine-tuned with ``sft`` and with ``dynamic_ft`` on the same demonstrations in the same order, in
two regimes, two seeds each, and everything is compared in a report:

- *noisy*: demonstrations in the base model's own notation, half of them wrong;
- *new notation*: right demonstrations in a notation that the base model has never met.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dftune.config import validate
from dftune.demo.problems import Problem, corrupt, generate, restyle
from dftune.environment import available_cores
from dftune.evaluate.config import EvaluateConfig
from dftune.files import write_jsonl
from dftune.progress import Progress
from dftune.recipe import Recipe

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
        workers: processes side by side, of one thread each; None uses the cores there are, at most four.
        scale: how much of everything.
        say: receives lines for a person.

    Returns:
        The HTML report.
    """
    started = time.perf_counter()
    scale = scale or Scale()
    test = _write_data(output, scale)
    recipes = list(make_recipes(output, test, scale))
    workers = workers or min(4, available_cores())
    say(
        f"{len(recipes)} runs ({' and '.join(OBJECTIVES)}, {len(REGIMES)} regimes, {len(scale.seeds)} seeds) of a "
        f"{_size_of(BASE_MODEL):.1f} MB model on {workers} CPU {'core' if workers == 1 else 'cores'}"
    )
    for regime in REGIMES:
        say(f"  {regime.name}: {regime.why}")
    _prepare(recipes)
    jobs: list[tuple[Callable[..., None], Any]] = [(_evaluate_base, (output, test)), *((_train, r) for r in recipes)]
    pool_options: dict[str, Any] = {"initializer": _start_worker, "initargs": (output / "workers.log",)}
    with _one_thread_each(), ProcessPoolExecutor(workers, get_context("spawn"), **pool_options) as pool:
        futures = [pool.submit(function, argument) for function, argument in jobs]
        with Progress("demo", len(futures)) as progress:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress.update(done, "runs")
    return _report(output, say, time.perf_counter() - started)


def make_recipes(output: Path, test: Path, scale: Scale) -> Iterator[Recipe]:
    """The recipes of the demo's runs: one a regime, objective and seed, alike in everything else."""
    for regime in REGIMES:
        for objective in OBJECTIVES:
            for seed in scale.seeds:
                name = f"{regime.name}-{objective}-{seed}"
                own = {"name": name, "output": str(output / "runs" / name), "seed": seed}
                values = own | {"objective": {"name": objective}} | _shared(output, test, regime, scale)
                yield validate(values, Recipe, "demo")


def _shared(output: Path, test: Path, regime: Regime, scale: Scale) -> dict[str, Any]:
    return {
        "data": {
            "source": str(output / "data" / f"{regime.name}.jsonl"),
            "prompt_format": "plain",
            "max_length": 256,
            "validation": scale.num_validation,
            "prepared": str(output / "prepared" / regime.name),
        },
        "model": {"path": str(BASE_MODEL)},
        "optimizer": {"lr": regime.lr, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_ratio": 0.1},
        "train": {"epochs": 1, "batch_size": 32, "validate_every": 20, "device": "cpu", "threads": 1},
        "evaluate": {"benchmarks": [str(test)], "max_tokens": MAX_TOKENS, "batch_size": 300},
    }


def _write_data(output: Path, scale: Scale) -> Path:
    """Demonstrations of each regime and the test problems, as JSONL; returns the test file."""
    for regime in REGIMES:
        num = round(scale.share * regime.num_train) + scale.num_validation
        problems = regime.make(generate(num, seed=0, split="train"))
        write_problems(output / "data" / f"{regime.name}.jsonl", problems)
    test = output / "data" / "arithmetic.jsonl"
    write_problems(test, generate(scale.num_test, seed=0, split="test"))
    return test


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSONL that ``dftune prepare`` and ``dftune evaluate`` read."""
    write_jsonl(
        path, ({"id": p.id, "problem": p.problem, "solution": p.solution, "answer": p.answer} for p in problems)
    )


def _prepare(recipes: list[Recipe]) -> None:
    from dftune.data.prepare import prepare  # noqa: PLC0415

    for recipe in {recipe.data.prepared: recipe for recipe in recipes}.values():
        prepare(recipe)


class _one_thread_each:  # noqa: N801  (a context manager, read as a phrase)
    """Workers that are started inside compute with one thread, whatever the user's shell says."""

    def __enter__(self) -> None:
        self.before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"

    def __exit__(self, *error: object) -> None:
        if self.before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = self.before


def _start_worker(log: Path) -> None:
    """What a worker prints goes to a file: several progress lines at once would tell a person nothing."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(sink, 1)
    os.dup2(sink, 2)


def _evaluate_base(job: tuple[Path, Path]) -> None:
    from dftune.evaluate.runner import evaluate  # noqa: PLC0415

    output, test = job
    config = EvaluateConfig(max_tokens=MAX_TOKENS, batch_size=300, prompt_format="plain")
    for protocol in _protocols(config):
        evaluate(str(BASE_MODEL), [str(test)], protocol, output / "runs" / "base", step=0, device="cpu")


def _train(recipe: Recipe) -> None:
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate_run  # noqa: PLC0415
    from dftune.train.loop import train  # noqa: PLC0415

    started = (recipe.output / "recipe.yaml").is_file()
    folder = train(recipe, prepared(recipe), resume=started)
    for protocol in _protocols(recipe.evaluate):
        evaluate_run(folder.path, protocol, device="cpu")


def _protocols(config: EvaluateConfig) -> tuple[EvaluateConfig, ...]:
    """The most likely completion, and what the model says when it is sampled."""
    return config, config.model_copy(update={"protocol": "sample", "num_samples": NUM_SAMPLES})


def _report(output: Path, say: Callable[[str], None], seconds: float) -> Path:
    from dftune import report  # noqa: PLC0415

    found = report.read([output / "runs"], "sft and dynamic_ft on a tiny model")
    paths = found.write(output)
    say("\n" + found.summary())
    for note in found.notes:
        say(f"note: {note}")
    say(f"\n{seconds:.0f} s. Report: {paths.html.resolve()}")
    return paths.html


def _size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
