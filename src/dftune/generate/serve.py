"""Start a server for a model, wait until it is healthy, stop it with everything it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
_VLLM = Path(".venv-serve") / "bin" / "vllm"
_SECONDS_TO_STOP = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_TAIL_LINES = 25
_OF_THIS_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class BatchSizes:
    """Of continuous batching in `transformers serve`, which by default fills the memory, for 20 s on a CPU.

    Attributes:
        num_blocks: blocks of the key-value cache; with ``block_size`` they bound the tokens of all requests at a time.
        block_size: tokens a block.
        max_batch_tokens: most tokens computed at once.
    """

    num_blocks: int = 1024
    block_size: int = 32
    max_batch_tokens: int = 512


def find_vllm(path: Path | None = None) -> Path | None:
    """The vLLM to be started: ``path``, or ``.venv-serve/bin/vllm``; None where neither is there.

    Raises:
        ValueError: there is nothing at ``path``.
    """
    if path is not None and not path.is_file():
        raise ValueError(
            f"there is no {path}. Give the vllm command of its own environment, or the environment's python."
        )
    found = path or _VLLM
    return found.absolute() if found.is_file() else None  # not resolved: an environment's python is a link


def server_command(
    model: str,
    host: str,
    port: int,
    *,
    vllm: Path | None = None,
    sizes: BatchSizes | None = BatchSizes(),
    device: str = "auto",
    more: Sequence[str] = (),
) -> list[str]:
    """The command line of a server.

    Args:
        model: path or hub id.
        host: address to listen at.
        port: likewise.
        vllm: from `find_vllm`; None stands for `transformers serve` of this environment.
        sizes: of continuous batching in `transformers serve`; None serves one request after the other.
        device: for `transformers serve`.
        more: further options of the server.
    """
    at = ["--host", host, "--port", str(port)]
    if vllm is not None:
        if vllm.name.startswith("python"):
            return [str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", model, *at, *more]
        return [str(vllm), "serve", model, *at, *more]
    batching = []
    if sizes is not None:
        batching = ["--continuous-batching", "--cb-num-blocks", str(sizes.num_blocks)]
        batching += ["--cb-block-size", str(sizes.block_size), "--cb-max-batch-tokens", str(sizes.max_batch_tokens)]
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    return [*serve, *at, "--device", device, *batching, *more]


def free_port(host: str = LOOPBACK, port: int = 0) -> int:
    """``port`` if nobody listens there, or one that is free for 0.

    Raises:
        ValueError: it is taken.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"port {port} of {host} cannot be used ({error.strerror}). Choose another --port."
            ) from error
        return int(probe.getsockname()[1])


class Server:
    """A server process in a process group of its own.

    Attributes:
        url: the base URL for clients.
        log: file that holds what it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        host: str,
        port: int,
        log: Path,
        *,
        without: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; ``without`` names environment variables that it does not inherit, ``variables`` are its own.

        Raises:
            ValueError: the command cannot be run.
        """
        shown = f"[{host}]" if ":" in host else LOOPBACK if host == "0.0.0.0" else host
        self._root = f"http://{shown}:{port}"
        self.url, self.log = f"{self._root}/v1", log
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        environment = {name: value for name, value in environment.items() if name not in without}
        environment |= variables or {}
        with log.open("ab") as output:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # so that all of it can be stopped, and Ctrl-C reaches us alone
                )
            except OSError as error:
                raise ValueError(f"{command[0]} cannot be started: {error.strerror}.") from error

    def is_healthy(self) -> bool:
        """Whether ``/health`` answers 200."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
        try:
            with opener.open(f"{self._root}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (OSError, ValueError, urllib.error.URLError):
            return False

    def wait(self, timeout_s: float) -> None:
        """Wait until it is healthy.

        Raises:
            ValueError: it ended, or is not healthy in time; the message has the end of its log.
        """
        started = time.monotonic()
        while not self.is_healthy():
            if self.process.poll() is not None:
                raise ValueError(f"the server ended with status {self.process.returncode}.\n{self.tail()}")
            if time.monotonic() - started > timeout_s:
                raise ValueError(f"the server is not healthy after {timeout_s:g} s (--wait).\n{self.tail()}")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def tail(self) -> str:
        """The last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines)])

    def stop(self) -> None:
        """End it and all processes it started: politely, and after ten seconds not."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)  # what is left of the group, its first process gone or not
            self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


@contextmanager
def serving(
    model: str | Path,
    *,
    vllm: Path | None = None,
    host: str = LOOPBACK,
    port: int = 0,
    sizes: BatchSizes | None = BatchSizes(),
    device: str = "auto",
    more: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    wait_s: float = 600.0,
    log: Path | None = None,
    on_start: Callable[[Server], None] | None = None,
) -> Iterator[str]:
    """A server for ``model`` while the block runs: ``with serving("runs/my-run/model") as url:``.

    Args:
        model: folder or hub id.
        vllm: as for `server_command`.
        host: address to listen at.
        port: 0 takes a free one.
        sizes: as for `server_command`.
        device: likewise.
        more: further options of the server.
        variables: further environment variables of the server.
        wait_s: longest time until it is healthy.
        log: file for what it prints; default, a temporary one that is deleted at the end.
        on_start: told the process as soon as there is one.

    Yields:
        The base URL for clients.

    Raises:
        ValueError: it cannot be started, ends, or is not healthy in time.
    """
    port = free_port(host, port)
    command = server_command(str(model), host, port, vllm=vllm, sizes=sizes, device=device, more=more)
    with tempfile.TemporaryDirectory(prefix="dftune-serve-") as folder:
        without = () if vllm is None else _OF_THIS_ENVIRONMENT
        server = Server(command, host, port, log or Path(folder) / "server.log", without=without, variables=variables)
        try:
            if on_start is not None:
                on_start(server)
            server.wait(wait_s)
            yield server.url
        finally:
            server.stop()
