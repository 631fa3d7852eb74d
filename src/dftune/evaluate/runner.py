"""From a model to graded completions on disk (docs/evaluation.md, docs/run-folder.md)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.data.prompts import FORMATS, PromptFormat, get_format
from dftune.data.tokenizer import tokenizer_fingerprint
from dftune.environment import describe_environment, model_fingerprint
from dftune.evaluate.benchmarks import Benchmark, Problem, load_benchmark
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.grade import GRADER_VERSION, grade
from dftune.evaluate.locate import locate, plan
from dftune.evaluate.results import EvalSummary, Results, Row, summarize
from dftune.files import check_name, read_json, write_json
from dftune.generate.base import Completion, Request, Sampling
from dftune.generate.load import choose_device, choose_dtype, find_model, load_engine, load_tokenizer
from dftune.progress import Progress

if TYPE_CHECKING:
    from dftune.generate.local import LocalEngine

PROTOCOLS = ("greedy", "sample")
_SECONDS_BETWEEN_SAVES = 10.0


def evaluate(
    model_path: str,
    benchmarks: Sequence[str],
    config: EvaluateConfig,
    output: Path,
    *,
    step: int,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], None] | None = None,
) -> list[EvalSummary]:
    """Complete and grade benchmarks with a model, and write ``output/evals/step-N/BENCHMARK.PROTOCOL.json(l)``.

    Completions are saved as they are finished. Called again with the same settings it makes only those that are
    missing, so a killed evaluation continues; one that is complete is only summed up again.

    Args:
        model_path: folder of a Hugging Face checkpoint, or a model id of the hub.
        benchmarks: what `load_benchmark` reads.
        config: protocol, sampling, prompt format; its own list of benchmarks is not looked at.
        output: a run folder. One without ``manifest.json`` gets one of kind ``evaluate``.
        step: optimizer steps of the model, which names the folder of the results.
        overwrite: throw away results that are there already.
        device: ``auto``, ``cpu``, ``cuda``...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 on the CPU.
        say: told what a user should know; default, print to stderr.

    Raises:
        ValueError: the model, a benchmark or the settings are wrong, or results of other settings are there.
    """
    say = say or _say
    sampled = check_protocol(config)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    loaded = _load_all(benchmarks)
    folder = find_model(model_path)
    tokenizer = load_tokenizer(folder)
    trained = trained_format(folder)
    prompt_format = choose_format(config, trained, tokenizer, say)
    model = {"path": model_path, "fingerprint": model_fingerprint(folder)}
    shared = {
        "protocol": config.protocol,
        "num_samples": config.num_samples,
        "model": model_path,
        "model_fingerprint": model["fingerprint"],
        "step": step,
        "prompt_format": _named(prompt_format),
        "trained_prompt_format": trained,
        "sampling": {**sampled, "stop": list(prompt_format.stop)},
        "grader": GRADER_VERSION,
        "engine": "local",
        "precision": dtype,
    }
    check_output(output, folder, model["fingerprint"])
    jobs = [_Job.of(benchmark, shared, output / "evals" / f"step-{step}") for benchmark in loaded]
    for job in jobs:  # all of them before any work, so that a conflict does not appear after an hour
        if overwrite:
            job.results.delete()
        job.results.open(job.settings, _graded)
    begin_output(output, model, folder, tokenizer, device, prompt_format=_named(prompt_format))

    engine: LocalEngine | None = None
    for job in jobs:
        requests = _missing(job, prompt_format, tokenizer)
        if requests:
            engine = engine or load_engine(folder, device=device, dtype=dtype, batch_size=config.batch_size)
            ends = engine.end_token_ids | {prompt_format.end_token_id(tokenizer)}
            sampling = Sampling(**sampled, stop=prompt_format.stop, end_token_ids=ends)
            job.generate(engine, requests, sampling, prompt_format)
        job.results.finish([problem.id for problem in job.benchmark.rows])
    return [summarize(job.results, job.tokens_per_s) for job in jobs]


def evaluate_run(run: Path, config: EvaluateConfig, **options: Any) -> list[EvalSummary]:
    """Run the benchmarks of ``config`` on the final model of a training run; results go into the run's folder.

    Args:
        run: the run folder.
        config: the ``evaluate`` section of a recipe.
        options: as for `evaluate`.
    """
    (final,) = plan(str(run))
    return evaluate(final.model, config.benchmarks, config, final.output, step=final.step, **options)


def check_protocol(config: EvaluateConfig) -> dict[str, Any]:
    """The sampling parameters that a protocol stands for; greedy decoding has no use for a seed, so its is always 0.

    Raises:
        ValueError: there is no such protocol, or the other settings contradict it.
    """
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"protocol {config.protocol!r} is not known; use one of: {', '.join(PROTOCOLS)}.")
    if config.protocol == "greedy":
        if config.num_samples != 1:
            raise ValueError(
                f"protocol greedy makes the same completion every time, so num_samples {config.num_samples} would "
                "repeat it. Use --protocol sample for several, or --num-samples 1."
            )
        return {"temperature": 0.0, "top_p": 1.0, "max_tokens": config.max_tokens, "seed": 0}
    if config.temperature == 0:
        raise ValueError("protocol sample needs a temperature above 0; at 0 use --protocol greedy.")
    shared = {"top_p": config.top_p, "max_tokens": config.max_tokens, "seed": config.seed}
    return {"temperature": config.temperature, **shared}


def trained_format(folder: Path) -> dict[str, str] | None:
    """Name and fingerprint of the prompt format that a model was trained with, or None where that is not known."""
    run, _ = locate(folder)
    return None if run is None else read_json(run / "manifest.json").get("prompt_format")


def choose_format(
    config: EvaluateConfig, trained: dict[str, str] | None, tokenizer: Any, say: Callable[[str], None]
) -> PromptFormat:
    """The format asked for, else the one trained with, else the tokenizer's chat template, else ``plain``."""
    name = config.prompt_format or (trained and trained["name"]) or ("chat" if tokenizer.chat_template else None)
    if name is None:
        say(
            "Note: it is not known how this model was trained, and its tokenizer has no chat template, so prompts are "
            f"the bare problem (prompt format plain). --prompt-format chooses another: {', '.join(FORMATS)}."
        )
        name = "plain"
    prompt_format = get_format(name, tokenizer)
    if trained is not None and trained["fingerprint"] != prompt_format.fingerprint:
        say(
            f"Warning: prompts are rendered as {prompt_format.name}, and the model was trained on {trained['name']} "
            f"({prompt_format.fingerprint} against {trained['fingerprint']}). Part of any difference is due to that."
        )
    return prompt_format


@dataclass
class _Job:
    """One benchmark under one protocol."""

    benchmark: Benchmark
    results: Results
    settings: dict[str, Any]
    tokens_per_s: float | None = field(default=None, init=False)

    @classmethod
    def of(cls, benchmark: Benchmark, shared: Mapping[str, Any], folder: Path) -> _Job:
        """The job of one benchmark, given the settings that all have in common and the folder of their results."""
        settings = {
            "benchmark": benchmark.name,
            "benchmark_path": benchmark.path,
            "benchmark_fingerprint": benchmark.fingerprint,
            "num_problems": len(benchmark.rows),
            **shared,
        }
        return cls(benchmark, Results(folder, benchmark.name, shared["protocol"]), settings)

    def generate(
        self, engine: LocalEngine, requests: Sequence[Request], sampling: Sampling, prompt_format: PromptFormat
    ) -> None:
        """Make the missing completions; grade and save each as it comes."""
        problems = {problem.id: problem for problem in self.benchmark.rows}
        num_done = len(self.results.rows)
        title = f"{self.benchmark.name} {self.settings['protocol']}"
        clock = _Clock()

        with Progress(title, num_done + len(requests), done=num_done) as progress:

            def save(completions: Sequence[Completion]) -> None:
                with clock.paused():  # grading is not generation
                    self.results.append([_row(problems[done.id], done, prompt_format) for done in completions])
                self.tokens_per_s = clock.count(sum(done.num_tokens for done in completions))
                progress.update(len(self.results.rows), f"{self.tokens_per_s:,.0f} tokens/s")
                if clock.untaken_s >= _SECONDS_BETWEEN_SAVES:
                    self.results.add_seconds(clock.take())

            try:
                engine.generate(requests, sampling, save)
            finally:
                self.results.add_seconds(clock.take())


class _Clock:
    """Time spent on generation, and tokens made in it."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._seconds, self._taken, self._tokens = 0.0, 0.0, 0

    def _tick(self) -> float:
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        return self._seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out."""
        self._tick()
        try:
            yield
        finally:
            self._since = time.monotonic()

    def count(self, tokens: int) -> float:
        """Add tokens; returns tokens a second so far."""
        self._tokens += tokens
        return self._tokens / max(self._tick(), 1e-9)

    @property
    def untaken_s(self) -> float:
        """Seconds since the last `take`."""
        return self._tick() - self._taken

    def take(self) -> float:
        """Seconds since the last call, to be written down."""
        seconds = self.untaken_s
        self._taken = self._seconds
        return seconds


def _load_all(specs: Sequence[str]) -> list[Benchmark]:
    if not specs:
        raise ValueError(
            "There is no benchmark to run. Give --benchmarks PATH ... (or evaluate.benchmarks in the recipe)."
        )
    loaded = [load_benchmark(spec) for spec in specs]
    by_name: dict[str, Benchmark] = {}
    for benchmark in loaded:
        if (other := by_name.setdefault(benchmark.name, benchmark)) is not benchmark:
            raise ValueError(
                f"{other.path} and {benchmark.path} are both called {benchmark.name!r}, and their results would go "
                "to one file. Rename one, or evaluate them into different --output folders."
            )
    return loaded


def _missing(job: _Job, prompt_format: PromptFormat, tokenizer: Any) -> list[Request]:
    requests = []
    for problem in job.benchmark.rows:
        samples = [index for index in range(job.settings["num_samples"]) if (problem.id, index) not in job.results.rows]
        prompt = tuple(prompt_format.encode_prompt(tokenizer, problem.problem)) if samples else ()
        requests += [Request(problem.id, prompt, index) for index in samples]
    return requests


def _row(problem: Problem, done: Completion, prompt_format: PromptFormat) -> Row:
    return _graded(
        {
            "id": problem.id,
            "sample": done.sample,
            "problem": problem.problem,
            "target": problem.target,
            "prompt": prompt_format.render(problem.problem),
            "completion": done.text,
            "finish_reason": done.finish_reason,
            "num_tokens": done.num_tokens,
            **problem.extra,
        }
    )


def _graded(row: Row) -> Row:
    verdict = grade(row["target"], row["completion"])
    found = {key: getattr(verdict, key) for key in ("answer", "verdict", "rule", "stage", "reason")}
    return {**row, **found}


def _named(prompt_format: PromptFormat) -> dict[str, str]:
    return {"name": prompt_format.name, "fingerprint": prompt_format.fingerprint}


def check_output(output: Path, folder: Path, fingerprint: str) -> None:
    """Refuse a run folder that holds the evaluations of another model.

    Raises:
        ValueError: it does; says of which.
    """
    if not (output / "manifest.json").is_file():
        return
    manifest = read_json(output / "manifest.json")
    run, _ = locate(folder)
    if manifest.get("kind") == "train":
        same = run is not None and run.resolve() == output.resolve()
        owner = f"the run {manifest.get('name')}"
    else:
        same = manifest["model"]["fingerprint"] == fingerprint
        owner = f"evaluations of {manifest['model']['path']} (fingerprint {manifest['model']['fingerprint']})"
    if not same:
        raise ValueError(
            f"{output} holds {owner}; {folder} (fingerprint {fingerprint}) is another model. Choose another --output."
        )


def begin_output(
    output: Path,
    model: Mapping[str, Any],
    folder: Path,
    tokenizer: Any,
    device: str,
    *,
    prompt_format: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest of a run folder of kind ``evaluate``, unless ``output`` has a manifest.

    Args:
        output: the run folder.
        model: ``path`` and ``fingerprint`` of the model.
        folder: where it lies.
        tokenizer: its tokenizer.
        device: computed on.
        prompt_format: name and fingerprint, where dftune renders the prompts.
    """
    if (output / "manifest.json").is_file():
        return
    name = check_name(output.resolve().name, "the output folder's name")
    manifest = describe_environment(device) | {
        "model": {**model, "num_parameters": num_parameters(folder)},
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "prompt_format": prompt_format,
    }
    write_json(output / "manifest.json", {"name": name, "kind": "evaluate", **manifest, "seed": None})


def num_parameters(folder: Path) -> int:
    """Numbers in the weights of a model folder, read off the headers; shared weights are stored, and counted, once."""
    from safetensors import safe_open  # noqa: PLC0415

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _say(message: str) -> None:
    print(message, file=sys.stderr)
