"""When the scorer takes its Triton kernels, and that nothing else of it needs Triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dftune.ops.route import has_triton
from dftune.ops.token_logps import token_logps


def _python(code: str) -> str:
    """What a fresh interpreter prints, with kernels that would be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_scoring_on_cpu_does_not_import_the_kernels():
    code = """if True:
        import sys, torch
        from dftune.ops.token_logps import token_logps
        hidden, weight = torch.ones(600, 4, requires_grad=True), torch.ones(500, 4, requires_grad=True)
        token_logps(hidden, weight, torch.zeros(600, dtype=torch.int64)).sum().backward()
        print([name for name in sys.modules if name.startswith("dftune.ops.triton")])
    """
    assert _python(code) == "[]"


@pytest.mark.skipif(not has_triton(), reason="the package triton is not installed")
def test_compiled_kernels_refuse_cpu_tensors():
    code = """if True:
        import torch
        from dftune.ops.token_logps import token_logps
        try:
            token_logps(torch.ones(2, 4), torch.ones(5, 4), torch.tensor([0, 1]), route="triton")
        except ValueError as error:
            print(error)
    """
    assert _python(code) == "Triton kernels want CUDA tensors; found cpu tensors. Use route='auto'."


@pytest.mark.skipif(has_triton(), reason="the package triton is installed")
def test_forcing_the_kernels_without_triton_names_the_package():
    with pytest.raises(ValueError, match="needs the package triton"):
        token_logps(torch.ones(2, 4), torch.ones(5, 4), torch.tensor([0, 1]), route="triton")
