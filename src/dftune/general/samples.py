"""From what lm_eval logged of each question to rows of a result file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dftune.files import fingerprint

Row = dict[str, Any]
Samples = Mapping[str, Sequence[Mapping[str, Any]]]
_TARGET_CHARACTERS = 2000


def metric_keys(samples: Samples) -> list[str]:
    """``METRIC,FILTER`` of everything that was measured on the questions of every subtask, in lm_eval's order."""
    found = [
        dict.fromkeys(f"{metric},{sample['filter']}" for sample in of_task for metric in sample["metrics"])
        for of_task in samples.values()
    ]
    return [key for key in found[0] if all(key in other for other in found)] if found else []


def choose_metric(samples: Samples, wanted: str | None) -> str:
    """The ``METRIC,FILTER`` that gives the score.

    Args:
        samples: by subtask, as lm_eval logs them.
        wanted: a metric, with or without its filter; None takes the first one whose values are scores.

    Raises:
        ValueError: ``wanted`` was not measured.
    """
    keys = metric_keys(samples)
    if wanted is None:
        return next((key for key in keys if scores_of(samples, key) is not None), keys[0])
    matching = [key for key in keys if wanted in (key, key.partition(",")[0])]
    if not matching:
        raise ValueError(f"there is no metric {wanted}; this task has {', '.join(keys)}.")
    return matching[0]


def scores_of(samples: Samples, key: str) -> list[float] | None:
    """The metric of each question in order; None unless every value is a number from 0 to 1."""
    metric = key.partition(",")[0]
    values = [_number(sample.get(metric)) for _, sample in _of_filter(samples, key)]
    scores = [value for value in values if value is not None and 0 <= value <= 1]
    return scores if len(scores) == len(values) else None


def make_rows(samples: Samples, key: str, configs: Mapping[str, Any]) -> list[Row]:
    """One row a question.

    Scores that are all 0 or 1 become verdicts; others are kept as they are, with the verdict ``scored``. Values that
    are no scores (a perplexity) leave the question ``ungraded``.

    Args:
        samples: by subtask, as lm_eval logs them.
        key: ``METRIC,FILTER``.
        configs: lm_eval's configuration of each subtask.
    """
    scores = scores_of(samples, key)
    binary = scores is not None and all(score in (0, 1) for score in scores)
    rows = []
    for index, (task, sample) in enumerate(_of_filter(samples, key)):
        score = None if scores is None else scores[index]
        place = f"{task}/{sample['doc_id']}" if len(samples) > 1 else str(sample["doc_id"])
        rows.append(
            {
                "id": place,
                "sample": 0,
                **_texts(sample, key, configs.get(task) or {}),
                "finish_reason": None,
                "num_tokens": None,
                "verdict": _verdict(score, binary),
                "score": score,
                "rule": "lm_eval",
                "stage": key,
                "reason": f"{key} is {sample[key.partition(',')[0]]}",
                "metrics": {metric: _number(sample.get(metric)) for metric in sample["metrics"]},
                **({"subject": task} if len(samples) > 1 else {}),
            }
        )
    return rows


def benchmark_fingerprint(samples: Samples, key: str, num_fewshot: Mapping[str, Any]) -> str:
    """Changes with the questions, the targets, the metric or the number of examples: what makes scores comparable."""
    documents = [[task, sample["doc_hash"], sample["target_hash"]] for task, sample in _of_filter(samples, key)]
    return fingerprint(documents, key, dict(num_fewshot))


def _of_filter(samples: Samples, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The samples that went through the filter of ``METRIC,FILTER``, by subtask and question."""
    wanted = key.partition(",")[2]
    for task, of_task in samples.items():
        kept = [sample for sample in of_task if sample["filter"] == wanted]
        yield from ((task, sample) for sample in sorted(kept, key=lambda sample: sample["doc_id"]))


def _verdict(score: float | None, binary: bool) -> str:
    if score is None:
        return "ungraded"
    if not binary:
        return "scored"
    return "correct" if score == 1 else "incorrect"


def _number(value: Any) -> float | None:
    """A finite number, of Python or numpy, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _texts(sample: Mapping[str, Any], key: str, config: Mapping[str, Any]) -> Row:
    """Question, prompt, target and what the model wrote or chose."""
    asked = [(str(request[0]), str(request[1])) for request in sample["arguments"]]
    prompt = asked[0][0]
    delimiter = config.get("fewshot_delimiter") or "\n\n"
    problem = prompt.rpartition(delimiter)[2] if config.get("num_fewshot") else prompt
    shown: Row = {"problem": problem, "target": str(sample["target"])[:_TARGET_CHARACTERS], "prompt": prompt}
    if config.get("output_type") != "multiple_choice":
        raw, filtered = sample["resps"][0][0], sample["filtered_resps"][0]
        completion = raw if isinstance(raw, str) else str(filtered)
        return {**shown, "completion": completion, "answer": str(filtered)}
    # some metrics ask for every choice without the question as well; those requests come last
    asked = [request for request in asked if request[0]] or asked
    options = _options(asked, delimiter)
    logps = [float(response[0]) for response in sample["filtered_resps"]][: len(options)]
    right = sample["target"]
    if isinstance(right, int) and 0 <= right < len(options):
        shown["target"] = options[right]
    chosen = options[_likeliest(logps, [continuation for _, continuation in asked], key, config)]
    choices = [{"text": text, "logp": _number(logp)} for text, logp in zip(options, logps, strict=True)]
    return {**shown, "completion": chosen, "answer": chosen, "choices": choices}


def _options(requests: Sequence[tuple[str, str]], delimiter: str) -> list[str]:
    """What the choices differ in: the continuation, or (Winogrande) the end of the context."""
    if len({continuation for _, continuation in requests}) > 1 or len(requests) == 1:
        return [continuation.strip() for _, continuation in requests]
    return [context.rpartition(delimiter)[2] for context, _ in requests]


def _likeliest(logps: Sequence[float], continuations: Sequence[str], key: str, config: Mapping[str, Any]) -> int:
    """The chosen option: the likeliest, for ``acc_norm`` after division by its length in characters."""
    lengths = [1] * len(logps)
    if key.startswith("acc_norm,"):
        skipped = len(config.get("target_delimiter") or "")
        lengths = [max(1, len(continuation) - skipped) for continuation in continuations]
    return max(range(len(logps)), key=lambda index: logps[index] / lengths[index])
