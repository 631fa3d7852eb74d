"""All completions, a page at a time: real requests on loopback, 20,000 completions in two runs."""

from __future__ import annotations

import http.client
import json
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from dftune.files import append_jsonl, read_jsonl
from dftune.report.pages import PAGE, Query, find_sources, read_page
from dftune.report.serve import LINK, MARK, ReportServer
from tests.report.conftest import verdict_rows, write_evaluation, write_manifest

NUM_QUESTIONS, NUM_SAMPLES = 5_000, 2
SCRIPT = "<script>document.title = 'taken over'</script></pre><img src=x onerror=alert(1)> & \u202eabc"


def write_big_run(folder: Path, seed: int) -> Path:
    """Two samples of each of 5,000 questions; the last completion of all is hostile."""
    generator = random.Random(seed)
    rows = []
    for index in range(NUM_QUESTIONS):
        marks = "".join(generator.choice("0011?") for _ in range(NUM_SAMPLES))
        text = {"id": f"q{index}", "problem": f"Question number {index} of run {seed}?"}
        for sample, row in enumerate(verdict_rows(marks, **text)):
            rows.append(
                row | {"sample": sample, "completion": f"Steps {generator.random()}, so answer {index}-{sample}."}
            )
    rows[-1]["completion"] = SCRIPT
    write_manifest(folder, "evaluate", None, None)
    write_evaluation(folder, 0, rows, num_samples=NUM_SAMPLES, num_problems=NUM_QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        write_big_run(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportServer]:
    with ReportServer([runs], tmp_path_factory.mktemp("out"), None, 0, lambda _: None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: ReportServer, path: str, host: str | None = None) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read()


def files(server: ReportServer) -> dict[str, str]:
    """Ids by the label of the run."""
    (benchmark,) = json.loads(get(server, "/completions/files")[2])["benchmarks"]
    return {source["label"]: source["id"] for source in benchmark["sources"]}


def page(server: ReportServer, **values: Any) -> dict[str, Any]:
    status, kind, body = get(server, f"/completions/page?{urlencode(values)}")
    found = json.loads(body)
    assert (status, kind) == (200, "application/json; charset=utf-8"), found
    return dict(found)


def written(runs: Path, name: str) -> list[dict[str, Any]]:
    return read_jsonl(runs / name / "evals" / "step-0" / "arith.greedy.jsonl")


def texts(rows: list[dict[str, Any]], run: int = 0) -> list[str]:
    return [row["answers"][run]["completion"] for row in rows]


def test_the_pages_hold_every_completion_once_in_the_order_of_the_file(server: ReportServer, runs: Path) -> None:
    first = files(server)["first"]
    shown = [text for start in range(0, 10_000, PAGE) for text in texts(page(server, first=first, start=start)["rows"])]
    rows = written(runs, "first")
    assert len(shown) == len(rows) == 10_000
    assert shown[:-1] == [row["completion"] for row in rows[:-1]]
    assert shown[-1] == SCRIPT.replace("\u202e", "\\u202e")


def test_the_second_run_stands_beside_the_same_question_and_sample(server: ReportServer, runs: Path) -> None:
    ids = files(server)
    found = page(server, first=ids["first"], second=ids["second"], start=4_000)
    assert (found["num"], found["num_fitting"], found["start"]) == (10_000, 10_000, 4_000)
    assert texts(found["rows"], 1) == [row["completion"] for row in written(runs, "second")[4_000 : 4_000 + PAGE]]
    assert [row["id"] for row in found["rows"][:3]] == ["q2000", "q2000, sample 1", "q2001"]


def test_right_here_and_not_there_is_what_counting_the_files_gives(server: ReportServer, runs: Path) -> None:
    ids = files(server)
    pairs = list(zip(written(runs, "first"), written(runs, "second"), strict=True))
    expected = [a["completion"] for a, b in pairs if a["verdict"] == "correct" and b["verdict"] != "correct"]
    wanted = {"first": ids["first"], "second": ids["second"], "first_wanted": "correct", "second_wanted": "not correct"}
    found = page(server, **wanted, start=PAGE)
    assert found["num_fitting"] == len(expected) > 1_000
    assert texts(found["rows"]) == expected[PAGE : 2 * PAGE]
    ungraded = [a["completion"] for a, _ in pairs if a["verdict"] == "ungraded"]
    assert page(server, first=ids["first"], first_wanted="ungraded")["num_fitting"] == len(ungraded)


def test_a_search_finds_text_of_either_run_together_with_the_verdicts(server: ReportServer, runs: Path) -> None:
    ids = files(server)
    by_number = page(server, first=ids["first"], search=" ANSWER 4321-1. ")
    assert [row["id"] for row in by_number["rows"]] == ["q4321, sample 1"]
    assert page(server, first=ids["first"], search="run 1?")["num_fitting"] == 0
    theirs = written(runs, "second")[77]["completion"][:22].lower()
    beside = page(server, first=ids["first"], second=ids["second"], search=theirs)
    assert [row["id"] for row in beside["rows"]] == ["q38, sample 1"]
    verdict = {"correct": "not correct", "incorrect": "correct", "ungraded": "correct"}[
        written(runs, "second")[77]["verdict"]
    ]
    assert page(server, first=ids["first"], second=ids["second"], search=theirs, second_wanted=verdict)["rows"] == []


def test_a_start_beyond_the_end_is_the_last_page(server: ReportServer) -> None:
    found = page(server, first=files(server)["first"], start=10**9)
    assert (found["start"], len(found["rows"])) == (10_000 - PAGE, PAGE)


def test_hostile_text_holds_nothing_that_opens_an_element_on_the_wire(server: ReportServer) -> None:
    first = files(server)["first"]
    _, _, body = get(server, f"/completions/page?first={first}&search=taken+over")
    assert json.loads(body)["rows"][0]["answers"][0]["completion"].startswith("<script>document.title")
    assert not set(b"<>&") & set(body)
    status, kind, html = get(server, "/completions")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"default-src 'none'" in html
    assert b"taken over" not in html


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "first: required"),
        ("first=../../first/manifest.json", "there is no file of completions '../../first/manifest.json'"),
        ("first=/etc/passwd", "there is no file of completions '/etc/passwd'"),
        ("first={id}&second=x", "there is no file of completions 'x'"),
        ("first={id}&first_wanted=nice", "first_wanted is 'nice'; expected not correct or one of correct, wrong"),
        ("first={id}&start=-1", "start is '-1'"),
    ],
)
def test_what_is_not_there_is_refused_with_a_reason(server: ReportServer, query: str, message: str) -> None:
    status, _, body = get(server, f"/completions/page?{query.format(id=files(server)['first'])}")
    assert status == 400
    assert message in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/completions", "/completions/files", "/completions/page"])
def test_a_page_elsewhere_gets_no_completions(server: ReportServer, path: str) -> None:
    assert get(server, path, host=f"evil.example:{server.server_port}")[0] == 403


def test_the_served_report_links_to_all_completions_and_the_file_on_disk_does_not(server: ReportServer) -> None:
    html = get(server, "/")[2]
    on_disk = (server.output / "report.html").read_bytes()
    assert html.count(LINK) == 1
    assert html.replace(LINK, MARK) == on_disk


def test_lines_that_are_appended_or_replaced_stand_in_the_next_page(tmp_path: Path) -> None:
    write_manifest(tmp_path, "evaluate", None, None)
    write_evaluation(tmp_path, 0, verdict_rows("101"))
    path = tmp_path / "evals" / "step-0" / "arith.greedy.jsonl"

    def shown() -> list[tuple[str, str]]:
        (source,) = find_sources([tmp_path])
        return [(row["id"], row["answers"][0]["outcome"]) for row in read_page(Query(source), 0)["rows"]]

    assert shown() == [("q0", "correct"), ("q1", "wrong"), ("q2", "correct")]
    append_jsonl(path, [verdict_rows("1")[0] | {"id": "q1"}, verdict_rows("0")[0] | {"id": "q3"}])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "half a li')
    assert shown() == [("q0", "correct"), ("q1", "correct"), ("q2", "correct"), ("q3", "wrong")]


def test_two_versions_of_a_benchmark_are_not_held_against_each_other(tmp_path: Path) -> None:
    for name, fingerprint in (("a", "old"), ("b", "new"), ("c", "new")):
        write_manifest(tmp_path / name, "evaluate", None, None)
        write_evaluation(tmp_path / name, 0, verdict_rows("10"), benchmark_fingerprint=fingerprint)
    found = [(source.benchmark, source.label) for source in find_sources([tmp_path])]
    newer = "arith, greedy, version new"
    assert found == [(newer, "b"), (newer, "c"), ("arith, greedy, version old", "a")]


def test_texts_stay_on_the_disk(tmp_path: Path) -> None:
    """Nine megabytes of completions are searched and paged with less than two in memory."""
    rows = [row | {"completion": f"{index} " * 1_000} for index, row in enumerate(verdict_rows("1" * 2_000))]
    write_manifest(tmp_path, "evaluate", None, None)
    write_evaluation(tmp_path, 0, rows)
    assert (tmp_path / "evals" / "step-0" / "arith.greedy.jsonl").stat().st_size > 9_000_000
    del rows
    (source,) = find_sources([tmp_path])
    tracemalloc.start()
    found = read_page(Query(source, search="1998 1998"), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["num_fitting"] == 1
    assert peak < 2_000_000
