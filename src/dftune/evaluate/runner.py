"""From a model to graded completions on disk (docs/evaluation.md, docs/run-folder.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dftune.data.prompts import FORMATS, PromptFormat, get_format, recorded_format
from dftune.evaluate.benchmarks import Benchmark, load_benchmark
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.grade import GRADER_VERSION, check_golds
from dftune.evaluate.jobs import Job, plan_samplings
from dftune.evaluate.locate import plan
from dftune.evaluate.models import ModelFiles, begin_output, check_output, find_files
from dftune.evaluate.protocols import BestScored, read_scores
from dftune.evaluate.summary import EvalSummary
from dftune.files import read_jsonl
from dftune.generate.base import Engine
from dftune.generate.client import load_server_engine
from dftune.generate.config import ServerConfig
from dftune.generate.load import choose_device, choose_dtype, load_engine, load_tokenizer

Say = Callable[[str], None]

_SHOWN = 5
_MESSAGE = PromptFormat("message", "{problem}", source="dftune")
"""The problem alone as the user's message, for servers that render it by their own chat template."""


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
    scores: Path | None = None,
    say: Say | None = None,
    load: Callable[..., Engine] | None = None,
) -> list[EvalSummary]:
    """Complete and grade benchmarks with a model, and write ``output/evals/step-N/BENCHMARK.SAMPLING.json(l)``.

    Completions are saved as they are finished. Called again with the same settings it makes only those that are
    missing, so a killed evaluation continues, more samples or problems are added to what is there, and another protocol
    on the same samples needs no model at all.

    Args:
        model_path: folder of a Hugging Face checkpoint or of a LoRA adapter, or a model id of the hub.
        benchmarks: what `load_benchmark` reads.
        config: protocols, sampling, prompt format; its own list of benchmarks is not looked at.
        output: a run folder. One without ``manifest.json`` gets one of kind ``evaluate``.
        step: optimizer steps of the model, which names the folder of the results.
        overwrite: throw away results that are there already.
        device: ``auto``, ``cpu``, ``cuda``...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 on the CPU.
        scores: JSONL with id, sample and score of completions that are there, for ``rm@n``.
        say: told what a user should know; default, print to stderr.
        load: called as `make_engine` is, which is the default: the servers, or the model loaded here.

    Returns:
        One summary a benchmark and protocol.

    Raises:
        ValueError: the model, a benchmark or the settings are wrong, or results of other settings are there.
        BusyError: another process is writing them.
        IncompleteError: the engine gave up on some completions; the others are saved, and the next call asks for these.
    """
    say = say or _say
    samplings = plan_samplings(config)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    loaded = _load_all(benchmarks, config.data_dir)
    _check_columns(config.by, loaded)
    ranking = _read_scores(scores, loaded, any(isinstance(one, BestScored) for s in samplings for one in s.protocols))
    files = find_files(model_path)
    tokenizer = load_tokenizer(files.folder)
    trained = files.trained_format()
    prompt_format = choose_format(config, trained, tokenizer, say)
    identity = files.fingerprint()
    shared = {
        "model": model_path,
        "model_fingerprint": identity,
        "step": step,
        "trained_prompt_format": trained and {key: trained[key] for key in ("name", "fingerprint")},
        **_settings(config, prompt_format, dtype),
    }
    check_output(output, files.place, identity)
    folder = output / "evals" / f"step-{step}"
    jobs = []
    for benchmark in loaded:
        known = shared | {"gold_problems": _check_golds(benchmark, say)}
        jobs += [Job.of(benchmark, sampling, prompt_format, known, folder) for sampling in samplings]
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(job.results.locked())
        _open(jobs, ranking, say, overwrite=overwrite)
        model = {"path": model_path, "fingerprint": identity}
        begin_output(output, model, files.folder, tokenizer, device, prompt_format=_named(prompt_format))

        if any(job.missing() for job in jobs):
            make = load or make_engine
            engine = make(files, tokenizer, config, batch_size=config.batch_size, device=device, dtype=dtype, say=say)
            for job in jobs:
                if job.missing():
                    job.generate(engine, tokenizer)
        return [summary for job in jobs for summary in job.finish(config.by)]


def _settings(config: EvaluateConfig, prompt_format: PromptFormat, dtype: str) -> dict[str, Any]:
    """What decides the completions and verdicts beside model, benchmark and sampling."""
    return {
        "prompt_format": _named(prompt_format),
        "grader": GRADER_VERSION,
        "engine": "server" if config.server else "local",
        "precision": None if config.server else dtype,
        "by": list(config.by),
        **({"chat": True} if _by_chat(config) else {}),
    }


def evaluate_run(run: Path, config: EvaluateConfig, **options: Any) -> list[EvalSummary]:
    """Run the benchmarks of ``config`` on the final model of a training run; results go into the run's folder.

    Args:
        run: the run folder.
        config: the ``evaluate`` section of a recipe.
        options: as for `evaluate`.
    """
    (final,) = plan(str(run))
    return evaluate(final.model, config.benchmarks, config, final.output, step=final.step, **options)


def choose_format(config: EvaluateConfig, trained: Mapping[str, Any] | None, tokenizer: Any, say: Say) -> PromptFormat:
    """The format asked for, else the one trained with, else the tokenizer's chat template, else ``plain``."""
    if _by_chat(config):  # what is rendered here is the user's message
        return _MESSAGE if config.prompt_format is None else get_format(config.prompt_format, tokenizer)
    if config.prompt_format is not None:
        prompt_format = get_format(config.prompt_format, tokenizer)
    elif trained is not None:
        prompt_format = recorded_format(trained, tokenizer)
    elif tokenizer.chat_template:
        prompt_format = get_format("chat", tokenizer)
    else:
        say(
            "Note: it is not known how this model was trained, and its tokenizer has no chat template, so prompts are "
            f"the bare problem (prompt format plain). --prompt-format chooses another: {', '.join(FORMATS)}."
        )
        prompt_format = FORMATS["plain"]
    if trained is not None and trained["fingerprint"] != prompt_format.fingerprint:
        say(
            f"Warning: prompts are rendered as {prompt_format.name}, and the model was trained on {trained['name']} "
            f"({prompt_format.fingerprint} against {trained['fingerprint']}). Part of any difference is due to that."
        )
    return prompt_format


def _open(jobs: Sequence[Job], ranking: Mapping[tuple[str, int], float] | None, say: Say, *, overwrite: bool) -> None:
    """Take up what is there: all of it before any work, so that a conflict does not appear after an hour."""
    for job in jobs:
        job.scores = ranking
        job.open(overwrite=overwrite)
        if job.results.was_cut:
            say(f"Warning: the last line of {job.results.path} was cut off, and does not count; it is made again.")
    for job in jobs:
        job.results.begin()


def _by_chat(config: EvaluateConfig) -> bool:
    """Whether the server's own template makes the prompt."""
    return bool(config.server) and config.chat


def make_engine(
    files: ModelFiles, tokenizer: Any, config: ServerConfig, *, batch_size: int, device: str, dtype: str, say: Say
) -> Engine:
    """The servers that were named, else the model in this process."""
    if config.server:
        return load_server_engine(config, files.named, tokenizer, folder=files.folder, say=say)
    return load_engine(files.folder, adapter=files.adapter, device=device, dtype=dtype, batch_size=batch_size)


def _load_all(specs: Sequence[str], data_dir: Path | None) -> list[Benchmark]:
    if not specs:
        raise ValueError(
            "There is no benchmark to run. Give --benchmarks NAME or PATH ... (or evaluate.benchmarks in the recipe)."
        )
    loaded = [load_benchmark(spec, data_dir) for spec in specs]
    by_name: dict[str, Benchmark] = {}
    for benchmark in loaded:
        if (other := by_name.setdefault(benchmark.name, benchmark)) is not benchmark:
            raise ValueError(
                f"{other.path} and {benchmark.path} are both called {benchmark.name!r}, and their results would go "
                "to one file. Rename one, or evaluate them into different --output folders."
            )
    return loaded


def _check_columns(columns: Sequence[str], benchmarks: Sequence[Benchmark]) -> None:
    """Every column to break scores down by must be one of at least one benchmark."""
    known = list(dict.fromkeys(column for benchmark in benchmarks for column in benchmark.columns))
    for column in columns:
        if column not in known:
            raise ValueError(
                f"--by {column}: none of the benchmarks has that column; there are {', '.join(known) or 'none'}."
            )


def _check_golds(benchmark: Benchmark, say: Say) -> list[dict[str, str]]:
    """Reference answers that the grader cannot read or does not accept from themselves; a model cannot win there."""
    found = check_golds({"id": row.id, "answer": row.target} for row in benchmark.rows)
    if found:
        ids = list(dict.fromkeys(one["id"] for one in found))
        shown = ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
        say(
            f"Warning: {len(ids)} of {len(benchmark.rows)} reference answers of {benchmark.name} cannot be graded "
            f"({shown}; the first: {found[0]['reason']}). No completion can be right there."
        )
    return found


def _read_scores(
    path: Path | None, benchmarks: Sequence[Benchmark], wanted: bool
) -> dict[tuple[str, int], float] | None:
    if path is None:
        return None
    if not wanted or len(benchmarks) > 1:
        raise ValueError(
            "--scores goes with a protocol rm@N and a single benchmark; found "
            f"{len(benchmarks)} benchmark{'s' if len(benchmarks) > 1 else ''} and {'an' if wanted else 'no'} rm@N."
        )
    if not path.is_file():
        raise ValueError(f"There is no file {path}. --scores wants JSONL with id, sample and score.")
    return read_scores(read_jsonl(path), str(path))


def _named(prompt_format: PromptFormat) -> dict[str, str]:
    return {"name": prompt_format.name, "fingerprint": prompt_format.fingerprint}


def _say(message: str) -> None:
    print(message, file=sys.stderr)
