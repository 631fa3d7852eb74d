"""Per-token log-probabilities from hidden states: the scorer that every objective stands on."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
) -> Tensor:
    """Log-probability of each target under the language-model head, computed in float32.

        z_t   = logit_scale * (W h_t + bias)
        z_t   = softcap * tanh(z_t / softcap)        where a soft-cap is given
        log p = z_t[y_t] / temperature - logsumexp(z_t / temperature)

    This is the *plain* route: it holds the (tokens, vocab) logits. It is the reference that any faster route
    must equal in value and gradient.

    Args:
        hidden: (tokens, hidden), any floating dtype; rows at supervised positions only.
        weight: (vocab, hidden), the head.
        targets: (tokens,) int64, the token that each row should predict (already shifted).
        bias: (vocab,), of the head.
        temperature: divides the logits last.
        softcap: bound of the logits, as in Gemma 2.
        logit_scale: multiplies the logits first, as in Cohere and Granite models.

    Returns:
        (tokens,) float32, differentiable in ``hidden``, ``weight`` and ``bias``.

    Raises:
        ValueError: the shapes do not fit, or ``temperature`` or ``softcap`` is not positive.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"token_logps wants hidden (tokens, hidden), weight (vocab, hidden), targets (tokens,); "
            f"found {tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}."
        )
    if temperature <= 0 or (softcap is not None and softcap <= 0):
        raise ValueError(f"temperature and softcap must be positive; found {temperature} and {softcap}.")
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.float() @ weight.float().T
        if bias is not None:
            logits = logits + bias.float()
        if logit_scale is not None:
            logits = logits * logit_scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if temperature != 1.0:
            logits = logits / temperature
        chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        return chosen - logits.logsumexp(1)
