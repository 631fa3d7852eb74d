"""Models out of a run: what was saved is what from_pretrained loads, merged as peft does it, and never when damaged."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from tests.train.runs import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dftune.cli import main
from dftune.train.checkpoint import DamagedCheckpointError
from dftune.train.export import export_run


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits


def loaded(path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(path))


def test_a_checkpoint_and_the_final_model_come_out_as_they_were_saved(make_recipe, tmp_path, capsys):
    recipe, _ = make_recipe()
    folder = run(recipe).path
    assert main(["export", str(folder), str(tmp_path / "final")]) == 0
    assert main(["export", str(folder), str(tmp_path / "third"), "--step", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "third")
    final, third = loaded(tmp_path / "final"), loaded(tmp_path / "third")
    assert torch.equal(final, loaded(folder / "model"))
    assert torch.equal(third, loaded(folder / "checkpoints" / "step-3" / "model"))
    assert not torch.equal(final, third)
    assert AutoTokenizer.from_pretrained(tmp_path / "third").chat_template is not None
    with pytest.raises(ValueError, match="is there already"):
        export_run(folder, tmp_path / "third")
    with pytest.raises(ValueError, match="no checkpoint of step 4; it has models of the steps 3, 6, 8"):
        export_run(folder, tmp_path / "fourth", step=4)
    with pytest.raises(ValueError, match="trains all weights"):
        export_run(folder, tmp_path / "adapter", adapter=True)
    (folder / "checkpoints" / "step-6" / "model" / "config.json").write_text("{}")
    with pytest.raises(DamagedCheckpointError):
        export_run(folder, tmp_path / "sixth", step=6)
    assert not (tmp_path / "sixth").exists()


def test_an_adapter_of_a_step_is_merged_into_its_base_or_comes_out_alone(make_recipe, tmp_path):
    peft = pytest.importorskip("peft")
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null"))
    path = run(base).model
    settings = ("model.scratch=null", f"model.path={path}", "model.lora.rank=4", "optimizer.lr=1e-2")
    recipe, _ = make_recipe("lora", (*settings, f"data.prepared={tmp_path / 'again'}"))
    folder = run(recipe).path
    merged = export_run(folder, tmp_path / "merged", step=6)
    alone = export_run(folder, tmp_path / "alone", step=6, adapter=True)
    by_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), alone)
    torch.testing.assert_close(loaded(merged), logits(by_peft), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loaded(merged), loaded(path))
    template = AutoTokenizer.from_pretrained(folder / "model").chat_template
    assert AutoTokenizer.from_pretrained(merged).chat_template == template
    final = export_run(folder, tmp_path / "final", adapter=True)
    assert (final / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("repo", "offline", "expected"),
    [
        ("me", "0", "owner/name"),
        ("../me/x", "0", "owner/name"),
        ("me/model", "1", "HF_HUB_OFFLINE is set"),
        ("me/model", "0", "does not answer"),
    ],
)
def test_a_push_that_cannot_be_made_is_refused_before_anything_is_written(  # noqa: PLR0917
    monkeypatch, tmp_path, capsys, repo, offline, expected
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline == "1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["export", "runs/none", str(tmp_path / "out"), "--push-to-hub", repo]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files asks for; what arrives is kept."""

    def do_HEAD(self) -> None:
        self.answer({})

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.seen.append((path, self.headers["Authorization"], body))
        name = "/api/models/me/model"
        if path == "/api/repos/create":
            self.answer({"url": "https://huggingface.co/me/model", "name": "me/model"})
        elif path.startswith(f"{name}/preupload"):
            files = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        else:
            assert path.startswith(f"{name}/commit")
            self.answer({"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1"})

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_makes_a_private_repository_and_commits_the_files_that_were_exported(make_recipe, tmp_path, capsys, hub):
    recipe, _ = make_recipe(overrides=("train.steps=2",))
    folder, output = run(recipe).path, tmp_path / "out"
    assert main(["export", str(folder), str(output), "--push-to-hub", "me/model"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "https://huggingface.co/me/model/commit/1"
    assert "hf_of_the_test" not in said.out + said.err
    (create, *_, commit) = hub.seen
    assert {token for _, token, _ in hub.seen} == {"Bearer hf_of_the_test"}
    asked = json.loads(create[2])
    assert asked.get("private") is True or asked.get("visibility") == "private"  # older clients and newer ones
    rows = [json.loads(line) for line in commit[2].splitlines()]
    sent = {row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows if row["key"] == "file"}
    assert sent == {file.name: file.read_bytes() for file in output.iterdir()}
