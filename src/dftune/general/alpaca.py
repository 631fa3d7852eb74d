"""AlpacaEval: outputs from our engine, judged by `alpaca_eval`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.data.hub import hub_reachable
from dftune.data.prompts import PromptFormat
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.jobs import plan_samplings
from dftune.evaluate.runner import choose_format
from dftune.files import fingerprint, read_json, read_jsonl, write_json
from dftune.general.judge import Judge, Judgement, JudgeOptions, read_judgement
from dftune.general.outputs import Outputs, Row
from dftune.general.subject import Subject, to_stderr
from dftune.general.summary import TaskSummary, summarize_rows
from dftune.general.tasks import ALPACA_EVAL
from dftune.generate.base import Completion, Request, Sampling
from dftune.progress import Progress

_HUB = ("tatsu-lab/alpaca_eval", "alpaca_eval.json")
_NOT_JUDGED = "not judged"
_NEXT = "Then run the same `dftune evaluate` again; or judge by hand, and run it again to read the result:"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its id, its text, and the set it is from."""

    id: str
    text: str
    dataset: str


def load_instructions(path: Path | None, limit: int | None = None) -> list[Instruction]:
    """Read instructions from a JSON or JSONL file, or AlpacaEval's own from the hub.

    Args:
        path: rows with ``instruction``, and where there is one ``dataset``; None for the hub's.
        limit: only the first ones.

    Raises:
        ValueError: the file is missing or damaged, a row has no instruction, or one stands twice.
    """
    source = path or _fetch()
    if not source.is_file():
        raise ValueError(f"--instructions {source} is not there; give a JSON or JSONL file with `instruction` a row.")
    rows = read_jsonl(source) if source.suffix == ".jsonl" else read_json(source)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: expected a list of objects with `instruction`.")
    found: dict[str, Instruction] = {}
    for index, row in enumerate(rows[:limit]):
        text = row.get("instruction") if isinstance(row, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{source}, row {index}: no `instruction` that is a text.")
        if text in found:
            raise ValueError(f"{source}, row {index}: the same instruction as row {found[text].id}. Keep one of them.")
        found[text] = Instruction(str(index), text, str(row.get("dataset") or source.stem))
    return list(found.values())


def evaluate_alpaca(
    model: str,
    config: EvaluateConfig,
    output: Path,
    *,
    step: int,
    instructions: Path | None = None,
    limit: int | None = None,
    judge: JudgeOptions | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], None] = to_stderr,
) -> TaskSummary:
    """Let a model follow AlpacaEval's instructions, and have `alpaca_eval` judge the outputs where that can be done.

    Writes ``output/evals/step-N/alpaca_eval.PROTOCOL.json(l)``, one row an instruction with the preference less one as
    its score, and ``alpaca_eval/model_outputs.json`` beside them. Completions are saved as they are finished. Where
    the judge cannot be called, the summary's advice says what to run; called again, this reads what came out.

    Args:
        model: folder of a Hugging Face checkpoint, or a model id of the hub.
        config: protocol, sampling, prompt format.
        output: a run folder.
        step: optimizer steps of the model.
        instructions: as `load_instructions` reads them.
        limit: only the first instructions.
        judge: who judges.
        overwrite: throw away results that are there.
        device: ``auto``, ``cpu``, ``cuda``...
        dtype: of the weights.
        say: told what a user should know.

    Raises:
        ValueError: the model, a setting or a file is wrong, results of other settings are there, or the judge failed.
    """
    plan, *others = plan_samplings(config)
    if others or plan.num_samples != 1:
        raise ValueError("AlpacaEval judges one output an instruction: give one protocol, greedy or avg@1.")
    sampled = dict(plan.parameters)
    asked = load_instructions(instructions, limit)
    subject = Subject(model, output, step=step, device=device, dtype=dtype, batch_size=config.batch_size)
    trained = subject.files.trained_format()
    prompt_format = choose_format(config, trained, subject.tokenizer, say)
    outputs = subject.results / ALPACA_EVAL / "model_outputs.json"
    name = f"{output.resolve().name}-step-{step}"
    court = Judge(judge or JudgeOptions(), outputs, name, len(asked))
    asked_for = fingerprint([instruction.text for instruction in asked])
    settings = {
        "benchmark": ALPACA_EVAL,
        "protocol": plan.name,
        "benchmark_path": str(instructions or "/".join(_HUB)),
        "benchmark_fingerprint": asked_for,
        "instructions": asked_for,
        "num_problems": len(asked),
        "num_samples": 1,
        **subject.settings,
        "prompt_format": {"name": prompt_format.name, "fingerprint": prompt_format.fingerprint},
        "trained_prompt_format": trained and {key: trained[key] for key in ("name", "fingerprint")},
        "sampling": {**sampled, "stop": list(prompt_format.stop)},
        "grader": _NOT_JUDGED,
    }
    results = Outputs(subject.results / f"{ALPACA_EVAL}.{plan.name}.json", settings, overwrite=overwrite)
    subject.begin()
    missing = [instruction for instruction in asked if instruction.id not in results.rows]
    if missing:
        _complete(missing, results, subject, prompt_format, sampled)
    write_json(outputs, [_output(instruction, results, name) for instruction in asked])
    made = [results.rows[instruction.id] for instruction in asked]
    results.replace(made)  # in the order of the instructions; they were saved in the order in which they ended
    return _judged(court, results, made, say)


def _fetch() -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    repository, file = _HUB
    try:
        found = hf_hub_download(repository, file, repo_type="dataset", local_files_only=not hub_reachable())
    except Exception as error:  # the hub's client has many errors
        raise ValueError(
            f"AlpacaEval's instructions could not be fetched ({repository}, {file}): "
            f"{str(error).strip().partition(chr(10))[0]} Give a local copy with --instructions FILE."
        ) from error
    return Path(found)


def _complete(
    asked: Sequence[Instruction],
    results: Outputs,
    subject: Subject,
    prompt_format: PromptFormat,
    sampled: Mapping[str, Any],
) -> None:
    """Generate what is missing; every completion is saved as it is finished."""
    by_id = {instruction.id: instruction for instruction in asked}
    requests = [
        Request(
            instruction.id,
            tuple(prompt_format.encode_prompt(subject.tokenizer, instruction.text)),
            text=prompt_format.render(instruction.text),
        )
        for instruction in asked
    ]
    ends = subject.engine.end_token_ids | {prompt_format.end_token_id(subject.tokenizer)}
    sampling = Sampling(**sampled, stop=prompt_format.stop, end_token_ids=ends)
    done_before = len(results.rows)
    started = time.monotonic()
    with Progress(f"{ALPACA_EVAL} {results.settings['protocol']}", done_before + len(asked), done=done_before) as bar:

        def save(completions: Sequence[Completion]) -> None:
            results.append([_row(by_id[done.id], done, prompt_format) for done in completions])
            bar.update(len(results.rows), "")

        try:
            subject.engine.generate(requests, sampling, save)
        finally:
            results.settings["seconds"] = round(results.settings["seconds"] + time.monotonic() - started, 3)


def _row(instruction: Instruction, done: Completion, prompt_format: PromptFormat) -> Row:
    return {
        "id": instruction.id,
        "sample": 0,
        "problem": instruction.text,
        "target": None,
        "prompt": prompt_format.render(instruction.text),
        "completion": done.text,
        "finish_reason": done.finish_reason,
        "num_tokens": done.num_tokens,
        "answer": None,
        "subject": instruction.dataset,
        **_scored(None),
    }


def _output(instruction: Instruction, results: Outputs, name: str) -> Row:
    """One output as alpaca_eval reads it."""
    return {
        "instruction": instruction.text,
        "output": results.rows[instruction.id]["completion"].strip(),
        "generator": name,
        "dataset": instruction.dataset,
        "datasplit": "eval",
    }


def _judged(judge: Judge, results: Outputs, made: Sequence[Row], say: Callable[[str], None]) -> TaskSummary:
    """Take in the judgement that is there, or else call the judge, or else say how to."""
    found = read_judgement(judge.folder, judge.name)
    advice = ""
    if found is None or not _covers(found, made):
        found = None
        if lacking := judge.lacks():
            advice = f"{ALPACA_EVAL} is not judged: {lacking}.\n{_NEXT}\n  {judge.show()}"
        else:
            say(f"{judge.annotator} judges {len(made)} outputs")
            judge.call()
            found = read_judgement(judge.folder, judge.name)
    judged: dict[str, Any] = {"grader": _NOT_JUDGED}
    if found is not None:
        judged["grader"] = f"alpaca_eval {found.version} {judge.annotator}"
        judged["judge"] = {"annotator": judge.annotator, "reference": found.reference, **found.rates}
    results.replace([{**row, **_scored(None if found is None else _key(row), found)} for row in made], judged)
    return summarize_rows(
        results.path,
        results.settings,
        metric="win rate",
        num_fewshot="0",
        reported="-" if found is None else _rates(found),
        advice=advice,
    )


def _key(row: Row) -> tuple[str, str]:
    return row["problem"], row["completion"].strip()


def _covers(found: Judgement, made: Sequence[Row]) -> bool:
    return all(_key(row) in found.preferences for row in made)


def _scored(key: tuple[str, str] | None, found: Judgement | None = None) -> Row:
    """Verdict and score of a row; without a preference it is ungraded."""
    preference = None if key is None or found is None else found.preferences.get(key)
    if preference is None:
        reason = _NOT_JUDGED if found is None else "the judge's answer could not be read"
        return {"verdict": "ungraded", "score": None, "rule": None, "stage": None, "reason": reason}
    reason = f"preference {preference:.3f}: 1 is the reference's output, 2 the model's"
    return {"verdict": "scored", "score": preference - 1, "rule": ALPACA_EVAL, "stage": "preference", "reason": reason}


def _rates(found: Judgement) -> str:
    rates = found.rates
    shown = f"{rates['win_rate']:.2f} ± {rates['standard_error']:.2f}"
    if "length_controlled_winrate" in rates:
        shown += f", length-controlled {rates['length_controlled_winrate']:.2f} ± {rates['lc_standard_error']:.2f}"
    return shown
