"""A report on a loopback address, written again when the runs have changed, and all completions page by page."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dftune.evaluate.classify import CATEGORIES
from dftune.report.document import build
from dftune.report.html import render_pages
from dftune.report.load import find_runs
from dftune.report.pages import Source, find_sources, parse_query, read_page
from dftune.report.samples import script_json

HOST = "127.0.0.1"
_TYPES = {
    "report.html": "text/html",
    "report.md": "text/markdown",
    "report.csv": "text/csv",
    "report.tex": "text/x-tex",
}
MARK = b"<!--all completions-->"
"""Where a report that is served gets its link; no text of a model can hold it, since theirs is escaped."""
LINK = b'<p class="how"><a href="/completions">All completions of all runs, page by page</a></p>'
_READ = ("manifest.json", "recipe.yaml", "events.jsonl", "evals/step-*/*.json", "evals/step-*/*.jsonl")

State = frozenset[tuple[str, int, int]]


def state_of(runs: Sequence[Path]) -> State:
    """Every file that a report is made of, with its size and time of change in nanoseconds."""
    found = [file for run in find_runs(runs) for pattern in _READ for file in run.glob(pattern)]
    return frozenset((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in found)


class ReportServer(ThreadingHTTPServer):
    """Serves the four files of a report, and all completions of its runs in pages, on the loopback interface.

    Nothing in a request names a path.

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
        """Answer with one of the four files, or with completions."""
        path, _, query = self.path.partition("?")
        name = path.lstrip("/") or "report.html"
        if self.headers.get("Host") not in {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}:
            # Another name for this address is that of a page elsewhere that wants to read the report.
            self.send_error(HTTPStatus.FORBIDDEN)
        elif name in _TYPES:
            self.server.refresh()
            body = (self.server.output / name).read_bytes()
            self._send(_TYPES[name], body.replace(MARK, LINK) if name == "report.html" else body)
        elif name == "completions":
            self._send("text/html", render_pages().encode())
        elif name in _ANSWERS:
            self._answer(name, dict(parse_qsl(query)))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, name: str, values: dict[str, str]) -> None:
        try:
            found, status = _ANSWERS[name](find_sources(self.server.runs), values), HTTPStatus.OK
        except (OSError, ValueError) as error:
            found, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
        self._send("application/json", script_json(found).encode(), status)

    def _send(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


def _files(sources: list[Source], values: dict[str, str]) -> dict[str, Any]:
    benchmarks = []
    for name, group in itertools.groupby(sources, key=lambda source: source.benchmark):
        benchmarks.append({"name": name, "sources": [{"id": source.id, "label": source.label} for source in group]})
    return {"benchmarks": benchmarks, "outcomes": CATEGORIES}


def _page(sources: list[Source], values: dict[str, str]) -> dict[str, Any]:
    start = values.get("start", "0")
    if not start.isdecimal():
        raise ValueError(f"start is {start!r}; expected the number of a completion, from 0.")
    return read_page(parse_query(sources, values), int(start))


_ANSWERS = {"completions/files": _files, "completions/page": _page}
