r"""Benchmarks completed by a real server on loopback, a small one that answers \boxed{7}."""

import json
import random
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.chains import make_tokenizer, save_chain

from dftune.cli import main
from dftune.generate.base import IncompleteError

pytest.importorskip("openai")
SEVENS = {before: {after: 1.0} for before, after in zip("\n\\boxed{7", "\\boxed{7}", strict=True)}


class Seven(ThreadingHTTPServer):
    """Counts what it is asked; refuses prompts that hold ``refused``."""

    daemon_threads = True

    def __init__(self):
        self.refused, self.asked, self.bodies = None, [], []
        self.tokenizer = make_tokenizer()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Seven

    def log_message(self, *arguments):
        pass

    def send(self, value, status=200):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self):
        known = self.path == "/v1/models"
        self.send({"data": [{"id": "tiny"}]} if known else {"error": {"message": "?"}}, 200 if known else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body.get("prompt", body.get("messages"))
        if isinstance(prompt, list) and isinstance(prompt[0], int):
            prompt = self.server.tokenizer.decode(prompt)
        if isinstance(prompt, list):
            prompt = prompt[-1]["content"]
        if self.server.refused is not None and self.server.refused in prompt:
            return self.send({"error": {"message": "no such number"}}, 422)
        if "?" in prompt:  # not of the probe
            self.server.asked.append((prompt, body.get("seed")))
            self.server.bodies.append(body)
        choices = []
        for index in range(body.get("n") or 1):
            drawn = random.Random(f"{body.get('seed')} {index}").random() if body["temperature"] else 0.5
            text = f"{drawn:.6f}, so \\boxed{{7}}"
            said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
            choices.append({"index": index, **said, "finish_reason": "stop"})
        return self.send({"choices": choices, "usage": {"completion_tokens": 10 * len(choices)}})


@pytest.fixture
def server():
    serving = Seven()
    yield serving
    serving.shutdown()
    serving.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_chain(tmp_path_factory.mktemp("models") / "model", SEVENS)


@pytest.fixture
def here(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    rows = [{"id": f"q{index}", "problem": f"{index}?", "answer": "7"} for index in range(4)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "runs/eval-model/evals/step-0"


def run(server, *options):
    fixed = ["--benchmarks", "sums.jsonl", "--prompt-format", "plain", "--max-tokens", "20", "--max-retries", "0"]
    urls = server if isinstance(server, list) else [server.url]
    return main(["evaluate", "model", *fixed, "--served-model", "tiny", "--server", *urls, *options])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_completes_a_benchmark_and_what_it_was_seen_to_do_is_recorded(server, here, capsys):
    assert run(server) == 0
    assert "100.0 %" in capsys.readouterr().out
    rows = read(here / "sums.greedy.jsonl")
    assert [(row["id"], row["completion"], row["verdict"]) for row in rows] == [
        (f"q{index}", r"0.500000, so \boxed{7}", "correct") for index in range(4)
    ]
    settings = json.loads((here / "sums.greedy.json").read_text())
    assert (settings["engine"], settings["precision"]) == ("server", None)
    (facts,) = settings["server"]["servers"]
    assert (facts["url"], facts["model"]) == (server.url, "tiny")


def test_what_failed_is_no_wrong_answer_and_alone_is_asked_for_again(server, here, capsys):
    server.refused = "2?"
    assert run(server) == 1
    shown = capsys.readouterr().err
    assert "1 of 4 requests failed" in shown
    assert "Traceback" not in shown
    assert [row["id"] for row in read(here / "sums.greedy.jsonl")].count("q2") == 0
    server.refused = None
    server.asked.clear()
    assert run(server) == 0
    assert [prompt for prompt, _ in server.asked] == ["2?\n"]
    assert [row["id"] for row in read(here / "sums.greedy.jsonl")] == ["q0", "q1", "q2", "q3"]


def test_another_url_continues_and_samples_grow(server, here):
    assert run(server, "--protocol", "avg@2", "--samples-per-request", "1") == 0
    other = Seven()
    try:
        server.asked.clear()
        assert run([other.url, server.url], "--protocol", "avg@4", "maj@4", "--samples-per-request", "1") == 0
        asked = [*other.asked, *server.asked]
        assert sorted(prompt for prompt, _ in asked) == sorted(f"{index}?\n" for index in range(4) for _ in range(2))
    finally:
        other.shutdown()
        other.server_close()
    rows = read(here / "sums.sample.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(f"q{i}", sample) for i in range(4) for sample in range(4)]
    assert len({row["completion"] for row in rows}) == 16


def test_completions_of_a_server_and_of_this_process_are_not_mixed(server, here, capsys):
    assert run(server) == 0
    local = ["evaluate", "model", "--benchmarks", "sums.jsonl", "--prompt-format", "plain", "--max-tokens", "20"]
    assert main(local) == 2
    assert "engine: 'server' there, 'local' asked for" in capsys.readouterr().err


def test_messages_hold_the_problem_alone_where_the_server_renders(server, here, capsys):
    fixed = ["--benchmarks", "sums.jsonl", "--max-tokens", "20", "--served-model", "tiny", "--server", server.url]
    assert main(["evaluate", "model", *fixed, "--chat"]) == 0
    assert [body["messages"] for body in server.bodies][:1] == [[{"role": "user", "content": server.asked[0][0]}]]
    assert sorted(prompt for prompt, _ in server.asked) == ["0?", "1?", "2?", "3?"]
    settings = json.loads((here / "sums.greedy.json").read_text())
    assert (settings["chat"], settings["prompt_format"]["name"]) == (True, "message")
    assert run(server) == 2
    assert "chat: True there, None asked for" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error_before_anything_is_written(here, capsys):
    fixed = ["--benchmarks", "sums.jsonl", "--prompt-format", "plain", "--server", "http://127.0.0.1:9/v1"]
    assert main(["evaluate", "model", *fixed, "--outage-s", "0.1", "--max-retries", "0"]) in (1, 2)
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert not (here / "sums.greedy.jsonl").is_file()


def test_incomplete_is_raised_from_python(server, here):
    from dftune.evaluate.config import EvaluateConfig  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate  # noqa: PLC0415

    server.refused = "3?"
    config = EvaluateConfig(server=(server.url,), served_model="tiny", max_retries=0, prompt_format="plain")
    with pytest.raises(IncompleteError) as error:
        evaluate("model", ["sums.jsonl"], config, Path("out"), step=0)
    assert [(failure.id, failure.sample) for failure in error.value.failures] == [("q3", 0)]
    assert "no such number" in error.value.failures[0].reason
