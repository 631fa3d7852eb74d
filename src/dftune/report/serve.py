"""A report on a loopback address, written again when the runs have changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dftune.report.document import build
from dftune.report.load import find_runs

HOST = "127.0.0.1"
_TYPES = {
    "report.html": "text/html",
    "report.md": "text/markdown",
    "report.csv": "text/csv",
    "report.tex": "text/x-tex",
}
_READ = ("manifest.json", "recipe.yaml", "events.jsonl", "evals/step-*/*.json", "evals/step-*/*.jsonl")

State = frozenset[tuple[str, int, int]]


def state_of(runs: Sequence[Path]) -> State:
    """Every file that a report is made of, with its size and time of change in nanoseconds."""
    found = [file for run in find_runs(runs) for pattern in _READ for file in run.glob(pattern)]
    return frozenset((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in found)


class ReportServer(ThreadingHTTPServer):
    """Serves the four files of a report and nothing else, on the loopback interface.

    A request finds out whether a file of the runs has changed, and then writes the report again first. While runs
    cannot be read (a file is damaged, say), the last report is served.

    Args:
        runs: run folders, or folders that hold them.
        output: folder of the report.
        title: its heading.
        port: to listen at; 0 takes a free one, see ``server_port``.
        say: is told what happens.

    Raises:
        ValueError: the runs cannot be read, or the port cannot be had.
    """

    daemon_threads = True

    def __init__(
        self, runs: Sequence[Path], output: Path, title: str | None, port: int, say: Callable[[str], None] = print
    ) -> None:
        self.runs, self.output, self.title, self.say = list(runs), output, title, say
        self._lock = threading.Lock()
        self._state = state_of(runs)
        build(self.runs, output, title)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot listen at {HOST}:{port} ({error}); choose another --port, or 0.") from error

    @property
    def address(self) -> str:
        """Where the report is."""
        return f"http://{HOST}:{self.server_port}/"

    def refresh(self) -> None:
        """Write the report again if a file of the runs has changed since."""
        with self._lock:
            try:
                state = state_of(self.runs)
                if state != self._state:
                    build(self.runs, self.output, self.title)
                    self._state = state
                    self.say("The runs have changed: the report was written again.")
            except (ValueError, OSError) as error:
                self.say(f"The report stays as it was: {error}")


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        """Answer with one of the four files."""
        name = self.path.split("?")[0].lstrip("/") or "report.html"
        if self.headers.get("Host") not in {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}:
            # Another name for this address is that of a page elsewhere that wants to read the report.
            self.send_error(HTTPStatus.FORBIDDEN)
        elif name not in _TYPES:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.server.refresh()
            self._send(name, (self.server.output / name).read_bytes())

    def _send(self, name: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{_TYPES[name]}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""
