"""What is always logged, computed from a step's token log-probabilities and weights."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.objectives import Objective
from dftune.train.model import ScoredModel
from dftune.train.step import StepResult, evaluate
from dftune.train.supply import NOTHING, Supply
from dftune.train.tokens import join, join_ranks
from dftune.train.world import ALONE, World

HISTOGRAM_BINS = 50

# Dense bf16 peak of the tensor cores, in FLOP/s, from the makers' data sheets.
PEAK_FLOPS: Mapping[str, float] = {
    "H200": 989e12,
    "H100 SXM": 989e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def token_metrics(result: StepResult, end_token_id: int) -> dict[str, float | None]:
    """NLL, quantiles of p, effective sample size of the weights, end-of-turn probability; formulas in run-folder.md."""
    p = result.logps.exp()
    weights = result.weights.double()
    squares = weights.square().sum()
    ends = p[result.targets == end_token_id]
    return {
        "nll": -result.logps.mean().item(),
        "p_mean": p.mean().item(),
        **_quantiles("p", p),
        "weight_mean": weights.mean().item(),
        **_quantiles("weight", weights),
        "ess": (weights.sum().square() / (len(weights) * squares)).item() if squares > 0 else 0.0,
        "p_eot": ends.mean().item() if len(ends) else None,
        **({} if result.top1_hit is None else {"top1": result.top1_hit.mean().item()}),
        **{name: value.item() for name, value in result.metrics.items()},
    }


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    """``NAME_q10``, ``_q50`` and ``_q90``; of more than 2^23 values, of evenly spaced ones."""
    thinned = values[:: len(values) // 2**23 + 1].float()  # torch.quantile takes no more than 2^24
    found = thinned.quantile(torch.tensor([0.1, 0.5, 0.9], device=values.device)).tolist()
    return {f"{name}_q{percent}": quantile for percent, quantile in zip((10, 50, 90), found, strict=True)}


@torch.no_grad()
def validate(
    model: ScoredModel,
    objective: Objective,
    batches: Iterable[MicroBatch],
    end_token_id: int,
    supply: Supply = NOTHING,
    *,
    world: World = ALONE,
) -> dict[str, Any]:
    """Score held-out examples: NLL, the objective's loss and the histogram of token probabilities.

    The objective sees all held-out examples as one batch, so that its loss does not depend on how they are split.

    Args:
        model: left in the mode it came in.
        objective: its loss is reported beside the NLL; what it would keep by example is forgotten.
        batches: micro-batches of the held-out examples, this rank's share of them, on the model's device.
        end_token_id: the end-of-turn token.
        supply: what the objective is given; the policy itself stands for the old policy.
        world: the ranks that share the examples.

    Returns:
        The ``validation`` row of events.jsonl, without kind, step and time.
    """
    was_training = model.training
    model.eval()
    supply = replace(supply, old_logps=None)
    found, parts, targets, num_units = [], [], [], 0
    for batch in batches:
        stats, tokens = supply.score(model, objective, batch, stats=frozenset({"entropy", "top1_hit"}))
        found.append((stats.entropy, stats.top1_hit))
        parts.append(tokens)
        targets.append(batch.targets)
        num_units += batch.num_units(objective.unit)
    model.train(was_training)
    (num_units,) = world.sum(num_units)
    tokens, _ = join_ranks(join(parts), world)
    total = evaluate(objective, tokens, supply).total.item()
    if supply.state is not None:
        supply.state.discard()
    columns = zip(targets, *zip(*found, strict=True), strict=True)
    own = [torch.cat(column).cpu() for column in zip(*columns, strict=True)]
    target, entropy, top1 = (torch.cat(column) for column in zip(*world.gather(own), strict=True))
    p = tokens.logps.exp()
    ends = p[(target == end_token_id).to(p.device)]
    return {
        "num_examples": tokens.num_sequences,
        "num_tokens": len(p),
        "nll": -tokens.logps.double().mean().item(),
        "p_mean": p.double().mean().item(),
        "p_eot": ends.mean().item() if len(ends) else None,
        "entropy": entropy.mean().item(),
        "top1": top1.mean().item(),
        "loss": total / num_units,
        "p_histogram": p.float().cpu().histc(HISTOGRAM_BINS, 0.0, 1.0).long().tolist(),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory allocated on a CUDA device, or the process's peak resident set, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def model_flops_utilisation(model: ScoredModel, tokens_per_s: float, device: torch.device) -> float | None:
    """FLOP/s of the model over the device's bf16 peak; None where the peak is not known or compute is not bf16.

        FLOP a token = 4 * parameters + 2 * trained parameters

    Forward and the gradient of the activations take 2 FLOP a parameter each, the gradient of a weight 2 more where it
    is trained. Attention is left out; the embedding is a look-up, and counts only where it is tied to the head.
    """
    if device.type != "cuda" or model.precision != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)
    if peak is None:
        return None
    embedding = model.model.get_input_embeddings().weight
    head = model.model.get_output_embeddings().weight
    counted = [parameter for parameter in model.parameters() if parameter is not embedding or head is embedding]
    parameters = sum(parameter.numel() for parameter in counted)
    trained = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    return (4 * parameters + 2 * trained) * tokens_per_s / peak
