"""Scoring by Liger's fused linear cross-entropy: its own kernels on Hopper, elsewhere its fallback in torch."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dftune.ops.plain import plain
from dftune.ops.recompute import recompute
from dftune.ops.scoring import HeadOptions, Scoring, TokenStats
from dftune.ops.stats import check_targets

_HOPPER = (9, 0)
_NO_TARGET = -100  # Liger's ignore index; a target of -100 is refused before it gets there


def liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score with ``LigerFusedLinearScaledCrossEntropyFunction`` of liger-kernel; four matrix products, any upstream.

    With bfloat16 on Hopper these are its CuTe kernels. They round logits to float16 on the way to the softmax, and add
    dW up in bfloat16, over blocks of 1,024 tokens. Elsewhere it is Liger's chunked fallback in torch, which rounds the
    logits to the operands' dtype. dW is formed whether or not the weight needs it.

    Liger gives the log-probabilities alone. Other statistics are gathered by *recompute*'s forward, one more matrix
    product, and carry no gradient. Arguments as for :func:`dftune.ops.recompute.recompute`.

    Raises:
        ValueError: what Liger cannot compute as the other routes do, see :func:`refusals`; or it is not installed.
    """
    operand = scoring.options.operand(hidden, weight)
    differentiable = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    reasons = refusals(
        scoring.options,
        operand,
        hopper=on_hopper(hidden.device),
        has_bias=bias is not None,
        entropy_gradient=differentiable and "entropy" in scoring.stats,
    )
    if reasons:
        raise ValueError(f"route='liger' cannot score this: {'; '.join(reasons)}. Use route='auto'.")
    function = _function(hidden.device)
    if not len(hidden):
        return plain(hidden, weight, bias, scoring)
    check_targets(scoring.targets, weight.shape[0])
    scale = 1.0 if scoring.options.logit_scale is None else scoring.options.logit_scale
    left, right = hidden.to(operand), weight.to(operand)
    with torch.autocast(hidden.device.type, enabled=False):
        nll = function.apply(left, right, scoring.targets, scoring.options.temperature / scale, _NO_TARGET)
    if not scoring.stats:
        return TokenStats(-nll)
    with torch.no_grad():
        others = recompute(hidden, weight, bias, scoring)
    return replace(others, logps=-nll)


def on_hopper(device: torch.device) -> bool:
    """Whether Liger has kernels of its own for the device."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) == _HOPPER


def refusals(
    options: HeadOptions, operand: torch.dtype, *, hopper: bool, has_bias: bool, entropy_gradient: bool
) -> list[str]:
    """Why Liger would compute something else than the other routes; empty where it would not.

    Args:
        options: of the head.
        operand: of the matrix products.
        hopper: whether its kernels would run; otherwise its fallback does.
        has_bias: of the head.
        entropy_gradient: whether the entropy is asked for, and so can receive a gradient.
    """
    positive = options.logit_scale is None or options.logit_scale > 0
    rounded = operand == torch.bfloat16 and options.logits_dtype != torch.bfloat16
    found = {
        "the head has a bias": has_bias,
        "the head has a soft-cap": options.softcap is not None,
        f"logit_scale is {options.logit_scale}, and must be positive": not positive,
        "it gives the entropy no gradient": entropy_gradient,
        f"its kernels read bfloat16, not {operand}": hopper and operand != torch.bfloat16,
        f"it computes in float32, not {operand}": not hopper and operand not in (torch.float32, torch.bfloat16),
        "off Hopper it rounds logits to bfloat16 (logits_dtype=torch.bfloat16 accepts that)": not hopper and rounded,
    }
    return [reason for reason, holds in found.items() if holds]


def _function(device: torch.device) -> Any:
    """Liger's autograd function. It returns the NLL, (tokens,) float32, for any upstream gradient."""
    if on_hopper(device) and importlib.util.find_spec("cutlass") is None:
        raise ValueError(
            "route='liger' needs CUTLASS's Python package for Liger's Hopper kernels, which is not installed: "
            "pip install 'liger-kernel[cutedsl]'. Or use route='auto'."
        )
    try:
        module = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")  # 6 s
    except ImportError as error:
        raise ValueError(
            f"route='liger' needs liger-kernel 0.8.5 or later ({error}): pip install 'liger-kernel>=0.8.5'. "
            "Or use route='auto'."
        ) from error
    return module.LigerFusedLinearScaledCrossEntropyFunction
