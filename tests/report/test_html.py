"""The HTML file: model text stays text, the policy fits the script, everything asked for is there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dftune import report
from dftune.files import append_jsonl, write_text
from dftune.report.samples import build_browser, script_json
from dftune.report.tables import build_table
from tests.report.conftest import make_events, verdict_rows, write_base_run, write_evaluation, write_manifest

HOSTILE = [
    "<script>document.title='owned'</script>",
    '<img src=x onerror="document.title=1">',
    "</script><script>document.title=2</script>",
    "</pre></article><iframe src=//evil.example></iframe>",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "\x1b]0;title\x07 \u202egnp.exe \ud83d lone \u2028",
    "&lt;b&gt; <!-- --!> ]]>",
]
VOID = {"meta", "br", "img", "input", "link", "hr", "base"}


class Page(HTMLParser):
    """Elements, attributes and scripts of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.elements[-1][1].get("type") or "", data))
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def page_of(folder: Path, output: Path, **options: Any) -> Page:
    return Page(report.build([folder], output, **options).html.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(study, tmp_path_factory.mktemp("report"))


@pytest.fixture
def hostile(tmp_path: Path) -> Page:
    rows = []
    for number, text in enumerate(HOSTILE):
        fields = dict.fromkeys(("problem", "completion", "answer", "prompt", "reason"), text)
        rows.append(verdict_rows("1")[0] | fields | {"id": f"q{number}{text}", "target": [text, "x"]})
    run = tmp_path / "runs" / "evil"
    label = {"name": f"evil{HOSTILE[0]}{HOSTILE[5]}", "command": HOSTILE[1], "versions": {"python": HOSTILE[2]}}
    write_manifest(run, "evaluate", None, None, **label)
    write_evaluation(run, 0, rows, benchmark_fingerprint=HOSTILE[3], sampling={"stop": [HOSTILE[0]]})
    # ASCII JSON carries a lone surrogate to the reader; a file in UTF-8 cannot.
    write_text(run / "evals/step-0/arith.greedy.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    write_manifest(tmp_path / "runs" / "trained", "train", 0, {"name": HOSTILE[1]}, name=HOSTILE[2])
    append_jsonl(tmp_path / "runs" / "trained" / "events.jsonl", make_events("sft", 0, num_steps=30))
    write_text(
        tmp_path / "runs" / "trained" / "recipe.yaml", f"name: x\nobjective: {{name: {json.dumps(HOSTILE[1])}}}\n"
    )
    return page_of(tmp_path / "runs", tmp_path / "out", title=HOSTILE[0])


def test_model_text_makes_no_element_and_no_attribute(hostile: Page) -> None:
    assert not hostile.tags & {"img", "iframe"}
    assert len(hostile.scripts) == 2  # the data and our own
    assert all(not name.startswith("on") for _, attributes in hostile.elements for name in attributes)


def test_model_text_is_shown_as_it_was_written(hostile: Page) -> None:
    for text in HOSTILE[:5]:
        assert text in hostile.text


def test_control_characters_and_lone_surrogates_are_shown_escaped(hostile: Page) -> None:
    assert "\\x1b]0;title\\x07 \\u202egnp.exe \\ud83d lone \\u2028" in hostile.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ud800-\udfff]", hostile.text)


def test_the_data_block_gives_back_what_the_models_wrote_and_cannot_end_early(hostile: Page) -> None:
    kind, data = hostile.scripts[0]
    assert kind == "application/json"
    assert not re.search("[<>&]", data)
    completions = [question["answers"][0][0]["completion"] for question in json.loads(data)["questions"]]
    assert completions[:5] == HOSTILE[:5]


def test_the_policy_allows_the_one_script_by_its_hash_and_nothing_from_the_network(page: Page) -> None:
    kind, script = page.scripts[1]
    assert kind == ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith(
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert all(not ({"src", "srcset", "data"} & set(attributes)) for _, attributes in page.elements)
    links = [attributes["href"] for tag, attributes in page.elements if "href" in attributes]
    assert all(link and link.startswith("#") for link in links)


def test_every_link_inside_the_page_has_its_target(page: Page) -> None:
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert all(a["href"][1:] in targets for tag, a in page.elements if tag == "a" and a["href"])


def test_every_chart_has_a_title_and_a_description_for_those_who_cannot_see_it(page: Page) -> None:
    tags = [tag for tag, attributes in page.elements if tag in ("title", "desc") or attributes.get("role") == "img"]
    charts = [index for index, tag in enumerate(tags) if tag == "svg"]
    assert len(charts) >= 10
    assert all(tags[index + 1 : index + 3] == ["title", "desc"] for index in charts)


@pytest.mark.parametrize(
    "title",
    [
        "Training loss",
        "NLL on the training batches",
        "NLL on held-out rows",
        "Accuracy over training",
        "How the completions ended",
        "Mean token probability",
        "Effective sample size",
        "End-of-turn probability",
        "Gradient norm",
        "Learning rate",
    ],
)
def test_every_promised_chart_is_there(page: Page, title: str) -> None:
    assert title in page.texts


def test_the_numbers_of_the_table_are_those_of_the_completions(page: Page, study: Path) -> None:
    right = total = 0
    for seed in (0, 1):
        lines = (study / f"sft-seed{seed}/evals/step-200/arith.greedy.jsonl").read_text().splitlines()
        right += sum('"verdict": "correct"' in line for line in lines)
        total += len(lines)
    assert total == 400
    assert f"{100 * right / total:.1f}" in page.texts


def test_the_page_can_be_read_without_a_script(page: Page) -> None:
    assert page.text.count("Reference answer") == 6
    assert sum(tag == "noscript" for tag, _ in page.elements) == 1


def test_method_holds_recipe_versions_hardware_commands_and_data(page: Page) -> None:
    for wanted in (
        "lr: 0.001",
        "torch 2.13.0",
        "2 cores",
        "dftune train sft-seed0",
        "6,400 rows for training",
        "3 left out: too long",
        "820,000",
    ):
        assert wanted in page.text


def test_the_method_says_that_seed_variance_is_pooled_and_over_how_many(page: Page) -> None:
    assert "pooled over 2 conditions" in page.text
    assert "Pooling takes seeds to vary alike in all conditions" in page.text


def test_two_reports_of_the_same_runs_are_the_same_bytes(study: Path, tmp_path: Path) -> None:
    first, second = (report.build([study], tmp_path / name) for name in ("a", "b"))
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()


def test_markdown_holds_the_verdict_and_the_tables(study: Path, tmp_path: Path) -> None:
    text = report.build([study], tmp_path).markdown.read_text(encoding="utf-8")
    assert text.startswith("# dynamic_ft against sft\n\nOn arith (200 questions), dynamic_ft answers ")
    assert "| condition " in text
    assert "| sft-seed1 " in text


def test_a_large_benchmark_is_thinned_out_evenly_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_manifest(run, "evaluate", None, None)
    write_evaluation(run, 0, [row | {"completion": "<" * 900} for row in verdict_rows("10" * 500)])
    browser = build_browser(build_table([report.load.read_run(run)]), most_bytes=400_000)
    assert len(browser.as_json()) <= 401_000
    kept = [int(question["id"][1:]) for question in browser.questions]
    assert len(kept) > 30
    gaps = {after - before for before, after in pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1
    assert f"Here are {len(kept)} of 1,000 questions of arith.greedy, evenly spaced" in browser.scope


def test_a_huge_completion_is_cut_with_a_count_and_the_file_stays_small(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_manifest(run, "evaluate", None, None)
    write_evaluation(run, 0, [row | {"completion": "\0" * 1_000_000} for row in verdict_rows("10")])
    paths = report.build([run], tmp_path)
    assert "3,994,000 more characters" in paths.html.read_text(encoding="utf-8")
    assert paths.html.stat().st_size < 1_000_000


def test_json_for_a_script_block_survives_every_special_character() -> None:
    value = {"a": "</script><!-- & ' \" \\ \u2028 \ud800"}
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii()


def test_one_run_without_evaluations_makes_a_report_of_its_curves(tmp_path: Path) -> None:
    write_manifest(tmp_path / "r", "train", 0, {"name": "sft"})
    append_jsonl(tmp_path / "r" / "events.jsonl", make_events("sft", 0, num_steps=60))
    page = page_of(tmp_path / "r", tmp_path / "out")
    assert "Training loss" in page.texts
    assert "table" in page.tags
    assert not any(attributes.get("id") == "completions" for _, attributes in page.elements)


def test_a_report_of_the_base_alone_is_possible(tmp_path: Path) -> None:
    page = page_of(write_base_run(tmp_path, num_questions=12), tmp_path / "out")
    assert "Completions" in page.text


def test_reports_import_neither_torch_nor_transformers_nor_datasets() -> None:
    code = "import sys, dftune.report, dftune.commands.report; print('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {name.split(".")[0] for name in found.stdout.split()}
    assert "jinja2" in modules
    assert not {"torch", "transformers", "datasets"} & modules
