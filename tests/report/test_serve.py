"""The served report: real requests on loopback."""

from __future__ import annotations

import http.client
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dftune.report.serve import ReportServer


@pytest.fixture
def server(study: Path, tmp_path: Path) -> Iterator[ReportServer]:
    shutil.copytree(study / "sft-seed0", tmp_path / "runs" / "sft-seed0")
    said: list[str] = []
    with ReportServer([tmp_path / "runs"], tmp_path / "out", None, 0, said.append) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: ReportServer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8")


def test_the_report_is_served_as_it_is_on_disk(server: ReportServer) -> None:
    status, page = get(server, "/report.md")
    assert (status, page) == (200, (server.output / "report.md").read_text(encoding="utf-8"))
    assert get(server, "/report.csv")[1].startswith("condition,")


def test_a_new_run_stands_in_the_next_page(server: ReportServer, study: Path) -> None:
    assert "dynamic_ft-seed0" not in get(server, "/report.md")[1]
    shutil.copytree(study / "dynamic_ft-seed0", server.runs[0] / "dynamic_ft-seed0")
    assert "dynamic_ft-seed0" in get(server, "/report.md")[1]


def test_the_report_is_not_written_again_without_a_change(server: ReportServer) -> None:
    before = (server.output / "report.html").stat().st_ino
    get(server, "/")
    assert (server.output / "report.html").stat().st_ino == before


def test_a_damaged_run_leaves_the_last_report_standing(server: ReportServer) -> None:
    page = get(server, "/")[1]
    (server.runs[0] / "sft-seed0" / "manifest.json").write_text("{", encoding="utf-8")
    assert get(server, "/") == (200, page)


@pytest.mark.parametrize("path", ["/../runs/sft-seed0/manifest.json", "/etc/passwd", "//etc/passwd", "/%2e%2e/x"])
def test_nothing_but_the_report_is_served(server: ReportServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_page_elsewhere_that_names_this_address_gets_nothing(server: ReportServer) -> None:
    assert get(server, "/", host=f"evil.example:{server.server_port}")[0] == 403
    assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_a_port_that_is_taken_is_an_error_that_names_it(server: ReportServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"127.0.0.1:{server.server_port} .*another --port"):
        ReportServer(server.runs, tmp_path / "other", None, server.server_port)


def test_the_command_serves_until_it_is_interrupted(study: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dftune", "report", str(study / "base"), "--serve", "--port", "0"]
    with subprocess.Popen([*command, "--output", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/report.md")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
