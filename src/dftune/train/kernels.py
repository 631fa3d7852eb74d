"""Kernels of optional packages: attention by FlashAttention, and Liger's in place of a model's own layers."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dftune.ops.attention import register
from dftune.ops.route import has_liger
from dftune.ops.varlen import PACKAGES, refusal
from dftune.train.config import ModelConfig
from dftune.train.model import ScoredModel, check_alike, probe, probe_documents

_ROTATION = "apply_rotary_pos_emb"


def check_kernels(config: ModelConfig, device: torch.device, precision: torch.dtype) -> None:
    """Refuse kernels of packages or devices that are not there.

    Args:
        config: the recipe's model section.
        device: of the compute.
        precision: of the compute.

    Raises:
        ValueError: says why, and what to do.
    """
    reason = refusal(config.attention, device, precision)
    if reason is not None:
        install = f": pip install {PACKAGES[config.attention][1]}" if "not installed" in reason else ""
        raise ValueError(f"model.attention is {config.attention}: {reason}{install}. Or set model.attention=auto.")
    if config.kernels == "none":
        return
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("model.kernels is liger: its kernels run on CUDA, and this run is on the CPU. Leave it out.")
    if not has_liger():
        raise ValueError(
            "model.kernels is liger: the package liger-kernel is not installed: pip install 'dftune[gpu]'. Or set "
            "model.kernels=none."
        )


def check_attention(scored: ScoredModel, device: torch.device, *, vocab_size: int) -> None:
    """Compare attention as the recipe has it with attention document by document: for a model that is sharded already.

    ``check_scoring`` sees such a model in CPU memory, before it is sharded, where no kernel of a GPU runs. All ranks
    call this.

    Args:
        scored: sharded or not, without ranks that share its sequences.
        device: of the compute.
        vocab_size: the tokens that are compared are below this.

    Raises:
        ValueError: they disagree.
    """
    model, found = scored.model, _logps(scored, vocab_size, device)
    implementation = model.config._attn_implementation
    model.set_attn_implementation(register("sdpa"))
    try:
        expected = _logps(scored, vocab_size, device)
    finally:
        model.set_attn_implementation(implementation)
    difference = "log-probabilities with the attention of model.attention differ from those document by document"
    check_alike(scored, found, expected, difference, "Its attention is computed")


def use_liger(models: Sequence[ScoredModel], device: torch.device, *, vocab_size: int) -> Callable[[], None]:
    """Put Liger's RMSNorm, gated MLP and rotation in place of the models' own, and compare the log-probabilities.

    Norms and MLPs are replaced in these models alone. The rotation is a function that all models of a family share in
    this process; it is replaced until the returned function is called. All ranks call this.

    Args:
        models: of one architecture, sharded or not; changed in place.
        device: of the compute.
        vocab_size: the tokens that are compared are below this.

    Returns:
        Gives the family its own rotation back.

    Raises:
        ValueError: Liger knows no kernels for the architecture, or they compute something else.
    """
    first, known = models[0], importlib.import_module("liger_kernel.transformers.monkey_patch")
    architecture = first.model.config.model_type
    if architecture not in known.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(
            f"model.kernels is liger, which has no kernels for {architecture}; it has them for "
            f"{', '.join(sorted(known.MODEL_TYPE_TO_APPLY_LIGER_FN))}. Set model.kernels=none."
        )
    before = _logps(first, vocab_size, device)
    undo = _replace([scored.model for scored in models], known._apply_liger_kernel_to_instance)
    torch.compiler.reset()  # what was compiled holds the layers that were there
    difference = "with model.kernels=liger log-probabilities differ from those of the model's own layers"
    try:
        check_alike(first, _logps(first, vocab_size, device), before, difference, "Its layers are computed")
    except ValueError:
        undo()
        raise
    return undo


def _replace(models: Sequence[Any], apply: Callable[..., None]) -> Callable[[], None]:
    """Liger's own patch, of which only the instances and the rotation are kept: its classes would reach every model."""
    family = sys.modules[type(models[0]).__module__]
    own = dict(vars(family))
    for model in models:
        apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    for name, value in own.items():
        if name != _ROTATION and vars(family)[name] is not value:
            setattr(family, name, value)
    return lambda: setattr(family, _ROTATION, own[_ROTATION]) if _ROTATION in own else None


@torch.no_grad()
def _logps(scored: ScoredModel, vocab_size: int, device: torch.device) -> Tensor:
    was_training = scored.model.training
    scored.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            logps: Tensor = scored(probe(probe_documents(vocab_size, device)))
            return logps
    finally:
        scored.model.train(was_training)
