"""AlpacaEval's judge: how `alpaca_eval` is called, in an environment of its own, and what is read of its results."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.files import read_json

DEFAULT_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
NUM_STANDARD = 805
"""Instructions of AlpacaEval; only for them does the length-controlled rate have what it needs."""
_KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH")
_RATES = (
    "win_rate",
    "standard_error",
    "length_controlled_winrate",
    "lc_standard_error",
    "discrete_win_rate",
    "n_total",
    "avg_length",
)
_LOG_LINES = 6


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, against what.

    Attributes:
        command: the program ``alpaca_eval``; None looks for it on the path.
        annotator: name or folder of an annotator configuration; None is AlpacaEval's own judge, which needs a key of
            OpenAI's interface in the environment.
        reference: JSON file of the outputs that the model's are compared with; None is AlpacaEval's own, from the hub.
    """

    command: str | None = None
    annotator: str | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Judgement:
    """What ``alpaca_eval`` found.

    Attributes:
        rates: its line of the leaderboard, in per cent: ``win_rate`` and ``standard_error``, and where the instructions
            are AlpacaEval's ``length_controlled_winrate`` and ``lc_standard_error``.
        preferences: by instruction and output, from 1 (the reference is better) to 2 (the model is); None where the
            judge gave no answer that could be read.
        version: of ``alpaca_eval``.
        reference: name of what the model was compared with.
    """

    rates: dict[str, float]
    preferences: Mapping[tuple[str, str], float | None]
    version: str
    reference: str


class Judge:
    """``alpaca_eval`` on the outputs of one model."""

    def __init__(self, options: JudgeOptions, outputs: Path, name: str, num_instructions: int) -> None:
        """Prepare the call.

        Args:
            options: who judges.
            outputs: the JSON file with the model's outputs; results go into a folder beside it.
            name: what the model is called there.
            num_instructions: 805 stands for AlpacaEval's own.

        Raises:
            ValueError: a file or the program that ``options`` names is not there.
        """
        for what, path in (("--reference-outputs", options.reference), ("--alpaca-eval", options.command)):
            if path is not None and shutil.which(path) is None and not Path(path).is_file():
                raise ValueError(f"{what} {path} is not there.")
        self.options, self.name = options, name
        self.annotator = options.annotator or DEFAULT_ANNOTATOR
        self.standard = num_instructions == NUM_STANDARD
        self.outputs = outputs
        self.folder = outputs.parent / Path(self.annotator).name

    @property
    def program(self) -> str | None:
        """The program, where there is one."""
        return self.options.command or shutil.which("alpaca_eval")

    def lacks(self) -> str:
        """What is missing before the judge can be called; empty when nothing is."""
        if not self.standard and self.options.reference is None:
            return (
                f"these are not the {NUM_STANDARD} instructions of AlpacaEval, so its reference outputs do not fit: "
                "give --reference-outputs FILE"
            )
        if self.program is None:
            return (
                "alpaca_eval is not on the path; it wants an environment of its own: "
                "python -m venv alpaca && alpaca/bin/pip install alpaca_eval 'setuptools<81', "
                "then --alpaca-eval alpaca/bin/alpaca_eval"
            )
        if self.options.annotator is None and not any(os.environ.get(key) for key in _KEYS):
            return f"{DEFAULT_ANNOTATOR} asks an OpenAI model: set OPENAI_API_KEY, or name a judge with --annotator"
        return ""

    def command(self) -> list[str]:
        """The call, with everything it writes beside the outputs."""
        # A name of alpaca_eval's own, which it adds to the folder by itself.
        named = "/" not in self.annotator and not Path(self.annotator).is_dir()
        annotator = self.annotator if named else str(Path(self.annotator).resolve())
        options = {
            "model_outputs": self.outputs,
            "reference_outputs": self.options.reference,
            "annotators_config": annotator,
            "name": self.name,
            "output_path": self.outputs.parent if named else self.folder,
            "caching_path": self.outputs.parent / f"{self.folder.name}.cache.json",  # what was paid for is kept
            "precomputed_leaderboard": "None",
            "is_overwrite_leaderboard": "True",
            "sort_by": "win_rate",
            "fn_metric": None if self.standard else "get_winrate",
        }
        arguments = [[f"--{key}", str(value)] for key, value in options.items() if value is not None]
        return [self.program or "alpaca_eval", "evaluate", *(part for pair in arguments for part in pair)]

    def call(self) -> None:
        """Judge the outputs.

        Raises:
            ValueError: ``alpaca_eval`` failed; the outputs and whatever it has judged are kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        log = self.outputs.parent / f"{self.folder.name}.log"
        with log.open("w", encoding="utf-8") as file:
            try:
                done = subprocess.run(
                    self.command(), stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
                )
            except OSError as error:
                raise ValueError(f"{self.program} could not be started: {error.strerror}.") from error
        if done.returncode != 0 or not (self.folder / "annotations.json").is_file():
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
            raise ValueError(
                f"alpaca_eval failed (exit status {done.returncode}). Its last lines, of {log}:\n{tail}\n"
                f"The outputs are kept in {self.outputs}; the same command tries again."
            )

    def show(self) -> str:
        """The call as it would be typed."""
        return shlex.join(self.command())


def read_judgement(folder: Path, name: str) -> Judgement | None:
    """What ``alpaca_eval`` wrote into ``folder`` about the model ``name``; None where it wrote nothing.

    Raises:
        ValueError: its files are there, but not in the form of version 0.6.
    """
    annotations, leaderboard = folder / "annotations.json", folder / "leaderboard.csv"
    if not annotations.is_file() or not leaderboard.is_file():
        return None
    rows = read_json(annotations)
    with leaderboard.open(encoding="utf-8", newline="") as file:
        lines = {line.get("", ""): line for line in csv.DictReader(file)}
    needed = ("instruction", "output_2", "preference")
    if name not in lines or not rows or any(key not in row for row in rows for key in needed):
        raise ValueError(
            f"{folder} does not hold what alpaca_eval 0.6 writes about {name}: expected annotations.json with "
            f"{', '.join(needed)}, and a line of that name in leaderboard.csv. Remove the folder to judge again."
        )
    rates = {key: float(value) for key in _RATES if (value := lines[name].get(key))}
    preferences = {(row["instruction"], row["output_2"]): _preference(row["preference"]) for row in rows}
    version = str(rows[0].get("preference_version") or "").rpartition("==")[2]
    return Judgement(rates, preferences, version, str(rows[0].get("generator_1") or ""))


def _preference(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 1 <= value <= 2 else None
