"""Tests of Triton kernels without a GPU."""

import os
import subprocess
import sys
from pathlib import Path


def assert_passes_under_the_interpreter(file: str) -> None:
    """Run a file of tests in a process of its own: Triton decides when it is first imported, for all of a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
