"""The optimizer and the learning rate as a function of the step."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from dftune.train.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices only: norms, biases and other vectors are not decayed.

    sgd has no momentum, and its decay is decoupled as AdamW's is: without momentum both are the same.

    Raises:
        ValueError: bitsandbytes is asked for and missing.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw_8bit":
        require_bitsandbytes("optimizer.name=adamw_8bit", "optimizer.name=adamw")
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: PLC0415  (optional)

        eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **settings)
        return eight_bit
    fused = config.name == "adamw_fused" or trained[0].device.type == "cuda"
    return torch.optim.AdamW(groups, **settings, fused=fused)


def require_bitsandbytes(what: str, instead: str) -> None:
    """Refuse to start without bitsandbytes.

    Args:
        what: the setting that needs it.
        instead: one that does not.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{what} needs bitsandbytes, which is not installed: pip install 'dftune[quantize]'. Or set {instead}."
        )


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The rate of a step.

    Linear warm-up over the first W = round(warmup_ratio * num_steps) steps, the rate of step s being (s + 1) / W of
    the peak; then, with f = min_lr_ratio and x in [0, 1) the share of the remaining steps done,

        cosine    f + (1 - f) (1 + cos(pi x)) / 2
        linear    1 - (1 - f) x
        constant  1
        wsd       1, then linear down to f over the last decay_ratio * num_steps steps

    Args:
        step: from 0.
        num_steps: steps of the whole run.
        config: peak and shape.
    """
    warmup = round(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    floor = config.min_lr_ratio
    if config.schedule == "cosine":
        factor = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    elif config.schedule == "linear":
        factor = 1 - (1 - floor) * done
    elif config.schedule == "wsd":
        decay = max(1, round(config.decay_ratio * num_steps))
        factor = min(1.0, floor + (1 - floor) * (num_steps - step) / decay)
    else:
        factor = 1.0
    return config.lr * factor
