"""How the kernels are launched: split, tiled, and compiled for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.interpreter import assert_passes_under_the_interpreter

pytest.importorskip("triton", reason="the package triton is not installed")

from dftune.ops.triton_head import choose_tiling, tiles_per_split
from dftune.ops.triton_kernels import IS_INTERPRETED

COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dftune.ops import triton_kernels as kernels
from dftune.ops.triton_head import choose_tiling

capability, extras = int(sys.argv[1]), sys.argv[2] == "all"
tiling = choose_tiling(torch.bfloat16, (capability // 10, capability % 10), bare=not extras)
constants = tiling.launch | {
    "HIDDEN": 1536, "HAS_BIAS": extras, "SOFTCAP": extras, "ROUNDED": extras, "INTERPRETED": False,
    "KEEP": True, "ENTROPY": extras, "SQUARES": extras, "stride_d": 1,
} | ({} if extras else {"bias": None, "entropy_slope": None, "offset": None})
types = dict.fromkeys("hidden weight bias kept out".split(), "*bf16") | {"targets": "*i64"} | dict.fromkeys(
    "partials references lse label entropy_slope offset".split(), "*fp32") | dict.fromkeys(
    "num_rows vocab_size stride_v tiles_per_split start width".split(), "i32") | {"inner": "fp32", "outer": "fp32"}
for kernel in (kernels.forward_kernel, kernels.recomputed_slopes_kernel, kernels.kept_slopes_kernel):
    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] in "*i"}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    print("wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none", compiled.metadata.shared)
"""


@pytest.mark.parametrize(
    ("row_blocks", "num_tiles", "num_processors", "tiles"),
    [
        (1, 1187, 132, 2),  # 1056 programs for a single block of rows
        (16, 594, 132, 9),  # 66 splits
        (64, 594, 132, 35),  # 17 splits
        (4096, 594, 132, 64),  # one split would do, but its sums would be long
        (1, 1, 132, 1),
        (0, 5, 1, 1),
    ],
)
def test_few_rows_are_spread_over_the_device(row_blocks, num_tiles, num_processors, tiles):
    assert tiles_per_split(row_blocks, num_tiles, num_processors) == tiles


@pytest.mark.parametrize(
    ("operand", "capability", "shared_kib"),
    [
        (torch.bfloat16, (9, 0), 227),
        (torch.bfloat16, (8, 0), 163),
        (torch.bfloat16, (8, 9), 99),
        (torch.bfloat16, (12, 0), 99),
        (torch.float32, (7, 5), 64),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_a_tiles_operands_fit_the_shared_memory_even_with_float32_weights(operand, capability, shared_kib, bare):
    tiling = choose_tiling(operand, capability, bare=bare)
    stage = tiling.features * (tiling.rows * operand.itemsize + tiling.columns * 4)
    assert stage * (tiling.stages - 1) + tiling.features * tiling.columns * operand.itemsize <= shared_kib * 1024


@pytest.mark.slow
@pytest.mark.skipif(IS_INTERPRETED, reason="this process runs them itself")
def test_the_routes_pass_their_tests_under_the_interpreter():
    assert_passes_under_the_interpreter("tests/ops/test_triton_routes.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "extras", "instruction", "shared_kib"),
    [(80, "all", "mma", 99), (90, "bare", "wgmma", 227), (90, "all", "wgmma", 227)],
)
def test_the_kernels_compile_to_tensor_core_instructions(tmp_path, capability, extras, instruction, shared_kib):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, str(capability), extras]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    forward, recomputed, kept = (line.split() for line in run.stdout.splitlines())
    assert [forward[0], recomputed[0], kept[0]] == [instruction, instruction, "none"]
    assert max(int(forward[1]), int(recomputed[1]), int(kept[1])) <= shared_kib * 1024
