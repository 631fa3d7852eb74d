"""FlashAttention: how its packages are called for a packed row, and where it is refused."""

import importlib
import importlib.util
import sys

import pytest
import torch
from torch import nn

from dftune.ops.attention import document_attention
from dftune.ops.varlen import PACKAGES, AttentionOptions, flash, refusal

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
STARTS = [0, 9, 10, 17]
# flash_attn_varlen_func as FlashAttention documents it: packed (tokens, heads, size), the window's ends inclusive,
# queries in groups over the heads of the keys. The package itself runs on CUDA alone.
STAND_IN = """
import torch

def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None,
                           causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False):
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == max(torch.diff(cu_seqlens_q)).item()
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    out = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist()):
        groups = q.shape[1] // k.shape[1]
        queries = q[start:end]
        keys, values = (x[start:end].repeat_interleave(groups, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", queries, keys) * scale
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)[None, :]
        left, right = window_size
        seen = (back >= 0) if causal else torch.ones_like(back, dtype=torch.bool)
        seen &= (back <= left) if left >= 0 else True
        seen &= (-back <= right) if right >= 0 else True
        out.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, float("-inf")).softmax(-1), values))
    return torch.cat(out)

flash_attn_func = flash_attn_with_kvcache = None
"""


def rows(dtype=torch.float32, device=CPU):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, STARTS[-1], 8) for heads in (4, 2, 2))
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """FlashAttention 3 as a module that runs on a CPU."""
    utils = importlib.import_module("transformers.modeling_flash_attention_utils")
    (tmp_path / "flash_attn_interface.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn"):
        monkeypatch.setattr(utils, name, None)
    for name in ("_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):
        monkeypatch.setattr(utils, name, None)
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    yield
    sys.modules.pop("flash_attn_interface", None)


@pytest.mark.parametrize(
    "options", [{}, {"scaling": 0.2}, {"window": 4}, {"softcap": 2.0}, {"window": 3, "softcap": 2.0, "scaling": 0.5}]
)
def test_a_packed_row_given_to_flash_attention_is_its_documents_one_by_one(package, options):
    bounds, upstream = torch.tensor(STARTS, dtype=torch.int32), torch.randn(1, 17, 4, 8)
    own = rows()
    out = flash(
        "flash_attention_3", *(x.transpose(1, 2) for x in own), (bounds, 9), options=AttentionOptions(**options)
    )
    renamed = {"sliding_window" if name == "window" else name: value for name, value in options.items()}
    wanted, _ = document_attention(nn.Module(), *own, None, document_starts=STARTS, kernel="sdpa", **renamed)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    found, expected = (torch.autograd.grad(result, own, upstream) for result in (out, wanted))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_that_flash_attention_3_would_leave_out_is_refused(package):
    bounds = torch.tensor(STARTS, dtype=torch.int32)
    with pytest.raises(ValueError, match="has no dropout"):
        flash("flash_attention_3", *rows(), (bounds, 9), options=AttentionOptions(dropout=0.1))


@pytest.mark.parametrize(
    ("kernel", "device", "precision", "reason"),
    [
        ("auto", CPU, torch.float32, None),
        ("sdpa", CPU, torch.float32, None),
        ("flash_attention_2", CPU, torch.bfloat16, "runs on CUDA, and this run is on the CPU"),
        ("flash_attention_3", CUDA, torch.float32, "computes in 16 bits"),
    ],
)
def test_a_kernel_is_refused_where_it_cannot_run(kernel, device, precision, reason):
    found = refusal(kernel, device, precision)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("kernel", PACKAGES)
def test_a_kernel_whose_package_is_missing_is_refused_by_its_name(kernel):
    module, package, _ = PACKAGES[kernel]
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{package} is installed")
    assert refusal(kernel, CUDA, torch.bfloat16) == f"the package {package} is not installed"


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kernel", ["auto", *PACKAGES])
def test_on_a_gpu_each_kernel_attends_as_scaled_dot_product_attention_does(kernel, autocast):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if (reason := refusal(kernel, CUDA, torch.bfloat16)) is not None:
        pytest.skip(reason)
    own = rows(torch.float32 if autocast else torch.bfloat16, CUDA)
    bounds = torch.tensor(STARTS, dtype=torch.int32, device=CUDA)
    arguments = {"document_starts": STARTS, "cu_seq_lens_q": bounds, "max_length_q": 9}
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found, wanted = (
            document_attention(nn.Module(), *own, None, kernel=one, **arguments)[0] for one in (kernel, "sdpa")
        )
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
