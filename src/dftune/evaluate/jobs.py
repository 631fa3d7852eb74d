"""One benchmark completed under one way of sampling: which completions are missing, made, graded and saved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dftune.data.prompts import PromptFormat
from dftune.evaluate.benchmarks import Benchmark, Problem
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.grade import grade
from dftune.evaluate.protocols import GREEDY, SAMPLE, BestScored, Protocol, get_protocol, with_scores
from dftune.evaluate.results import Results, Row, reference
from dftune.evaluate.summary import EvalSummary, summarize
from dftune.files import check_name
from dftune.generate.base import Completion, Engine, Request, Sampling
from dftune.generate.client import ServerEngine
from dftune.progress import Progress

_SECONDS_BETWEEN_SAVES = 10.0
_OF_THE_ENGINE = ("mean_logp", "mean_entropy", "stop_string")


@dataclass(frozen=True)
class SamplingPlan:
    """One way of sampling, and the protocols that are read off its completions.

    Attributes:
        name: names the file of completions.
        num_samples: completions a problem.
        parameters: ``temperature``, ``top_p``, ``max_tokens`` and ``seed``.
        protocols: by which the completions are scored.
    """

    name: str
    num_samples: int
    parameters: Mapping[str, Any]
    protocols: tuple[Protocol, ...]


def plan_samplings(config: EvaluateConfig) -> list[SamplingPlan]:
    """What must be sampled for the protocols of a configuration, each way of sampling once.

    Greedy decoding has no use for a seed, so its is always 0.

    Raises:
        ValueError: there is no such protocol, or the other settings contradict it.
    """
    names = [f"avg@{config.num_samples}" if name == SAMPLE else name for name in config.protocols]
    protocols = [get_protocol(name) for name in dict.fromkeys(names)]
    greedy = tuple(protocol for protocol in protocols if not protocol.sampled)
    sampled = tuple(protocol for protocol in protocols if protocol.sampled)
    if not protocols:
        raise ValueError("There is no protocol. Give for example --protocol greedy, or avg@16 maj@16.")
    if config.num_samples != 1 and not sampled:
        raise ValueError(
            f"protocol {greedy[0].name} looks at one completion, at temperature 0, so num_samples {config.num_samples} "
            f"would repeat it. Use --protocol avg@{config.num_samples} for several, or --num-samples 1."
        )
    if sampled and config.temperature == 0:
        raise ValueError(f"protocol {sampled[0].name} needs a temperature above 0; at 0 use --protocol greedy.")
    plans = []
    if greedy:
        fixed = {"temperature": 0.0, "top_p": 1.0, "max_tokens": config.max_tokens, "seed": 0}
        plans.append(SamplingPlan(GREEDY, 1, fixed, greedy))
    if sampled:
        shared = {"top_p": config.top_p, "max_tokens": config.max_tokens, "seed": config.seed}
        num_samples = max(config.num_samples, *(protocol.num_samples for protocol in sampled))
        drawn = {"temperature": config.temperature, **shared}
        plans.append(SamplingPlan(_label(config.label), num_samples, drawn, sampled))
    return plans


def _label(label: str | None) -> str:
    if label is None:
        return SAMPLE
    if label == GREEDY or "." in label:
        raise ValueError(f"label {label!r} names the file of samples; it must hold no dot and not be {GREEDY!r}.")
    return check_name(label, "the label")


@dataclass
class Job:
    """One benchmark under one way of sampling."""

    benchmark: Benchmark
    plan: SamplingPlan
    results: Results
    prompt_format: PromptFormat
    settings: Mapping[str, Any]
    scores: Mapping[tuple[str, int], float] | None = None
    tokens_per_s: float | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        plan: SamplingPlan,
        prompt_format: PromptFormat,
        shared: Mapping[str, Any],
        folder: Path,
    ) -> Job:
        """The job of one benchmark, given the settings that all have in common and the folder of their results."""
        settings = {
            "protocol": plan.name,
            "num_samples": plan.num_samples,
            "protocols": [protocol.name for protocol in plan.protocols],
            **shared,
            "sampling": {**plan.parameters, "stop": list(prompt_format.stop)},
        }
        return cls(benchmark, plan, Results(folder, benchmark.name, plan.name), prompt_format, settings)

    def open(self, *, overwrite: bool) -> None:
        """Take up what is there; nothing is written yet.

        Raises:
            ValueError: what is there was made otherwise, or cannot be scored by a protocol.
        """
        self.results.open(self.settings, self.benchmark, self.prompt, self.graded, overwrite=overwrite)
        self._use_scores()

    def _use_scores(self) -> None:
        """Put the scores given into the rows; they stay there."""
        ranked = [protocol for protocol in self.plan.protocols if isinstance(protocol, BestScored)]
        if not ranked:
            return
        name = ranked[0].name
        if self.missing():
            raise ValueError(
                f"{name} chooses among completions that were scored, and {self.results.path} lacks "
                f"{len(self.missing())} of them. Make them first (--protocol avg@{ranked[0].num_samples}), score them, "
                "and pass the scores with --scores."
            )
        wanted = {problem.id for problem in self.benchmark.rows}
        rows = [row for row in ranked[0].used(self.results.rows.values()) if row["id"] in wanted]
        if self.scores is not None:
            self.results.replace(with_scores(rows, self.scores, "--scores"))
        elif any("reward" not in row for row in rows):
            raise ValueError(f"{name} needs --scores FILE: JSONL with id, sample and score, one line a completion.")

    def missing(self) -> list[tuple[Problem, int]]:
        """Problems and samples that are asked for and not there."""
        samples = range(self.plan.num_samples)
        return [
            (problem, sample)
            for problem in self.benchmark.rows
            for sample in samples
            if (problem.id, sample) not in self.results.rows
        ]

    def generate(self, engine: Engine, tokenizer: Any) -> None:
        """Make what is missing; grade and save each completion as it comes.

        Raises:
            IncompleteError: the engine gave some up; the others are saved.
        """
        requests = self._requests(tokenizer)
        problems = {problem.id: problem for problem in self.benchmark.rows}
        ends = engine.end_token_ids | {self.prompt_format.end_token_id(tokenizer)}
        sampling = Sampling(**self.plan.parameters, stop=self.prompt_format.stop, end_token_ids=ends)
        num_done = len(self.results.rows)
        clock = _Clock()

        with Progress(f"{self.benchmark.name} {self.plan.name}", num_done + len(requests), done=num_done) as progress:

            def save(completions: Sequence[Completion]) -> None:
                with clock.paused():  # grading is not generation
                    self.results.append([self._row(problems[done.id], done) for done in completions])
                self.tokens_per_s = clock.count(sum(done.num_tokens for done in completions))
                progress.update(len(self.results.rows), f"{self.tokens_per_s:,.0f} tokens/s")
                if clock.untaken_s >= _SECONDS_BETWEEN_SAVES:
                    self.results.add_seconds(clock.take())

            try:
                engine.generate(requests, sampling, save)
            finally:
                if isinstance(engine, ServerEngine):
                    self.results.settings["server"] = engine.describe()
                self.results.add_seconds(clock.take())

    def _requests(self, tokenizer: Any) -> list[Request]:
        first: dict[str, Request] = {}
        requests = []
        for problem, sample in self.missing():
            if problem.id not in first:
                first[problem.id] = self.request(problem, tokenizer)
            requests.append(replace(first[problem.id], sample=sample))
        return requests

    def request(self, problem: Problem, tokenizer: Any) -> Request:
        """What asks for the first completion of a problem."""
        ids = tuple(self.prompt_format.encode_prompt(tokenizer, problem.problem))
        return Request(problem.id, ids, text=self.prompt(problem))

    def prompt(self, problem: Problem) -> str:
        """The rendered prompt of a problem."""
        return self.prompt_format.render(problem.problem)

    def graded(self, row: Row) -> Row:
        """A row with its verdict."""
        return graded(row)

    def _row(self, problem: Problem, done: Completion) -> Row:
        prompt = self.prompt(problem)
        given = {name: getattr(done, name, None) for name in _OF_THE_ENGINE}
        return self.graded(
            {
                "id": problem.id,
                "sample": done.sample,
                "key": self.results.key(prompt, done.sample),
                "problem": problem.problem,
                **reference(problem),
                "prompt": prompt,
                "completion": done.text,
                "finish_reason": done.finish_reason,
                "num_tokens": done.num_tokens,
                **{name: value for name, value in given.items() if value is not None},
                **problem.extra,
            }
        )

    def finish(self, by: Sequence[str]) -> list[EvalSummary]:
        """Put the completions in order, score them by every protocol, and by those of the columns that there are."""
        by = [column for column in by if column in self.benchmark.columns]
        self.results.finish([problem.id for problem in self.benchmark.source])
        ids = [problem.id for problem in self.benchmark.rows]
        return [
            summarize(self.results, protocol, ids, by=by, tokens_per_s=self.tokens_per_s)
            for protocol in self.plan.protocols
        ]


def graded(row: Row) -> Row:
    """A row with its verdict."""
    verdict = grade(row["target"], row["completion"], tolerance=row.get("tolerance"))
    found = {key: getattr(verdict, key) for key in ("answer", "verdict", "rule", "stage", "reason")}
    return {**row, **found}


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
