"""Completions of the training problems: sampled, graded, saved one by one, and taken up again after a kill."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dftune.data.prompts import PromptFormat, get_format
from dftune.data.tokens import TextEncoder
from dftune.evaluate.benchmarks import Problem
from dftune.evaluate.grade import GRADER_VERSION
from dftune.evaluate.jobs import Job, SamplingPlan, graded
from dftune.evaluate.locate import plan
from dftune.evaluate.models import ModelFiles, find_files
from dftune.evaluate.results import Results, Row
from dftune.evaluate.runner import make_engine
from dftune.files import read_json
from dftune.generate.base import Request
from dftune.generate.load import choose_device, choose_dtype, find_model, load_tokenizer
from dftune.generate.local import LocalEngine
from dftune.generate.problems import Problems, Prompt, read_problems, render_prompts
from dftune.generate.sets import output_folder
from dftune.recipe import Recipe

Say = Callable[[str], None]
Kind = Literal["negatives", "rollouts"]

SAMPLES = "samples"
UNKNOWN = {"answer": None, "rule": None, "verdict": "ungraded", "stage": "gold", "reason": "no reference answer"}


class SampleResults(Results):
    """``KIND.samples.json`` and ``.jsonl``; there is one of each in a folder."""

    beside = ""


@dataclass
class SampleJob(Job):
    """The completions of one stage; problems may have no reference answer, and earlier messages."""

    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    encoder: TextEncoder | None = None
    chat: bool = False

    def prompt(self, problem: Problem) -> str:
        """The rendered prompt of a problem."""
        return self.prompts[problem.id].text

    def request(self, problem: Problem, tokenizer: Any) -> Request:
        """What asks for the first completion of a problem."""
        prompt = self.prompts[problem.id]
        messages = tuple((message.role, message.content) for message in prompt.messages) if self.chat else ()
        self.encoder = self.encoder or TextEncoder(tokenizer)
        ids = tuple(self.encoder.beginnings([prompt.text])[0])
        return Request(problem.id, ids, text=prompt.text, messages=messages)

    def graded(self, row: Row) -> Row:
        """A row with its verdict: ungraded where there is nothing to compare with."""
        return graded(row) if row["target"] else {**row, **UNKNOWN}


@dataclass(frozen=True)
class Sampled:
    """The completions of one stage, all of them there.

    Attributes:
        problems: what they are completions of.
        results: the rows, in the order of problems and samples, and how they were made.
        prompt_format: that they were sampled with.
        num_samples: that were asked for; the file may hold more.
    """

    problems: Problems
    results: Results
    prompt_format: PromptFormat
    num_samples: int


def sample(
    recipe: Recipe,
    kind: Kind,
    *,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    say: Say | None = None,
) -> Sampled:
    """Complete the recipe's training problems, and write ``FOLDER/KIND.samples.jsonl`` and ``.json``.

    Every completion is a row with its verdict under a content key: model, prompt, sampling, sample. It is appended as
    it is finished; called again with the same settings, only those that are missing are made. With the model in this
    process the file has the same bytes however often it was interrupted.

    Args:
        recipe: its ``generate`` section says which problems, which model and how.
        kind: whose sampling: ``generate.negatives`` or ``generate.rollouts``.
        overwrite: throw away completions of other settings that are there.
        device: ``auto``, ``cpu``, ``cuda``...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 on the CPU.
        say: told what a user should know; default, print to stderr.

    Raises:
        ValueError: the source, the model or the settings are wrong, or completions of other settings are there.
        BusyError: another process is writing them.
        IncompleteError: the engine gave up on some completions; the others are saved, and the next call asks for these.
    """
    config, say = recipe.generate, say or _say
    settings = getattr(config, kind)
    problems = read_problems(recipe)
    files = model_of(recipe)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    tokenizer = load_tokenizer(files.folder)
    prompt_format = get_format(config.prompt_format or recipe.data.prompt_format, tokenizer)
    prompt_format.end_token_id(tokenizer)
    chat = bool(config.server) and config.chat
    results = SampleResults(output_folder(recipe), kind, SAMPLES)
    there = read_json(results.settings_path)["num_problems"] if results.settings_path.is_file() else 0
    job = SampleJob(
        problems.benchmark(kind, there),
        SamplingPlan(SAMPLES, settings.num_samples, settings.parameters, ()),
        results,
        prompt_format,
        _settings(recipe, files, prompt_format, kind, dtype),
        prompts=render_prompts(problems.at_least(there), settings.system, prompt_format, tokenizer, chat=chat),
        chat=chat,
    )
    with results.locked():
        job.open(overwrite=overwrite)
        job.results.begin()
        if job.missing():
            engine = make_engine(
                files, tokenizer, config, batch_size=config.batch_size, device=device, dtype=dtype, say=say
            )
            if isinstance(engine, LocalEngine):
                engine.stats = False  # their last digits depend on the batch, and so on where a kill came
            job.generate(engine, tokenizer)
        job.results.finish([problem.id for problem in job.benchmark.source])
    return Sampled(problems, job.results, prompt_format, settings.num_samples)


def model_of(recipe: Recipe) -> ModelFiles:
    """The files of the model to be sampled; of a run, its final one.

    Raises:
        ValueError: the recipe starts from random weights and names no other model.
    """
    named = recipe.generate.model or recipe.model.path
    if named is None:
        raise ValueError(
            "the recipe trains a new model (model.scratch), so there is nothing yet to sample. Set generate.model."
        )
    found = plan(named)[0].model
    same = recipe.generate.model is None and recipe.model.revision is not None
    return ModelFiles(found, find_model(found, recipe.model.revision)) if same else find_files(found)


def _settings(recipe: Recipe, files: ModelFiles, prompt_format: PromptFormat, kind: Kind, dtype: str) -> dict[str, Any]:
    """How completions are made, as the file beside them says it."""
    config = recipe.generate
    settings = getattr(config, kind)
    return {
        "protocol": SAMPLES,
        "num_samples": settings.num_samples,
        "protocols": [],
        "by": [],
        "model": files.named,
        "model_fingerprint": files.fingerprint(),
        "prompt_format": prompt_format.record(),
        "system": settings.system,
        "grader": GRADER_VERSION,
        "engine": "server" if config.server else "local",
        "precision": None if config.server else dtype,
        **({"chat": True} if config.server and config.chat else {}),
        "sampling": {**settings.parameters, "stop": list(prompt_format.stop)},
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr)
