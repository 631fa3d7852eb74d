"""How the numbers came about: runs, versions, hardware, data, prompts, commands and recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dftune.evaluate.metrics import Spread
from dftune.report.conditions import Column
from dftune.report.load import Run, inner
from dftune.report.tables import ResultTable
from dftune.report.wording import count, duration, one_line, percent, plural, size, visible

_RATES = ("win_rate", "standard_error", "length_controlled_winrate", "lc_standard_error")
_PACKAGES = ("python", "torch", "transformers", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class RunRow:
    """One training run in a line; a value that was not recorded is an em dash."""

    name: str
    condition: str
    seed: str
    status: str
    steps: str
    epochs: str
    tokens: str
    time: str
    speed: str
    memory: str


@dataclass(frozen=True)
class Recipe:
    """The recipe of one condition, of its first seed."""

    label: str
    text: str
    seeds: str


@dataclass(frozen=True)
class Method:
    """The sections on data, and on method and reproduction: facts are names with their values."""

    runs: tuple[RunRow, ...]
    data: tuple[tuple[str, tuple[str, ...]], ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    commands: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    prompts: tuple[tuple[str, str], ...]


def build_method(table: ResultTable, runs: Sequence[Run]) -> Method:
    """Collect it from the manifests, recipes and last training rows."""
    return Method(
        runs=tuple(_run_row(run, row.label) for row in table.trained for run in row.runs),
        data=tuple((name, values) for name, values in _data_facts(table, runs) if values),
        facts=tuple((name, values) for name, values in _facts(table, runs) if values),
        commands=_unique(str(run.manifest.get("command") or "") for run in runs),
        recipes=tuple(
            Recipe(row.label, _recipe(row.runs[0]), ", ".join(str(run.seed) for run in row.runs))
            for row in table.trained
            if row.runs[0].recipe
        ),
        prompts=_prompts(table),
    )


def _run_row(run: Run, condition: str) -> RunRow:
    last = run.train[-1] if run.train else {}
    tokens, dash = last.get("tokens"), "—"
    return RunRow(
        name=one_line(run.name),
        condition=condition,
        seed=dash if run.seed is None else str(run.seed),
        status=run.status,
        steps=count(last["step"]) if last else dash,
        epochs=f"{last['epoch']:.2f}" if "epoch" in last else dash,
        tokens=count(tokens) if tokens is not None else dash,
        time=duration(run.seconds),
        speed=count(tokens / run.seconds) if tokens and run.seconds else dash,
        memory=size(last["peak_memory_bytes"]) if last.get("peak_memory_bytes") else dash,
    )


def _facts(table: ResultTable, runs: Sequence[Run]) -> Iterable[tuple[str, tuple[str, ...]]]:
    trained = [run for run in runs if run.kind == "train"]
    yield "Code", _unique(_code(run) for run in runs)
    yield "Versions", _unique(_versions(run.manifest.get("versions")) for run in runs)
    yield "Hardware", _unique(_hardware(run.manifest.get("hardware")) for run in runs)
    yield "Started from", _unique(_model(run) for run in trained)
    yield "Scorer", _unique(str(run.manifest.get("scorer") or "") for run in trained)
    yield "Precision", _unique(str(run.manifest.get("precision") or "") for run in trained)
    for column in table.whole_columns:
        settings = [one.settings for row in table.conditions for one in table.cell(row, column).evaluations]
        yield f"Evaluation on {table.name(column)}", _unique(_evaluation(one) for one in settings)
    yield "Spread between seeds", _unique(_spread(table, column) for column in table.columns)


def _data_facts(table: ResultTable, runs: Sequence[Run]) -> Iterable[tuple[str, tuple[str, ...]]]:
    trained = [run for run in runs if run.kind == "train"]
    yield "Training data", _unique(_of_source(run, _data(run.manifest.get("data"))) for run in trained)
    yield "Contamination", _unique(_of_source(run, _contamination(run.manifest.get("data"))) for run in trained)
    yield "Shown twice", _unique(table.name(column) for column in table.columns if column.without)
    yield "Prompt format", _unique(_named(run.manifest.get("prompt_format")) for run in runs)


def _of_source(run: Run, text: str) -> str:
    source = inner(run.recipe, "data", "source")
    return f"{source}: {text}" if text and source else text


def _spread(table: ResultTable, column: Column) -> str:
    """The pooled standard deviations, and over how many conditions and comparisons they were pooled."""
    spreads = table.spreads[column]
    parts = [
        f"{what} {percent(math.sqrt(spread.variance))} points ({_pooled(spread, thing)})"
        for what, spread, thing in (
            ("standard deviation", spreads.conditions, "condition"),
            ("of a difference", spreads.differences, "comparison"),
        )
        if spread is not None
    ]
    return f"{table.name(column)}: {', '.join(parts)}" if parts else ""


def _pooled(spread: Spread, thing: str) -> str:
    return f"pooled over {plural(spread.num_pooled, thing)}" if spread.num_pooled > 1 else f"one {thing}"


def _code(run: Run) -> str:
    commit = str(run.manifest.get("commit") or "")[:12]
    state = " with uncommitted changes" if run.manifest.get("dirty") else ""
    return f"dftune {run.manifest.get('dftune_version', '?')}{f', commit {commit}{state}' if commit else ''}"


def _versions(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return ""
    known = [key for name in _PACKAGES for key in versions if key.lower() == name]
    return ", ".join(f"{key} {versions[key]}" for key in known or versions)


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, Mapping):
        return ""
    cores, threads = hardware.get("num_cores"), hardware.get("num_threads")
    parts = [
        str(hardware.get("device_name") or hardware.get("device") or ""),
        plural(int(cores), "core") if cores else "",
        plural(int(threads), "thread") if threads else "",
        str(hardware.get("platform") or ""),
    ]
    return ", ".join(part for part in parts if part)


def _model(run: Run) -> str:
    num_parameters, path = inner(run.manifest, "model", "num_parameters"), inner(run.manifest, "model", "path")
    parts = [
        str(path or "random weights"),
        f"{count(num_parameters)} parameters" if num_parameters else "",
        _short(run.model_fingerprint),
    ]
    return ", ".join(part for part in parts if part)


def _data(data: Any) -> str:
    if not isinstance(data, Mapping):
        return ""
    counts = (
        (data.get("num_train"), "rows for training"),
        (data.get("num_validation"), "rows held out"),
        (inner(data, "counts", "rows_read"), "rows read"),
        *((_number(amount), f"left out: {reason}") for reason, amount in _dropped(data)),
        (inner(data, "tokens", "total", "sum"), "tokens"),
        (inner(data, "tokens", "total", "max"), "tokens in the longest"),
    )
    parts = [f"{count(amount)} {what}" for amount, what in counts if isinstance(amount, int | float)]
    return ", ".join(part for part in (*parts, _short(data.get("fingerprint"))) if part)


def _contamination(data: Any) -> str:
    """What became of training rows that are benchmark problems (docs/decontamination.md)."""
    action, benchmarks = inner(data, "contamination", "action"), inner(data, "contamination", "benchmarks")
    if action == "skip":
        return "training rows were not checked against the benchmarks"
    if not isinstance(benchmarks, Mapping) or not benchmarks:
        return ""
    found = [
        f"{count(len(own['matched']))} of {count(own['rows'])} problems of {name}"
        for name, own in benchmarks.items()
        if own["matched"]
    ]
    became = "removed from" if action == "remove" else "left in"
    checked = f"training rows were checked against {', '.join(benchmarks)}"
    return f"{checked}; {became} them: {', '.join(found)}" if found else f"{checked}; none is a problem of these"


def _dropped(data: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    dropped = inner(data, "counts", "dropped")
    return dropped.items() if isinstance(dropped, Mapping) else ()


def _number(amount: Any) -> Any:
    """A count, which may come with examples of what was dropped."""
    return amount.get("count") if isinstance(amount, Mapping) else amount


def _named(prompt_format: Any) -> str:
    if not isinstance(prompt_format, Mapping):
        return ""
    return f"{prompt_format.get('name')}, {_short(prompt_format.get('fingerprint'))}"


def _evaluation(settings: Mapping[str, Any]) -> str:
    sampling = settings.get("sampling") or {}
    shown = ", ".join(f"{key} {value}" for key, value in sampling.items() if value is not None and value != [])
    parts = [
        plural(int(settings["num_problems"]), "question"),
        plural(int(settings["num_samples"]), "sample"),
        shown,
        *_task(settings),
        f"grader {settings['grader']}" if settings.get("grader") else "",
        f"engine {settings['engine']}" if settings.get("engine") else "",
        _short(settings.get("benchmark_fingerprint")),
    ]
    return ", ".join(part for part in parts if part)


def _task(settings: Mapping[str, Any]) -> Iterable[str]:
    """What was asked of lm_eval, and AlpacaEval's own rates."""
    task, judge = settings.get("task"), settings.get("judge")
    if isinstance(task, Mapping):
        shots = sorted(set((settings.get("num_fewshot") or {}).values()))
        yield f"task {task.get('name')}"
        yield f"{' to '.join(dict.fromkeys(map(str, (shots[0], shots[-1]))))} examples" if shots else ""
        yield f"metric {settings.get('metric')}"
        yield "chat template" if task.get("chat_template") else ""
    if isinstance(judge, Mapping):
        yield from (f"{key.replace('_', ' ')} {judge[key]:.2f}" for key in _RATES if key in judge)


def _short(fingerprint: Any) -> str:
    return f"fingerprint {fingerprint}" if fingerprint else ""


def _recipe(run: Run) -> str:
    return visible(yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True, width=100))


def _prompts(table: ResultTable) -> tuple[tuple[str, str], ...]:
    """One rendered prompt a benchmark and prompt format, so that a reader sees what the models were given."""
    found: dict[tuple[str, str], str] = {}
    for column in table.whole_columns:
        for row in table.conditions:
            for one in table.cell(row, column).evaluations:
                key = (table.name(column), str(inner(one.settings, "prompt_format", "name") or "unnamed"))
                if key not in found and one.completions[0].get("prompt"):
                    found[key] = visible(str(one.completions[0]["prompt"]))[:4000]
    return tuple((f"{benchmark}, format {name}", text) for (benchmark, name), text in found.items())


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(value, 4000) for value in dict.fromkeys(values) if value)
