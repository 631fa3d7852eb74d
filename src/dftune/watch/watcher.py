"""Evaluate the checkpoints of a run as they appear."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dftune.environment import available_cores
from dftune.evaluate.benchmarks import load_benchmark
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.jobs import plan_samplings
from dftune.evaluate.locate import models_of
from dftune.evaluate.record import WATCHER, record
from dftune.evaluate.runner import evaluate
from dftune.evaluate.summary import EvalSummary
from dftune.events import EVENTS, Row, Tail, ended, latest
from dftune.files import BusyError, read_json
from dftune.generate.base import IncompleteError
from dftune.generate.load import choose_device
from dftune.run import RunFolder
from dftune.watch.config import Policy, WatchConfig
from dftune.watch.engine import PersistentEngine
from dftune.watch.ledger import claimed, wanted, written
from dftune.watch.swap import ServedCheckpoints

Say = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """What of a run can be evaluated now, by step: its checkpoints, and the final model once training has ended."""

    checkpoints: Mapping[int, Path]
    final: Mapping[int, Path]


class Watcher:
    """Evaluates every checkpoint that a policy wants, once, and writes what it finds into the run's folder.

    Several watchers of one run share the work. One that was killed is continued by the next.

    Args:
        run: the run folder; training has begun.
        config: benchmarks and how they are sampled; its servers are given the weights of each checkpoint.
        policy: which checkpoints, in which order.
        device: computed on.
        poll_s: seconds between two looks.
        say: receives lines for a person.
        is_over: whether no further checkpoint will come; default: the run's last event is its end.

    Raises:
        ValueError: the benchmarks or their settings are wrong, or a server's weights cannot be changed.
    """

    def __init__(
        self,
        run: Path,
        config: EvaluateConfig,
        *,
        policy: Policy = "all",
        device: str = "cpu",
        poll_s: float = 2.0,
        say: Say = print,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        if not config.benchmarks:
            raise ValueError(
                f"There is nothing to evaluate {run} on. Give --benchmarks, or evaluate.benchmarks in the recipe."
            )
        self.run, self.config, self.policy, self.poll_s, self.say = run, config, policy, poll_s, say
        self.device = choose_device(device)
        self.engine: PersistentEngine | ServedCheckpoints = PersistentEngine()
        if config.server:
            self.engine = ServedCheckpoints(config)
            self.say(f"served by {', '.join(server.name for server in self.engine.servers)}")
        self._is_over = is_over or (lambda: ended(self._rows) is not None)
        protocols = [protocol.name for sampling in plan_samplings(config) for protocol in sampling.protocols]
        benchmarks = [load_benchmark(spec, config.data_dir) for spec in config.benchmarks]
        self._asked = {(one.name, name): len(one.rows) for one in benchmarks for name in protocols}
        self._tail = Tail(run / EVENTS)
        self._rows: list[Row] = []
        self.failed: dict[int, str] = {}
        self._vanished: set[int] = set()
        self._said: set[str] = set()

    def watch(self, *, once: bool = False) -> list[int]:
        """Evaluate until the run has ended and nothing is left; with ``once``, what is there now.

        Returns:
            The steps that this watcher evaluated, in its order.
        """
        steps: list[int] = []
        told = False
        while True:
            over = self._is_over()  # asked first: what was written before it was true is read below
            self._read()
            step = self._evaluate_one()
            if step is not None:
                steps.append(step)
                continue
            if once or (over and not self._pending()):
                return steps
            if not told and not over and not RunFolder(self.run).is_running():
                told = True
                self.say(f"{self.run} is not being trained now, and has not ended. Waiting for it to be resumed.")
            time.sleep(self.poll_s)

    def _read(self) -> None:
        new = self._tail.new()
        if self._tail.replaced:  # another run has taken the folder
            self._rows, self.failed, self._vanished = [], {}, set()
        self._rows += new

    def _models(self) -> Models:
        try:
            there = models_of(self.run)
        except ValueError:  # a final model without any step: its run is just being replaced
            return Models({}, {})
        final = self.run / "model"
        over = ended(self._rows) == "finished"
        checkpoints = {step: path for step, path in there.items() if path != final}
        return Models(checkpoints, {step: path for step, path in there.items() if path == final and over})

    def _pending(self) -> dict[int, Path]:
        """What is there, wanted and not evaluated, in the order of the policy."""
        models = self._models()
        chosen = set(wanted(self.policy, written(self._rows) | models.checkpoints.keys(), self._rows))
        there = {step: path for step, path in models.checkpoints.items() if step in chosen} | dict(models.final)
        left = there.keys() - self.failed.keys() - self._vanished
        order = sorted((step for step in left if not self._is_done(step)), reverse=self.policy == "newest")
        return {step: there[step] for step in order}

    def _is_done(self, step: int) -> bool:
        found = {
            (row["benchmark"], row["protocol"]): row["num_problems"]
            for row in latest(row for row in self._rows if row["kind"] == "evaluation" and row["source"] == WATCHER)
            if row["step"] == step
        }
        return all(found.get(what, 0) >= num_problems for what, num_problems in self._asked.items())

    def _evaluate_one(self) -> int | None:
        """Evaluate the first that no other watcher is at; its step."""
        for step, model in self._pending().items():
            with claimed(self.run, step) as mine:
                if not mine:
                    continue
                self._read()  # another may have evaluated it since
                if self._is_done(step) or not model.is_dir():
                    continue
                if self._evaluate(step, model):
                    return step
        return None

    def _evaluate(self, step: int, model: Path) -> bool:
        started = time.monotonic()
        try:
            summaries = evaluate(
                str(model),
                self.config.benchmarks,
                self.config,
                self.run,
                step=step,
                device=self.device,
                say=self.say,
                load=self.engine,
            )
        except BusyError as error:  # `dftune evaluate`, say; what it has made counts when it has ended
            self._say_once(f"step {step} has to wait: {error}")
            return False
        except (OSError, ValueError, IncompleteError) as error:
            if model.is_dir():
                self.failed[step] = str(error)
                self.say(f"step {step} could not be evaluated and is left: {error}")
            else:
                self._vanished.add(step)
                self.say(f"the checkpoint of step {step} was deleted before it was evaluated")
            return False
        record(self.run, summaries, WATCHER)
        self._read()
        self._report(step, summaries, time.monotonic() - started)
        return True

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _report(self, step: int, summaries: list[EvalSummary], seconds: float) -> None:
        scores = ", ".join(
            f"{one.benchmark} {one.protocol} "
            + (
                "-"
                if one.accuracy is None
                else f"{100 * one.accuracy:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"
            )
            for one in summaries
        )
        left = len(self._pending())
        self.say(f"step {step}: {scores}; {seconds:.0f} s; {left} more to evaluate")


def watch_device(config: WatchConfig, run: Path) -> str:
    """Where a watcher of a run computes: ``auto`` is the last CUDA device, if training uses fewer; else the CPU.

    With servers, what is computed here is a few log-probabilities, and the free device is likely theirs: the CPU.
    """
    import torch  # noqa: PLC0415

    if config.device != "auto":
        return config.device
    if config.server:
        return "cpu"
    manifest = read_json(run / "manifest.json")
    used = 0
    if str(manifest["hardware"]["device"]).startswith("cuda"):
        used = manifest.get("distributed", {}).get("world_size", 1)
    there = torch.cuda.device_count()
    return f"cuda:{there - 1}" if there > used else "cpu"


def watch_threads(config: WatchConfig, run: Path) -> int:
    """The CPU threads of a watcher: the cores that training leaves, at least one.

    Threads that wait for each other's cores are many times slower than one.
    """
    if config.threads is not None:
        return config.threads
    manifest = read_json(run / "manifest.json")
    processes = manifest.get("distributed", {}).get("world_size", 1)
    used = int(manifest["hardware"]["num_threads"] or 1) * int(processes)
    return max(1, available_cores() - used)
