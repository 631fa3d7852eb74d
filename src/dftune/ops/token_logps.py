"""Per-token log-probabilities from hidden states: the scorer that every objective stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from dftune.ops.frozen_head import frozen_head
from dftune.ops.liger_route import liger
from dftune.ops.one_pass import ChunkObjective, Pass, blocks, one_pass
from dftune.ops.plain import plain
from dftune.ops.recompute import recompute
from dftune.ops.route import (
    ROUTES,
    Route,
    block_rows,
    choose_route,
    default_budget,
    has_triton,
    tile_width,
)
from dftune.ops.scoring import HeadOptions, Scoring, TokenStats
from dftune.ops.stored import stored

__all__ = ["TokenStats", "choose_route", "token_logps", "token_objective", "token_stats"]


class HeadArguments(TypedDict, total=False):
    """Keyword arguments of :func:`token_stats` that the other functions share with it; explained there."""

    bias: Tensor | None
    temperature: float
    softcap: float | None
    logit_scale: float | None
    operand_dtype: torch.dtype | None
    logits_dtype: torch.dtype | None
    route: str
    budget_bytes: int | None


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, **head: Unpack[HeadArguments]) -> Tensor:
    """Log-probability of each target under the language-model head: (tokens,) float32, differentiable.

    :func:`token_stats` without statistics; see there for the arguments and the formula.
    """
    return token_stats(hidden, weight, targets, **head).logps


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    stats: frozenset[str] = frozenset(),
    top_k: int = 20,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    operand_dtype: torch.dtype | None = None,
    logits_dtype: torch.dtype | None = None,
    route: str = "auto",
    budget_bytes: int | None = None,
) -> TokenStats:
    """Log-probability of each target, and statistics of its row of logits, without the (tokens, vocab) logits.

        z_t   = logit_scale * (W h_t + bias)
        z_t   = softcap * tanh(z_t / softcap)        where a soft-cap is given
        log p = z_t[y_t] / temperature - logsumexp(z_t / temperature)

    Every route computes the same, up to rounding, and takes any upstream gradient; see ``docs/scorer.md``.

    Args:
        hidden: (tokens, hidden), any floating dtype; rows at supervised positions only. There may be none.
        weight: (vocab, hidden), the head.
        targets: (tokens,) int64, the token that each row should predict (already shifted).
        stats: any of ``entropy``, ``top_k_entropy``, ``sum_sq_probs``, ``top1_hit``; costs time only when asked for.
        top_k: how many probabilities ``top_k_entropy`` is taken over.
        bias: (vocab,), of the head.
        temperature: divides the logits last.
        softcap: bound of the logits, as in Gemma 2.
        logit_scale: multiplies the logits first, as in Cohere and Granite models.
        operand_dtype: what the matrix products read; None is the promoted dtype of hidden and weight.
            ``torch.bfloat16`` with float32 weights casts them a tile at a time.
        logits_dtype: None keeps logits in float32; ``torch.bfloat16`` rounds them like a bfloat16 model's own forward,
            and is faster on CPU.
        route: ``auto``, or one of ``plain``, ``stored``, ``recompute``, ``frozen_head``; or ``triton``, which is
            *stored* or *recompute* on our GPU kernels; or ``liger``, which is liger-kernel's function. ``auto`` takes
            neither of these two.
        budget_bytes: scratch beyond inputs, outputs and gradients; None is 160 MiB on CPU, 1 GiB on other devices.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, an unknown statistic or route, a
            temperature or soft-cap that is not positive, or a forced route that cannot compute what is asked.
    """
    options = HeadOptions(temperature, softcap, logit_scale, operand_dtype, logits_dtype)
    call = _Call(hidden, weight, bias, Scoring(targets, options, stats, top_k), budget_bytes)
    taken, kernels = call.route(route, None, [name for name in ROUTES if name != "one_pass"])
    return call.stats(taken, kernels=kernels)


def token_objective(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    fn: ChunkObjective,
    *,
    boundaries: Sequence[int] | None = None,
    stats: frozenset[str] = frozenset(),
    top_k: int = 20,
    **head: Unpack[HeadArguments],
) -> tuple[Tensor, TokenStats, Tensor]:
    """The sum of a separable objective over all tokens, in one pass where the budget allows it.

    ``fn(chunk, rows)`` gets the statistics of some rows, ``logps`` and ``entropy`` requiring a gradient, and the slice
    that says which rows they are, to cut its other inputs with; it returns a scalar, its sum over these rows. It
    is called once for each block of rows. A gradient reaches the model only through the chunk.

    The one-pass route forms the gradients of hidden, weight and bias while a block's probabilities are at hand: three
    matrix products instead of four. The total may then be differentiated once.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        targets: (tokens,) int64.
        fn: the objective.
        boundaries: where the tokens may be cut, ascending, from 0 to the number of tokens: the starts of sequences or
            groups within which the objective does not add up token by token. None: anywhere. ``(0, tokens)``: nowhere.
        stats: as for :func:`token_stats`.
        top_k: as for :func:`token_stats`.
        head: as for :func:`token_stats`. ``route`` may also be ``one_pass``; on any other, ``fn`` is called once.

    Returns:
        The total, a scalar, differentiable in hidden, weight and bias; the statistics, detached; and
        d total / d logp, (tokens,), detached: minus the weight that the objective gave each token.

    Raises:
        ValueError: as :func:`token_stats`, or boundaries that do not ascend from 0 to the number of tokens.
    """
    bias, budget, route = head.pop("bias", None), head.pop("budget_bytes", None), head.pop("route", "auto")
    options = HeadOptions(**head)  # type: ignore[misc]
    call = _Call(hidden, weight, bias, Scoring(targets, options, stats, top_k), budget)
    longest = 1 if boundaries is None else _longest(boundaries, len(targets))
    taken, kernels = call.route(route, longest, list(ROUTES))
    if taken == "one_pass":
        return call.objective(fn, boundaries, kernels=kernels)
    found = call.stats(taken, kernels=kernels)
    total = fn(found, slice(0, len(targets)))
    slopes = None
    if total.requires_grad and found.logps.requires_grad:
        (slopes,) = torch.autograd.grad(total, found.logps, retain_graph=True, allow_unused=True)
    return total, found.detach(), torch.zeros_like(found.logps) if slopes is None else slopes


@dataclass(frozen=True)
class _Call:
    """A call's inputs, checked, with what follows from them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scoring: Scoring
    budget_bytes: int | None

    def __post_init__(self) -> None:
        if hasattr(self.weight, "full_tensor"):  # a DTensor
            raise ValueError(
                "the head's weight is a shard (DTensor). Call the scorer inside the forward of the module that "
                "fully_shard made the root, where the weight is whole; or pass weight.full_tensor()."
            )
        hidden, weight, targets = self.hidden.shape, self.weight.shape, self.scoring.targets.shape
        if len(hidden) != 2 or targets != hidden[:1] or len(weight) != 2 or weight[1] != hidden[1]:
            raise ValueError(
                f"token_logps wants hidden (tokens, hidden), weight (vocab, hidden), targets (tokens,); "
                f"found {tuple(hidden)}, {tuple(weight)}, {tuple(targets)}."
            )
        if self.bias is not None and self.bias.shape != weight[:1]:
            raise ValueError(f"bias must be (vocab,) = ({weight[0]},); found {tuple(self.bias.shape)}.")

    @property
    def budget(self) -> int:
        return default_budget(self.hidden.device) if self.budget_bytes is None else self.budget_bytes

    @property
    def itemsize(self) -> int:
        return self.scoring.options.operand(self.hidden, self.weight).itemsize

    @property
    def trained(self) -> bool:
        """Whether the head needs a gradient."""
        required = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return torch.is_grad_enabled() and required

    def route(self, asked: str, longest_group: int | None, known: list[Route]) -> tuple[Route, bool]:
        """The route to take, where ``asked`` may be ``auto`` or ``triton``, and whether Triton kernels run it."""
        for name in known:
            if asked == name:
                if name == "frozen_head" and self.trained:
                    raise ValueError(
                        "the frozen_head route gives weight and bias no gradient, and one of them requires it. "
                        "Use route='auto', or requires_grad_(False)."
                    )
                return name, False
        if asked not in ("auto", "triton"):
            raise ValueError(f"unknown route {asked!r}; choose auto, {', '.join(known)} or triton.")
        differentiable = torch.is_grad_enabled() and (self.trained or self.hidden.requires_grad)
        chosen = choose_route(
            num_tokens=len(self.hidden),
            vocab_size=self.weight.shape[0],
            itemsize=self.itemsize,
            differentiable=differentiable,
            head_trained=self.trained,
            entropy_gradient="entropy" in self.scoring.stats,
            budget_bytes=self.budget,
            longest_group=longest_group,
        )
        if asked == "auto":
            return chosen, False
        if not has_triton():
            raise ValueError("route='triton' needs the package triton, which is not installed. Use route='auto'.")
        if chosen == "plain":  # so few tokens that every group fits
            return "stored" if longest_group is None else "one_pass", True
        return "recompute" if chosen == "frozen_head" else chosen, True

    def stats(self, route: Route, *, kernels: bool) -> TokenStats:
        """Score all rows at once."""
        functions = {
            "plain": plain,
            "stored": stored,
            "recompute": recompute,
            "frozen_head": frozen_head,
            "liger": liger,
        }
        if kernels:
            from dftune.ops import triton_routes  # noqa: PLC0415  (Triton is not installed everywhere)

            functions |= {"stored": triton_routes.triton_stored, "recompute": triton_routes.triton_recompute}
        return functions[route](self.hidden, self.weight, self.bias, self._in_tiles(len(self.hidden)))

    def objective(
        self, fn: ChunkObjective, boundaries: Sequence[int] | None, *, kernels: bool
    ) -> tuple[Tensor, TokenStats, Tensor]:
        """Evaluate an objective in one pass."""
        vocab_size, hidden_size = self.weight.shape
        rows = block_rows(vocab_size, hidden_size, self.itemsize, self.hidden.device, self.budget)
        edges = blocks(len(self.hidden), rows, boundaries)
        largest = max(end - start for start, end in pairwise(edges))
        run = Pass(self._in_tiles(largest), fn, edges, torch.is_grad_enabled())
        if kernels:
            from dftune.ops.triton_routes import triton_one_pass  # noqa: PLC0415  (Triton is not installed everywhere)

            return triton_one_pass(self.hidden, self.weight, self.bias, run)
        return one_pass(self.hidden, self.weight, self.bias, run)

    def _in_tiles(self, num_rows: int) -> Scoring:
        vocab_size, hidden_size = self.weight.shape
        width = tile_width(num_rows, hidden_size, vocab_size, self.hidden.device, self.budget)
        return replace(self.scoring, width=width)


def _longest(boundaries: Sequence[int], num_tokens: int) -> int:
    lengths = [end - start for start, end in pairwise(boundaries)]
    if not lengths or boundaries[0] != 0 or boundaries[-1] != num_tokens or min(lengths) < 0:
        raise ValueError(
            f"boundaries must ascend from 0 to the number of tokens, {num_tokens}; found {list(boundaries)[:8]}..."
        )
    return max(lengths)
