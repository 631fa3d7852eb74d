"""`dftune prepare`, killed, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

NUM_ROWS = 3000


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with a tokenizer to be trained and a benchmark to be compared with: every stage of the work."""
    rows = [
        {
            "id": f"r{n}",
            "problem": f"Ann has {n} pens and {n % 89} cups; how many things?",
            "solution": f"\\boxed{{{n + n % 89}}}",
        }
        for n in range(NUM_ROWS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bench.jsonl").write_text(
        json.dumps({"id": "b", "problem": "Ann has 7 pens and 7 cups; how many things?", "answer": "14"}) + "\n"
    )
    values = {
        "name": "killed",
        "data": {
            "source": str(tmp_path / "rows.jsonl"),
            "prompt_format": "plain",
            "max_length": 128,
            "validation": 50,
            "prepared": str(tmp_path / "prepared"),
        },
        "model": {"scratch": {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1}},
        "objective": {"name": "sft"},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1},
        "evaluate": {"benchmarks": [str(tmp_path / "bench.jsonl")]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dftune", "prepare", str(recipe)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(recipe: Path) -> dict[str, bytes]:
    process = start(recipe)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return files_of(recipe.parent / "prepared")


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_while_it_writes_it_leaves_no_dataset_and_then_the_bytes_of_an_unbroken_run(
    recipe: Path, tmp_path: Path
) -> None:
    process = start(recipe)
    while not list(tmp_path.glob(".prepared.*.tmp")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    kill(process)
    assert not (tmp_path / "prepared").exists()
    after = finish(recipe)
    (tmp_path / "prepared").rename(tmp_path / "of-the-killed")
    assert after == finish(recipe)
    assert json.loads(after["manifest.json"])["counts"]["dropped"]["benchmark problem"]["count"] == 1


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    expected = finish(recipe)
    seconds = time.monotonic() - began
    for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97):
        (tmp_path / "prepared").rename(tmp_path / f"before-{share}")
        process = start(recipe)
        time.sleep(share * seconds)
        kill(process)
        assert not (tmp_path / "prepared").exists() or files_of(tmp_path / "prepared") == expected
        assert finish(recipe) == expected
