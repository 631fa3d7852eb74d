"""Worker processes on this machine: a share of the cores or a device each, started again when they die."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from dftune.environment import available_cores
from dftune.study.board import Board, State
from dftune.study.claim import LOST, end_now

_POLL_S = 0.3
_MOST_DEATHS = 2
"""A task whose process died so often is failed: out of memory, most likely."""
_GRACE_S = 10.0


@dataclass(frozen=True)
class Places:
    """Where workers compute.

    Attributes:
        environments: environment variables of each worker.
        what: in words.
    """

    environments: tuple[Mapping[str, str], ...]
    what: str

    @property
    def on_cuda(self) -> bool:
        """Whether they have a device each."""
        return "CUDA_VISIBLE_DEVICES" in self.environments[0]


def places(workers: int | None, device: str) -> Places:
    """Divide the cores, or hand out a CUDA device each.

    Args:
        workers: asked for; None takes the CUDA devices there are, else the cores, at most four.
        device: of the recipe: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: more workers than devices, or none.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}; it must be at least 1.")
    devices = [] if device == "cpu" else _cuda_devices()
    if device == "cuda" and not devices:
        raise ValueError("train.device is cuda, and there is no CUDA device here. `dftune doctor` says what there is.")
    cores = available_cores()
    if not devices:
        num = workers or min(4, cores)
        threads = max(1, cores // num)
        each = {"OMP_NUM_THREADS": str(threads)}
        return Places((each,) * num, f"{num} CPU {_plural(num, 'worker')} of {threads} {_plural(threads, 'thread')}")
    num = workers or len(devices)
    if num > len(devices):
        raise ValueError(f"--workers is {num}, and there are {len(devices)} CUDA devices: one is given to each worker.")
    threads = max(1, cores // num)
    chosen = tuple({"CUDA_VISIBLE_DEVICES": name, "OMP_NUM_THREADS": str(threads)} for name in devices[:num])
    return Places(chosen, f"{num} {_plural(num, 'worker')}, a CUDA device each")


def _cuda_devices() -> list[str]:
    """Names of the devices as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # noqa: PLC0415

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[:count] if visible else [str(index) for index in range(count)]


def _plural(num: int, thing: str) -> str:
    return thing if num == 1 else f"{thing}s"


@dataclass
class _Deaths:
    """How often each task took its process with it, and how often a process died without a task."""

    by_task: dict[str, int] = field(default_factory=dict)
    idle: int = 0


def run_workers(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    where: Places,
    *,
    board: Board,
    logs: Path,
    on_poll: Callable[[], None],
) -> None:
    """Run ``work(*arguments)`` in processes until each returns.

    A process that dies is started again; a task that was with it twice is recorded as failed. When this process is
    killed the workers end by themselves.

    Args:
        work: importable function.
        arguments: for it; they are pickled.
        where: one process each.
        board: of the tasks that the workers share.
        logs: folder for what they print.
        on_poll: called several times a second.

    Raises:
        ChildProcessError: workers die before they begin; the log says why.
    """
    logs.mkdir(parents=True, exist_ok=True)
    context, deaths = get_context("spawn"), _Deaths()
    host, own = socket.gethostname(), os.getpid()
    files = [logs / f"{host}-{own}-{index}.log" for index in range(len(where.environments))]

    def start(index: int) -> Any:
        process = context.Process(target=_worker, args=(files[index], work, arguments))
        with _environment(where.environments[index]):
            process.start()
        return process

    running = {index: start(index) for index in range(len(where.environments))}
    try:
        while running:
            for index, process in list(running.items()):
                if process.exitcode is None:
                    continue
                process.join()
                del running[index]
                if process.exitcode:
                    _account(process, board, deaths, files[index])
                    running[index] = start(index)
            on_poll()
            time.sleep(_POLL_S)
    finally:  # an interrupt reaches workers by itself; they get a moment to give their claims back
        end = time.monotonic() + _GRACE_S
        for process in running.values():
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                process.terminate()
                process.join()


def _account(process: Any, board: Board, deaths: _Deaths, log: Path) -> None:
    code = process.exitcode
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    tasks = board.claims.of_process(process.pid)
    for task in tasks:
        deaths.by_task[task] = deaths.by_task.get(task, 0) + 1
        if deaths.by_task[task] >= _MOST_DEATHS and not board.ended(task):
            board.record(
                task, State("failed", error=f"its process died {_MOST_DEATHS} times, the last time by {how}; see {log}")
            )
    if not tasks and code != LOST:
        deaths.idle += 1
        if deaths.idle > _MOST_DEATHS:
            raise ChildProcessError(f"workers die before they take a task (the last by {how}); {log} says why.")


def _worker(log: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What a worker prints goes to a file: several progress lines at once would tell a person nothing."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(*arguments)


def _end_with_parent() -> None:
    """Nobody counts what is done when the command has been killed; and its next start finds its tasks free."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    end_now("the process that started this one is gone")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for a process that is started inside; this process's own are put back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
