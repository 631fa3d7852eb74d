"""The benchmarks run: their code paths, at sizes that say nothing about speed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_head_is_measured_and_what_cannot_run_here_is_left_out_with_the_reason(tmp_path):
    output = tmp_path / "found.json"
    size = ("--quick", "--tokens", "16", "--dtypes", "bfloat16", "--repeats", "1", "--threads", "1")
    backends = ("--only", "one pass, bf16 logits", "triton", "liger")
    done = run("token_logps.py", *size, *backends, "--output", str(output), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    (row,) = found["results"]
    assert row["backend"] == "one pass, bf16 logits"
    assert 0 < row["gradient_error"] < 0.05
    assert row["cpu_s"] > 0
    assert set(found["skipped"]) == {"triton, bfloat16", "liger, bfloat16"}
    for name, reason in found["skipped"].items():
        assert f"left out: {name}: {reason}" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", ["token_logps.py", "train_step.py", "scaling.py"])
def test_without_a_gpu_the_gpu_s_shapes_are_refused(script):
    done = run(script, "--device", "cuda")
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (the extra `trl`)")
def test_a_whole_run_is_compared_with_trl():
    done = run("train_step.py", "--only", "tiny", "--steps", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [line.split("|")[2].strip() for line in lines] == ["trl", "ours", "ours / trl"]
    assert all(line.count("|") == 7 for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (the extra `trl`)")
def test_switches_are_measured_beside_trl_and_recorded(tmp_path):
    record = tmp_path / "results.md"
    switches = ("--compile", "no", "--recompute", "full", "--scorer", "fused", "plain")
    size = ("--shapes", "tiny", "--tokens", "128", "--steps", "1")
    done = run("scaling.py", *size, *switches, "--record", str(record))
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if "| tiny" in line]
    assert [row[3] for row in rows] == ["ours", "ours", "trl", "best ours / best trl"]
    assert [row[6] for row in rows[:3]] == ["fused", "plain", ""]
    for row in rows[:3]:
        assert float(row[9].replace(",", "")) > 0 and float(row[11].replace(",", "")) > 0
    assert record.read_text() == done.stdout
