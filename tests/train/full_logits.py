"""The losses once more, from full logits, one example at a time, under plain autograd: what the engine must equal."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dftune.data.batches import Example


@dataclass
class Scored:
    """One example: the log-probabilities of the vocabulary at its supervised positions, and the targets."""

    log_probs: Tensor
    targets: Tensor

    @property
    def logps(self) -> Tensor:
        return self.log_probs.gather(1, self.targets[:, None]).squeeze(1)


def score(model, examples: list[Example]) -> list[Scored]:
    """Each example by itself through the model's own eager attention and head."""
    model.set_attn_implementation("eager")
    found = []
    for example in examples:
        ids = torch.from_numpy(example.input_ids).long()
        log_probs = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        supervised = torch.from_numpy(example.completion_mask[1:])
        found.append(Scored(log_probs[supervised], ids[1:][supervised]))
    return found


class Table:
    """Log-probabilities by example id, as the engine asks for them."""

    def __init__(self, examples: list[Example], scored: list[Scored]) -> None:
        self.rows = {example.id: one.logps.detach() for example, one in zip(examples, scored, strict=True)}

    def of(self, example_ids) -> Tensor:
        return torch.cat([self.rows[name] for name in example_ids])


# Each takes the examples under the model, the reference and the old policy, and returns the mean loss over tokens.


def mean(losses: list[Tensor]) -> Tensor:
    return torch.cat(losses).mean()


def eaft(model, reference, old):
    losses = []
    for one in model:
        top = one.log_probs.detach().exp().topk(20, dim=1).values
        top = top / top.sum(1, keepdim=True)
        losses.append((top * top.log()).sum(1) / math.log(20) * one.logps)
    return mean(losses)


def deft(model, reference, old):
    exponents = [one.log_probs.detach().exp().square().sum(1) for one in model]
    return mean([(1 - one.logps.exp() ** a) / a for one, a in zip(model, exponents, strict=True)])


def deft_cayley(model, reference, old):
    logps = torch.cat([one.logps for one in model])
    p = logps.exp()
    start = p.detach().mean() / 2
    a = start + (1 - start) * p.detach() / (2 - p.detach())
    return ((1 - p**a) / a).mean()


def talr(model, reference, old):
    tau = torch.quantile(torch.stack([-one.logps.detach().mean() for one in model]), 0.5)
    return mean([-(one.logps.detach().exp() ** (1 / tau)).clamp(min=0.01) * one.logps for one in model])


def iw_sft(model, reference, old):
    losses = []
    for one, base in zip(model, reference, strict=True):
        weight = (one.logps - base.logps).mean().exp().clamp(max=16).detach()
        losses.append(-weight * one.logps)
    return mean(losses)


def prior_ft(model, reference, old):
    return mean([-base.logps.detach().exp() * one.logps for one, base in zip(model, reference, strict=True)])


def asft(model, reference, old):
    losses = []
    for one, base in zip(model, reference, strict=True):
        kl = torch.nn.functional.kl_div(one.log_probs, base.log_probs.detach(), reduction="none", log_target=True)
        losses.append(-one.logps.detach().exp() * one.logps + 0.1 * kl.sum(1))
    return mean(losses)


def asft_k3(model, reference, old):
    losses = []
    for one, base in zip(model, reference, strict=True):
        ratio = (base.logps.detach() - one.logps).exp()
        losses.append(-one.logps.detach().exp() * one.logps + 0.1 * (ratio - 1 - ratio.log()))
    return mean(losses)


def psft(model, reference, old):
    ratios = [(one.logps - before.logps.detach()).exp() for one, before in zip(model, old, strict=True)]
    return mean([-torch.minimum(ratio, ratio.clamp(0.72, 1.28)) for ratio in ratios])


LOSSES = {
    "eaft": (eaft, {}),
    "deft": (deft, {}),
    "deft cayley": (deft_cayley, {"exponent": "cayley"}),
    "talr": (talr, {}),
    "iw_sft": (iw_sft, {}),
    "prior_ft": (prior_ft, {}),
    "asft": (asft, {}),
    "asft k3": (asft_k3, {"kl": "k3"}),
    "psft": (psft, {}),
}
