"""The report in a real browser: no error, nothing blocked, filters that work. Skipped where Chromium is missing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dftune import report
from dftune.report.serve import ReportServer
from tests.report.conftest import verdict_rows, write_evaluation, write_manifest
from tests.report.test_html import HOSTILE
from tests.report.test_pages import SCRIPT, write_big_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


class Browser:
    """Chromium driven through its debugging pipe: JSON messages, each ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        # Above 9, so that putting them on 3 and 4 in the child overwrites neither.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for fd in pair]
        command_out, self._command_in, self._answer_out, answer_in = ends
        assert CHROMIUM is not None

        def put_in_place() -> None:
            os.dup2(command_out, 3)
            os.dup2(answer_in, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=put_in_place,  # noqa: PLW1509  Chromium insists on these numbers, and no thread runs here
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        os.close(command_out)
        os.close(answer_in)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; errors and log entries on the way are kept in ``problems``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._command_in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.requestWillBeSent"):
                self.problems.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._answer_out, 65536)
            assert part, "Chromium closed its pipe"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, page: Path | str, *, scripts: bool = True) -> None:
        """Open a file or an address in a new tab and wait until it is loaded."""
        url = page if isinstance(page, str) else page.as_uri()
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=url)
        self.wait(f"location.protocol + document.readyState === {url.split(':')[0] + ':complete'!r}")

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + 30
        while not self.run(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true"
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page and return its value."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._command_in)
        os.close(self._answer_out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


SHOWN = "document.querySelectorAll('#questions .question').length"
FOUND = "document.getElementById('found').textContent"


def chips(condition: int) -> str:
    """The verdicts shown for a condition."""
    return (
        "[...document.querySelectorAll('#questions .answers')]"
        f".map(row => row.children[{condition}].querySelector('.chip').textContent)"
    )


def choose(label: str, value: str) -> str:
    """Set the filter of that label."""
    return (
        "(() => { const select = [...document.querySelectorAll('#controls label')]"
        f".find(label => label.firstChild.textContent === {label!r}).querySelector('select, input');"
        f"select.value = {value!r};"
        "for (const name of ['change', 'input']) select.dispatchEvent(new Event(name)); })()"
    )


def test_filters_presets_search_and_paging_work_and_nothing_fails(
    browser: Browser, study: Path, tmp_path: Path
) -> None:
    browser.problems.clear()
    browser.open(report.build([study], tmp_path).html)
    requests = [p["params"]["request"]["url"] for p in browser.problems if p["method"] == "Network.requestWillBeSent"]
    assert [url.split("/")[-1] for url in requests] == ["report.html"]
    assert browser.run(SHOWN) == 10

    browser.run("document.getElementById('more').click()")
    assert browser.run(SHOWN) == 20

    browser.run(choose("sft", "correct"))
    browser.run(choose("dynamic_ft", "wrong"))
    assert set(browser.run(chips(1))) == {"correct"}
    assert set(browser.run(chips(2))) == {"wrong"}

    browser.run("[...document.querySelectorAll('.presets button')][1].click()")  # dynamic_ft right, sft not
    number = int(browser.run("document.querySelectorAll('.presets button')[1].textContent").split("(")[1][:-1])
    assert browser.run(FOUND).startswith(f"{number} of 200 questions match")
    assert set(browser.run(chips(2))) == {"correct"}
    assert "correct" not in browser.run(chips(1))

    browser.run("document.querySelector('.presets button').click()")
    browser.run(choose("Search", "ARITH-17"))
    ids = browser.run("[...document.querySelectorAll('#questions .id')].map(id => id.textContent)")
    assert sorted(ids) == sorted(["arith-17", *(f"arith-{i}" for i in range(170, 180))])[:10]

    browser.run(choose("Search", "no such text"))
    assert browser.run(FOUND) == "None of 200 questions match."
    assert [p for p in browser.problems if p["method"] != "Network.requestWillBeSent"] == []


def test_the_replicate_can_be_changed(browser: Browser, study: Path, tmp_path: Path) -> None:
    browser.open(report.build([study], tmp_path).html)
    first = browser.run(chips(1))
    browser.run(choose("Replicate", "1"))
    assert browser.run(chips(1)) != first


def test_hostile_model_text_stays_text_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "evil"
    rows = [
        row | {"completion": text, "problem": text} for row, text in zip(verdict_rows("1" * 7), HOSTILE, strict=True)
    ]
    write_manifest(run, "evaluate", None, None)
    write_evaluation(run, 0, [row | {"id": f"q{i}"} for i, row in enumerate(rows)])
    browser.problems.clear()
    browser.open(report.build([run], tmp_path).html)
    assert browser.run("document.title") == "evil"
    assert browser.run("document.querySelectorAll('img, iframe').length") == 0
    assert browser.run("document.querySelectorAll('#questions pre')[0].textContent") == HOSTILE[0]
    assert [p for p in browser.problems if p["method"] != "Network.requestWillBeSent"] == []


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of all completions, of two runs with 10,000 each."""
    runs = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("first", "second")):
        write_big_run(runs / name, seed)
    with ReportServer([runs], runs / "out", None, 0, lambda _: None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"{server.address}completions"
        server.shutdown()
        thread.join()


def test_all_completions_are_filtered_searched_and_paged_and_hostile_text_stays_text(
    browser: Browser, completions: str
) -> None:
    browser.problems.clear()
    browser.open(completions)
    browser.wait(f"{SHOWN} === 20")
    assert browser.run(FOUND) == "Completions 1 to 20 of 10,000"

    browser.run("[...document.querySelectorAll('.pager button')].find(b => b.textContent === 'Next').click()")
    browser.wait(f"{FOUND} === 'Completions 21 to 40 of 10,000'")
    browser.run("[...document.querySelectorAll('.presets button')][1].click()")  # A right, B not
    browser.wait(f"{FOUND}.includes('that match')")
    assert browser.run(FOUND).startswith("Completions 1 to 20 of ")
    assert set(browser.run(chips(0))) == {"correct"}
    assert "correct" not in browser.run(chips(1))

    browser.run("document.querySelector('.presets button').click()")
    browser.run(choose("Search", "taken over"))
    browser.wait(f"{SHOWN} === 1")
    assert browser.run("document.querySelector('#questions pre').textContent") == SCRIPT.replace("\u202e", "\\u202e")
    assert browser.run("document.title") == "All completions"
    assert browser.run("document.querySelectorAll('#questions script, img').length") == 0
    assert [p for p in browser.problems if p["method"] != "Network.requestWillBeSent"] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_all_completions_does_not_scroll_sideways(browser: Browser, completions: str, width: int) -> None:
    browser.open(completions)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.wait(f"{SHOWN} === 20")
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(browser: Browser, study: Path, tmp_path: Path, width: int) -> None:
    browser.open(report.build([study], tmp_path).html)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_without_scripts_the_page_still_shows_completions_and_no_dead_controls(
    browser: Browser, study: Path, tmp_path: Path
) -> None:
    browser.open(report.build([study], tmp_path).html, scripts=False)
    assert browser.run(SHOWN) == 6
    assert browser.run("getComputedStyle(document.getElementById('controls')).display") == "none"
    assert browser.run("document.querySelector('.chip').offsetHeight") > 0
