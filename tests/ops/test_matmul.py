"""The scorer's matrix products: exact float32, reused buffers, nobody's global settings changed."""

import pytest
import torch
from tests.ops.scorer_inputs import relative_error

from dftune.ops.matmul import Buffers, add_product, onednn_keeps_float32, product, set_product

CPU = torch.device("cpu")


def _operands(rows=700, inner=500, columns=600, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((rows, inner), (inner, columns)))
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_large_float32_product_is_exact_whichever_kernel_runs(precision):
    """bfloat16 operands would give 2e-3, TF32 3e-4."""
    a, b = _operands()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        found = product(a, b, torch.empty(700, 600))
    finally:
        torch.set_float32_matmul_precision(before)
    allowed = 1e-6 if precision == "highest" or onednn_keeps_float32() else 1e-2
    assert relative_error(found, a.double() @ b.double()) < allowed


def test_the_math_mode_is_restored_also_after_an_error():
    setting = torch.backends.mkldnn.matmul.fp32_precision
    a, b = _operands()
    product(a, b, torch.empty(700, 600))
    with pytest.raises(RuntimeError):
        product(a, b[:-1], torch.empty(700, 600))
    assert torch.backends.mkldnn.matmul.fp32_precision == setting
    assert torch.get_float32_matmul_precision() == "highest"  # torch itself finds its settings consistent


def test_a_sum_of_bfloat16_products_is_kept_in_float32():
    """A bfloat16 sum stops growing at 256: adding 1 to it rounds back."""
    total, buffers = torch.zeros(2, 3), Buffers(CPU)
    ones = torch.ones(2, 1, dtype=torch.bfloat16)
    for _ in range(1000):
        add_product(total, ones, torch.ones(1, 3, dtype=torch.bfloat16), buffers)
    assert torch.equal(total, torch.full((2, 3), 1000.0))


@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_a_product_is_written_in_any_dtype(operand, out):
    a, b = _operands(20, 30, 40, operand)
    found = torch.empty(20, 40, dtype=out)
    set_product(found, a, b, Buffers(CPU))
    narrow = torch.bfloat16 in (operand, out)
    assert relative_error(found, a.double() @ b.double()) < (3e-3 if narrow else 1e-6)


def test_buffers_are_reused_and_grow():
    buffers = Buffers(CPU)
    first = buffers.take("tile", (4, 5), torch.float32)
    again = buffers.take("tile", (2, 3), torch.float32)
    assert again.shape == (2, 3)
    assert again.is_contiguous()
    assert again.data_ptr() == first.data_ptr()
    assert buffers.take("other", (4, 5), torch.float32).data_ptr() != first.data_ptr()
    assert buffers.take("tile", (4, 5), torch.bfloat16).dtype == torch.bfloat16
    assert buffers.take("tile", (40, 50), torch.float32).shape == (40, 50)
