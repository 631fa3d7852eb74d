"""Where the tests of the Triton kernels run: under Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from tests.ops.scorer_inputs import Inputs

pytest.importorskip("triton", reason="the package triton is not installed")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def require(name: str) -> torch.device:
    """The device, or a skip."""
    from dftune.ops.triton_kernels import IS_INTERPRETED  # noqa: PLC0415  (Triton may be absent)

    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if name == "cpu" and not IS_INTERPRETED:
        pytest.skip("without TRITON_INTERPRET=1; a slow test runs these in a process that has it")
    return torch.device(name)


def place(inputs: Inputs, device: torch.device) -> Inputs:
    """The same numbers on a device, as new leaves."""
    hidden, weight, bias = (
        None if leaf is None else leaf.detach().to(device).requires_grad_(leaf.requires_grad)
        for leaf in (inputs.hidden, inputs.weight, inputs.bias)
    )
    assert hidden is not None
    assert weight is not None
    rest = (tensor.to(device) for tensor in (inputs.upstream, inputs.entropy_upstream))
    return Inputs(hidden, weight, bias, inputs.targets.to(device), inputs.options, *rest)
