import re
from pathlib import Path

import pytest
from tests.chains import make_tokenizer, save_chain
from tests.generate.scripted_server import ScriptedServer

from dftune.generate.config import ServerConfig

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")


def test_the_page_lists_every_key_with_its_default():
    listed = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    shown = {None: "null", False: "false", (): "none"}
    defaults = {name: field.default for name, field in ServerConfig.model_fields.items()}
    assert listed == {name: shown.get(value) or f"{value:g}" for name, value in defaults.items()}


def test_the_pages_python_generates(tmp_path):
    pytest.importorskip("openai")
    folder = save_chain(tmp_path / "my-model", {"a": {"b": 1.0}})
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "load_server_engine" in block)
    servers = [ScriptedServer(make_tokenizer(), models=[{"id": str(folder)}]) for _ in range(2)]
    for port, server in zip(("8000", "8001"), servers, strict=True):
        block = block.replace(f"http://127.0.0.1:{port}/v1", server.url)
    names = {}
    exec(block.replace("models/my-model", str(folder)), names)
    for server in servers:
        server.close()
    assert names["completion"].finish_reason == "stop"
    assert sum(len(server.bodies) for server in servers) == 1
