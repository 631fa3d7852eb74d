import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.generate.scripted_server import ScriptedServer
from tests.tiny import make_model
from tests.train.runs import run
from tests.watch.folders import RIGHT, FakeTraining
from tests.watch.stand_in import StandIn, save_random

from dftune.commands.train import _evaluate
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.models import find_files
from dftune.files import read_json, read_jsonl
from dftune.generate.base import Request, Sampling
from dftune.generate.load import load_engine, load_tokenizer
from dftune.generate.serve import find_vllm, serving
from dftune.watch.check import check_watch, with_servers
from dftune.watch.checkpoint_server import CheckpointServer
from dftune.watch.watcher import Watcher

ANSWERS = {10: "7", 20: "8", 30: "7"}


def serve(server):
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def server(training):
    with serve(CheckpointServer(training.path, device="cpu")) as server:
        yield server
        server.shutdown()


def make_watcher(training, problems, *urls, **options):
    served = {"server": urls, "outage_s": 20.0, "max_retries": 2, "concurrency": 4}
    config = EvaluateConfig(benchmarks=(str(problems),), max_tokens=20, **served)
    said = []
    watcher = Watcher(training.path, config, poll_s=0.01, say=said.append, **options)
    watcher.said = said
    return watcher


def completions(training, step):
    rows = read_jsonl(training.path / "evals" / f"step-{step}" / "sums.greedy.jsonl")
    return [(row["id"], row["completion"], row["finish_reason"], row["num_tokens"], row["verdict"]) for row in rows]


def weights(server):
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/weights") as reply:
        return json.load(reply)


def post(server, path, body, kind="application/json"):
    request = urllib.request.Request(
        server.url.removesuffix("/v1") + path, data=json.dumps(body).encode(), headers={"Content-Type": kind}
    )
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# --- dftune's own server --------------------------------------------------------------------------


def test_a_server_gives_what_the_model_loaded_by_the_watcher_gives(training, problems, server, tmp_path):
    local = FakeTraining(tmp_path / "local", problems)
    for one in (training, local):
        for step, answer in list(ANSWERS.items())[:2]:
            one.checkpoint(step, answer)
        one.end(30, ANSWERS[30])
    watcher = make_watcher(training, problems, server.url)
    assert watcher.watch() == [10, 20, 30]
    assert make_watcher(local, problems).watch() == [10, 20, 30]
    assert training.evaluations() == local.evaluations() == [(step, RIGHT[one]) for step, one in ANSWERS.items()]
    for step in ANSWERS:
        assert completions(training, step) == completions(local, step)
    settings = read_json(training.path / "evals" / "step-20" / "sums.greedy.json")
    assert settings["engine"] == "server"
    assert settings["server"]["servers"][0]["url"] == server.url
    assert (watcher.engine.num_loaded, watcher.engine.num_swapped) == (0, 3)
    assert weights(server) == {"step": 30, "fingerprint": find_files(str(training.path / "model")).fingerprint()}
    again = make_watcher(training, problems, server.url)
    assert (again.watch(), again.engine.num_swapped) == ([], 0)


def test_several_servers_share_the_completions_of_each_checkpoint(training, problems, server):
    for step, answer in ANSWERS.items():
        training.checkpoint(step, answer)
    with serve(CheckpointServer(training.path, device="cpu")) as other:
        assert make_watcher(training, problems, server.url, other.url).watch(once=True) == [10, 20, 30]
        assert weights(server) == weights(other)
        other.shutdown()
    assert training.evaluations() == [(step, RIGHT[one]) for step, one in ANSWERS.items()]


def test_weights_that_another_has_changed_are_put_back_and_what_came_since_is_asked_again(training, problems, server):
    training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    complete, left = server.complete, ["once"]

    def interfere(fields):
        if fields["max_tokens"] == 20 and left:  # not a question of the probe
            left.pop()
            server.put(20)
        return complete(fields)

    server.complete = interfere
    watcher = make_watcher(training, problems, server.url)
    assert watcher.watch(once=True) == [10, 20]
    assert training.evaluations() == [(10, RIGHT["7"]), (20, RIGHT["8"])]
    (lost,) = [line for line in watcher.said if "thrown away" in line]
    assert "does not answer with the weights of step 10: it has the weights of step 20" in lost


class Mortal(CheckpointServer):
    """Dies as a killed process does at its second completion, and another takes its port, with weights of its own."""

    def __init__(self, run, **options):
        self.connections, self.heirs = [], []
        super().__init__(run, device="cpu", **options)

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def complete(self, fields):
        if fields["max_tokens"] == 20 and not self.heirs:
            self.heirs.append(None)
            self.shutdown()
            self.server_close()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.heirs[0] = serve(CheckpointServer(self.run, port=self.server_port, device="cpu"))
            self.heirs[0].put(20)
        return super().complete(fields)

    def handle_error(self, request, client_address):
        pass  # nobody hears its last answers


def test_a_server_that_is_killed_and_started_again_with_other_weights_is_given_the_checkpoint_s(training, problems):
    training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    server = serve(Mortal(training.path))
    watcher = make_watcher(training, problems, server.url)
    assert watcher.watch(once=True) == [10, 20]
    assert training.evaluations() == [(10, RIGHT["7"]), (20, RIGHT["8"])]
    assert [
        line for line in watcher.said if line.startswith("a connection to the server was lost: what it has answered")
    ]
    (heir,) = server.heirs
    heir.shutdown()
    heir.server_close()


def test_a_server_that_is_gone_leaves_its_checkpoint_to_the_next_watcher(training, problems, server):
    training.checkpoint(10, "7")
    watcher = make_watcher(training, problems, server.url)
    watcher.config = watcher.config.model_copy(update={"outage_s": 0.1})
    watcher.engine.config = watcher.config
    for one in watcher.engine.servers:
        one.config = watcher.config
    server.shutdown()
    server.server_close()
    assert watcher.watch(once=True) == []
    assert "connection failed" in watcher.failed[10]
    assert training.evaluations() == []
    with serve(CheckpointServer(training.path, device="cpu")) as other:
        assert make_watcher(training, problems, other.url).watch(once=True) == [10]
        other.shutdown()


def test_only_steps_of_its_run_can_be_named(training, server, tmp_path):
    training.checkpoint(10, "7")
    assert post(server, "/weights", {"step": 10})[0] == 200
    for step in (20, str(tmp_path), "10", None):
        status, reply = post(server, "/weights", {"step": step})
        assert (status, "has no model of step" in reply["error"]["message"]) == (409, True)
    assert post(server, "/weights", {"path": str(training.path / "checkpoints" / "step-10" / "model")})[0] == 409
    assert post(server, "/weights", {"step": 10}, kind="text/plain")[0] == 400  # as a page in a browser may send it
    assert weights(server)["step"] == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": 1}, "does not know logprobs"),
        ({"n": 2}, "n must be 1"),
        ({"prompt": ""}, "and not empty"),
        ({"prompt": [1, 10_000]}, "does not know"),
        ({"prompt": [1] * 64}, "no room for a completion"),
        ({"temperature": -1.0}, "temperature >= 0"),
    ],
)
def test_what_it_cannot_do_is_refused_not_ignored(training, server, fields, message):
    training.checkpoint(10, "7")
    server.put(10)
    status, reply = post(server, "/v1/completions", {"prompt": "x", "max_tokens": 4, **fields})
    assert (status, message in reply["error"]["message"]) == (400, True), reply


def test_before_it_has_weights_it_gives_no_completions(server):
    assert post(server, "/v1/completions", {"prompt": "x"})[0] == 409


# --- vLLM -----------------------------------------------------------------------------------------


def random_checkpoints(training, steps, by=None):
    """Checkpoints of random weights; with ``by``, each differs from the one before by this factor."""
    for step in steps:
        folder = training.checkpoint(step, "7") / "model"
        beside = training.path / "checkpoints" / f"step-{steps[0]}" / "model"
        save_random(folder, step, beside=None if by is None or step == steps[0] else beside, by=by or 0.0)


def test_vllm_is_given_the_folder_of_each_checkpoint_and_an_empty_cache(training, problems, tmp_path):
    random_checkpoints(training, (10, 20))
    local = FakeTraining(tmp_path / "local", problems)
    random_checkpoints(local, (10, 20))
    server = StandIn(save_random(tmp_path / "base", 0))
    watcher = make_watcher(training, problems, server.url)
    assert watcher.watch(once=True) == make_watcher(local, problems).watch(once=True) == [10, 20]
    assert server.paths == [(training.path / "checkpoints" / f"step-{step}" / "model").resolve() for step in (10, 20)]
    assert server.others == 2 * ["/pause?mode=abort", "/reset_prefix_cache", "/resume"]
    assert completions(training, 10) == completions(local, 10) != completions(local, 20) == completions(training, 20)


def test_a_server_that_says_yes_and_keeps_its_weights_is_found_out(training, problems, tmp_path):
    random_checkpoints(training, (10, 20))
    watcher = make_watcher(training, problems, StandIn(save_random(tmp_path / "base", 0), ignores=True).url)
    assert watcher.watch(once=True) == training.evaluations() == []
    assert "nats from those of the checkpoint, where rounding explains at most 0.001" in watcher.failed[10]


def test_it_is_found_out_too_where_checkpoints_differ_by_less_than_rounding_might_explain(training, problems):
    random_checkpoints(training, (10, 20), by=1e-4)
    server = StandIn(training.path / "checkpoints" / "step-10" / "model", ignores=True)
    watcher = make_watcher(training, problems, server.url)
    assert watcher.watch(once=True) == [10]
    assert "and nearer to those of the checkpoint before" in watcher.failed[20]
    assert [step for step, _ in training.evaluations()] == [10]


def test_a_head_that_vllm_would_keep_on_a_cpu_is_refused(training, problems, tmp_path):
    folder = training.checkpoint(10, "7") / "model"
    tied = make_model("qwen2", "sdpa")
    tied.resize_token_embeddings(load_tokenizer(folder).vocab_size)
    tied.save_pretrained(folder)
    watcher = make_watcher(training, problems, StandIn(folder, device="cpu").url)
    assert watcher.watch(once=True) == []
    assert "keeps its output head" in watcher.failed[10]


def test_an_adapter_reaches_vllm_merged_into_its_base(make_recipe, tmp_path, problems):
    pytest.importorskip("peft")
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null"))
    run(base)
    lora = json.dumps({"path": str(base.output / "model"), "lora": {"rank": 2}})
    changed = (f"model={lora}", "optimizer.lr=1e-1", "train.steps=4", "train.checkpoint_every=2")
    recipe, _ = make_recipe("lora", (*changed, f"data.prepared={tmp_path / 'tuned'}"))
    run(recipe)
    server = StandIn(base.output / "model")
    config = EvaluateConfig(benchmarks=(str(problems),), max_tokens=8, server=(server.url,))
    assert Watcher(recipe.output, config, say=lambda line: None).watch(once=True) == [2, 4]
    assert [path.name for path in server.paths] == [".merged-step-2", "model"]
    assert not server.paths[0].exists()
    rows = read_jsonl(recipe.output / "evals" / "step-2" / "sums.greedy.jsonl")
    files = find_files(str(recipe.output / "checkpoints" / "step-2" / "adapter"))
    merged = load_engine(files.folder, adapter=files.adapter, device="cpu")
    prompts = [tuple(merged.tokenizer.encode(row["prompt"])) for row in rows]
    requests = [Request(row["id"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
    expected = merged.generate(requests, Sampling(8, end_token_ids=merged.end_token_ids))
    assert [row["completion"] for row in rows] == [done.text for done in expected]


def vllm_here():
    """The vllm command, or the python, of an environment that has it."""
    return find_vllm(Path(os.environ["DFTUNE_VLLM"])) if "DFTUNE_VLLM" in os.environ else find_vllm()


@pytest.mark.slow
@pytest.mark.skipif(vllm_here() is None, reason="no vLLM: make serve-env, or DFTUNE_VLLM=/path/to/its/python")
def test_vllm_itself_gives_what_the_model_loaded_by_the_watcher_gives(training, problems, tmp_path):
    local = FakeTraining(tmp_path / "local", problems)
    for one in (training, local):
        random_checkpoints(one, (10, 20))
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    more = ["--dtype", "float32", "--max-model-len", "256"]
    with serving(save_random(tmp_path / "base", 0), vllm=vllm_here(), variables=variables, more=more) as url:
        assert make_watcher(training, problems, url).watch(once=True) == [10, 20]
    assert make_watcher(local, problems).watch(once=True) == [10, 20]
    for step in (10, 20):
        pairs = zip(completions(training, step), completions(local, step), strict=True)
        assert all(_same(*pair) for pair in pairs)
    assert not _same(completions(training, 10)[0], completions(training, 20)[0])


def _same(one, other):
    """Whether completions are equal, but for the half of a character that vLLM leaves out at the end."""
    return [one[0], one[1].rstrip("\ufffd"), *one[2:]] == [other[0], other[1].rstrip("\ufffd"), *other[2:]]


# --- what is refused ------------------------------------------------------------------------------


def test_servers_that_keep_their_weights_are_refused_at_once(training, problems, tmp_path):
    random_checkpoints(training, (10,))
    folder = training.path / "checkpoints" / "step-10" / "model"
    with pytest.raises(ValueError, match="start it with VLLM_SERVER_DEV_MODE=1"):
        make_watcher(training, problems, StandIn(folder, dev_mode=False).url)
    other = ScriptedServer(load_engine(folder, device="cpu").tokenizer)
    with pytest.raises(ValueError, match="neither vLLM nor `dftune serve RUN --swap`"):
        make_watcher(training, problems, other.url)
    other.close()
    with pytest.raises(ValueError, match="Start it before the watcher"):
        make_watcher(training, problems, other.url)


def test_a_recipe_names_servers_for_its_watcher(make_recipe):
    asked = ("watch.enabled=true", "evaluate.benchmarks=[sums.jsonl]")
    url = "http://127.0.0.1:8000/v1"
    recipe, _ = make_recipe(overrides=(*asked, f"watch.server=[{url}/]"))
    check_watch(recipe)
    assert with_servers(recipe.evaluate, recipe.watch.server).server == (url,)
    with pytest.raises(ValueError, match="not a base URL"):
        make_recipe(overrides=(*asked, "watch.server=[127.0.0.1]"))


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_two_commands_find_each_other(training, problems):
    training.checkpoint(10, "7")
    training.end(20, "8")
    serve_run = [sys.executable, "-m", "dftune", "serve", str(training.path), "--swap", "--transformers"]
    process = subprocess.Popen(
        [*serve_run, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = process.stdout.readline().strip()
    watch_run = [sys.executable, "-m", "dftune", "watch", str(training.path), "--server", url]
    done = subprocess.run(watch_run, capture_output=True, text=True, check=False, timeout=300)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert (done.returncode, process.returncode) == (0, 0), done.stderr
    assert training.evaluations() == [(10, RIGHT["7"]), (20, RIGHT["8"])]
    assert done.stderr.splitlines()[-1] == "2 evaluated, 0 models loaded, 2 swapped"
    assert f"dftune watch {training.path} --server {url}" in said


def test_vllm_that_runs_what_it_is_asked_to_stays_on_this_machine(training, tmp_path):
    command = [sys.executable, "-m", "dftune", "serve", str(training.path), "--swap", "--vllm", sys.executable]
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "Leave --host out" in done.stderr) == (2, True)


def test_the_end_of_training_takes_over_what_a_watcher_s_server_found(training, problems, server, make_recipe, capsys):
    training.end(30, "7")
    assert make_watcher(training, problems, server.url).watch() == [30]
    server.shutdown()
    asked = (f"evaluate.benchmarks=[{problems}]", "evaluate.max_tokens=20", "watch.enabled=true")
    recipe, _ = make_recipe(overrides=(*asked, f"watch.server=[{server.url}]"))
    _evaluate(recipe, training.path)
    assert training.evaluations() == [(30, RIGHT["7"])]
    assert "75.0 %" in capsys.readouterr().out
