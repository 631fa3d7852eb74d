import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tests.chains import make_chain, make_tokenizer

import dftune.demo
from dftune.generate.base import Request, Sampling
from dftune.generate.client import load_server_engine
from dftune.generate.config import ServerConfig
from dftune.generate.faults import Backoff
from dftune.generate.load import load_engine
from dftune.generate.serve import (
    LOOPBACK,
    BatchSizes,
    Server,
    find_vllm,
    free_port,
    server_command,
    serving,
)

MODEL = Path(dftune.demo.__file__).parent / "base"
missing = [name for name in ("openai", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
served = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
HEALTHY = """
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def alive(pid):
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def ends(pid):
    """Whether a process that was sent SIGKILL is gone, which takes it a moment."""
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def child_of(log):
    return int(log.read_text().split("child ")[1].split()[0])


# --- processes ------------------------------------------------------------------------------------


def test_a_server_is_stopped_with_the_processes_it_started(tmp_path):
    port = free_port()
    server = Server([sys.executable, "-c", HEALTHY, str(port)], LOOPBACK, port, tmp_path / "log")
    server.wait(60)
    child = child_of(tmp_path / "log")
    assert server.url == f"http://127.0.0.1:{port}/v1"
    assert alive(child)
    server.stop()
    assert not alive(server.process.pid)
    assert ends(child)


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("dftune.generate.serve._SECONDS_TO_STOP", 0.2)
    port = free_port()
    server = Server([sys.executable, "-c", HEALTHY, str(port), "stubborn"], LOOPBACK, port, tmp_path / "log")
    server.wait(60)
    server.stop()
    assert server.process.returncode == -signal.SIGKILL


def test_a_server_that_ends_at_once_is_an_error_with_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('no memory for the cache'); raise SystemExit(3)"]
    server = Server(command, LOOPBACK, free_port(), tmp_path / "log")
    with pytest.raises(ValueError, match=r"ended with status 3(?s:.*)no memory for the cache"):
        server.wait(60)


def test_a_server_that_never_becomes_healthy_is_an_error_with_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(600)"]
    server = Server(command, LOOPBACK, free_port(), tmp_path / "log")
    while not server.log.read_text():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=r"not healthy after 0.2 s(?s:.*)loading"):
        server.wait(0.2)
    server.stop()


def test_a_program_that_is_not_there_and_a_port_that_is_taken_are_errors(tmp_path):
    with pytest.raises(ValueError, match="nothing cannot be started: No such file"):
        Server([str(tmp_path / "nothing")], LOOPBACK, 1, tmp_path / "log")
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"port \d+ of 127.0.0.1 cannot be used .*--port"):
            free_port(LOOPBACK, taken.getsockname()[1])


def test_vllm_is_started_from_its_own_environment_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_vllm() is None
    with pytest.raises(ValueError, match="there is no nowhere/vllm"):
        find_vllm(Path("nowhere/vllm"))
    vllm = tmp_path / ".venv-serve" / "bin" / "vllm"
    vllm.parent.mkdir(parents=True)
    vllm.touch()
    assert find_vllm() == vllm
    at = ["--host", LOOPBACK, "--port", "80"]
    assert server_command("m", LOOPBACK, 80, vllm=vllm, more=["--x"]) == [str(vllm), "serve", "m", *at, "--x"]
    python = vllm.with_name("python3")
    module = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "m", *at]
    assert server_command("m", LOOPBACK, 80, vllm=python) == module


def test_transformers_serve_gets_explicit_sizes_for_continuous_batching():
    command = server_command("m", LOOPBACK, 80, sizes=BatchSizes(7, 16, 99), device="cpu")
    given = dict(itertools.pairwise(command))
    sizes = [given[f"--cb-{name}"] for name in ("num-blocks", "block-size", "max-batch-tokens")]
    assert (sizes, "--continuous-batching" in command) == (["7", "16", "99"], True)
    assert "--continuous-batching" not in server_command("m", LOOPBACK, 80, sizes=None)


# --- transformers serve ---------------------------------------------------------------------------


class Command:
    """``dftune serve`` in a process of its own."""

    def __init__(self, folder, model, *options):
        self.log, self.errors = folder / "server.log", folder / "errors"
        command = [sys.executable, "-m", "dftune", "serve", str(model), "--device", "cpu", "--log", str(self.log)]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--transformers", *options], stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def url(self):
        url = self.process.stdout.readline().strip()
        assert url, self.errors.read_text()
        return url

    def server_pid(self):
        """Of the server itself: the child of the command."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def stop(self, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    """After any letter: x three times in ten, y six, the end once."""
    folder = tmp_path_factory.mktemp("coins")
    tokenizer = make_tokenizer()
    toss = {"x": 0.3, "y": 0.6, "<|endoftext|>": 0.1}
    make_chain(tokenizer, {"x": toss, "y": toss}, otherwise="x").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def engine_for(url, folder, **options):
    local = load_engine(folder, device="cpu", batch_size=8)
    engine = load_server_engine(
        ServerConfig(server=(url,), **options),
        str(folder),
        local.tokenizer,
        folder=folder,
        backoff=Backoff(base_s=0.1, cap_s=1.0),
        say=lambda line: None,
    )
    return engine, local


def sums(engine, num, samples=1):
    texts = [f"What is {index} + 7?" for index in range(num)]
    return [
        Request(text, tuple(engine.tokenizer.encode(text)), sample, text) for text in texts for sample in range(samples)
    ]


@pytest.mark.slow
@served
def test_a_server_killed_in_the_middle_and_started_again_loses_nothing_and_is_asked_nothing_twice(tmp_path):
    port = free_port()
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    killed = threading.Event()
    servers = []

    def command():
        return server_command(str(MODEL), LOOPBACK, port, sizes=BatchSizes(128, 32, 256), device="cpu")

    servers.append(Server(command(), LOOPBACK, port, logs[0]))
    servers[0].wait(120)
    engine, local = engine_for(servers[0].url, MODEL, concurrency=8)
    delivered = []

    def kill_after_some(completions):
        delivered.extend(completions)
        if len(delivered) >= 10 and not killed.is_set():
            os.killpg(servers[0].process.pid, signal.SIGKILL)
            killed.set()

    def restart():
        killed.wait(120)
        servers[0].process.wait()
        servers.append(Server(command(), LOOPBACK, port, logs[1]))

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    sampling = Sampling(max_tokens=60, stop=("\n\n",), end_token_ids=engine.end_token_ids)
    requests = sums(engine, 40)
    try:
        completions = engine.generate(requests, sampling, kill_after_some)
        # asked while it was alive or after; the probe's questions are in both counts
        answered = sum(log.read_text().count('POST /v1/completions HTTP/1.1" 200') for log in logs)
    finally:
        killed.set()
        thread.join(60)
        for server in servers:
            server.stop()
    assert completions == local.generate(requests, sampling)
    assert sorted(done.id for done in delivered) == sorted(request.id for request in requests)
    assert engine.asked["unreachable"] >= 1
    # The first server may have sent answers that died with it; at most those of the eight requests then under way.
    assert engine.asked["answered"] <= answered <= engine.asked["answered"] + 8


@served
def test_eight_requests_at_a_time_give_what_the_local_engine_gives(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--owner--other"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("f" * 40)
    shutil.copytree(MODEL, cached / "snapshots" / ("f" * 40))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving(MODEL, sizes=BatchSizes(128, 32, 256), device="cpu", wait_s=120, log=tmp_path / "log") as url:
        engine, local = engine_for(url, MODEL, concurrency=8)
        for stop in ((), ("}", "\n")):
            sampling = Sampling(max_tokens=60, stop=stop, end_token_ids=engine.end_token_ids)
            requests = sums(engine, 16)
            completions = engine.generate(requests, sampling)
            assert completions == local.generate(requests, sampling)
            assert all(string not in done.text for done in completions for string in stop)
        (facts,) = engine.facts
        assert (facts.software, facts.logprobs, facts.stop) == ("transformers", False, "ignored")
        with urllib.request.urlopen(f"{url}/models") as reply:  # what is in the cache, not what is served
            assert [model["id"] for model in json.load(reply)["data"]] == ["owner/other"]
        with pytest.raises(ValueError, match=r"does not serve other: .*pinned to"):
            engine_for(url, MODEL, served_model="other")[0].probe(sampling)
        with pytest.raises(ValueError, match="ignores the temperature"):  # its first request was greedy
            engine.probe(Sampling(max_tokens=40, temperature=1.0))
    assert not engine_answers(url)


def engine_answers(url):
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, int(url.split(":")[2].split("/")[0]))) == 0


@pytest.mark.slow
@served
def test_the_command_serves_samples_of_the_models_probabilities_until_it_is_told_to_stop(coins, tmp_path):
    command = Command(tmp_path, coins, "--no-continuous-batching")
    try:
        url = command.url()
        server = command.server_pid()
        engine, local = engine_for(url, coins, concurrency=8)
        requests = [Request(f"p{i}", tuple(local.tokenizer.encode("x")), s, "x") for i in range(8) for s in range(4)]
        sampling = Sampling(max_tokens=48, temperature=1.0, end_token_ids=engine.end_token_ids)
        completions = engine.generate(requests, sampling)
        assert (engine.facts[0].n, engine.facts[0].fixed_sampling) == (False, False)
        assert [(done.id, done.sample) for done in completions] == [(r.id, r.sample) for r in requests]
        tokens = sum(done.num_tokens for done in completions)
        for symbol, probability in (("x", 0.3), ("y", 0.6)):
            count = sum(done.text.count(symbol) for done in completions)
            assert abs(count - tokens * probability) < 4 * (tokens * probability * (1 - probability)) ** 0.5
        for stop in ("yx", "xy"):  # the second begins in the prompt, which is no part of the completion
            sampling = Sampling(48, 1.0, stop=(stop,), end_token_ids=engine.end_token_ids)
            stopped = engine.generate(requests, sampling)
            assert not any(stop in done.text for done in stopped)
            assert len({done.text for done in stopped}) > 6
    finally:
        status = command.stop()
    assert (status, ends(server), engine_answers(url)) == (0, True, False)
    assert "Stopped." in command.errors.read_text()


@pytest.mark.slow
@served
def test_the_command_stops_cleanly_while_the_server_is_still_starting(tmp_path):
    command = Command(tmp_path, MODEL)
    while not command.log.exists():
        time.sleep(0.02)
    time.sleep(0.2)
    server = command.server_pid()
    assert command.stop(signal.SIGINT) == 0
    assert ends(server)
