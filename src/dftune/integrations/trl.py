"""dftune's objectives in TRL's ``SFTTrainer``, for those who need DeepSpeed or have a script of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor

from dftune.integrations.fit import fitting_objective
from dftune.objectives import LossSum, TokenBatch
from dftune.objectives.base import Need, Scope

try:
    import trl
    from trl import SFTTrainer
    from trl.trainer import add_fused_lm_head
except ImportError as error:
    raise ImportError(
        f"dftune.integrations.trl needs TRL 1.16 or later: pip install 'dftune[trl]' ({error})"
    ) from error

SUPPORTED = SpecifierSet(">=1.16,<2")
"""The versions of TRL whose loss path this is written for and tested against."""

_PROVIDES: frozenset[Need] = frozenset({"entropy", "sum_sq_probs"})
_SCOPES: frozenset[Scope] = frozenset({"token", "sequence"})


class ObjectiveSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's ``SFTTrainer`` with one of dftune's objectives as its loss.

        trainer = ObjectiveSFTTrainer(
            objective="dynamic_ft", objective_options={"floor": 0.1}, model=..., args=SFTConfig(...), train_dataset=...
        )

    The loss is the objective's sum over supervised tokens divided as TRL divides its own: by the tokens of all ranks
    and micro-batches of the step, in evaluation by those of the batch. Beside TRL's metrics it logs, over the tokens
    since the last log, ``nll``, ``p_mean`` and the objective's own metrics; in training also the mean of the weights
    w = -d total / d log p and ``ess``, their effective sample size as a share of the tokens, (sum w)^2 / (T sum w^2).

    Args:
        args: of ``SFTTrainer``, positional ones first.
        objective: as in a recipe; a mean over tokens that needs no second model, groups or state.
        objective_options: of the objective.
        kwargs: of ``SFTTrainer``.

    Raises:
        ValueError: a version of TRL that this is not written for, an objective that TRL's trainer would compute
            wrongly, or a setting of TRL's that would replace or bend the objective.
    """

    def __init__(
        self, *args: Any, objective: str, objective_options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        check_version(trl.__version__)
        self.objective = fitting_objective(
            "TRL's SFTTrainer", objective, objective_options or {}, provides=_PROVIDES, scopes=_SCOPES
        )
        super().__init__(*args, **kwargs)
        self._check_settings()
        self._sums: dict[str, dict[str, list[Tensor]]] = {"train": {}, "eval": {}}
        if "sum_sq_probs" in self.objective.needs:
            model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1", "log_sum_sq_probs"))

    def _check_settings(self) -> None:
        """Refuse what would make TRL train on something else than the objective."""
        parallelism = self.accelerator.parallelism_config
        context, ulysses = (
            bool(parallelism and getattr(parallelism, f"{kind}_enabled", False)) for kind in ("cp", "sp")
        )
        strategy = self.args.packing_strategy if self.args.packing or self.args.eval_packing else None
        wrong = {
            f"loss_type={self.args.loss_type!r}; leave it out": self.args.loss_type != "nll",
            "a compute_loss_func; drop it": self.compute_loss_func is not None,
            "label_smoothing_factor; set it to 0": self.args.label_smoothing_factor > 0,
            "Ulysses sequence parallelism, where TRL knows only the NLL; use data parallelism": ulysses,
        }
        if self.objective.separable == "sequence":
            wrong[f"packing_strategy={strategy!r}, which cuts sequences; use 'bfd'"] = strategy not in (None, "bfd")
            wrong["context parallelism, which cuts sequences; use data parallelism"] = context
        if found := [setting for setting, is_set in wrong.items() if is_set]:
            raise ValueError(f"objective {self.objective.name!r} cannot be trained with {'; nor with '.join(found)}.")

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The objective's loss of a micro-batch; everything else (inputs, TRL's metrics, outputs) is TRL's doing.

        Args:
            model: the model, wrapped as it may be.
            inputs: of the model, with labels.
            return_outputs: return (loss, outputs).
            num_items_in_batch: supervised tokens of the step, all ranks and micro-batches; None in evaluation.
        """
        scored: list[Any] = []

        def remembering(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            if kwargs.get("fused_lm_head"):
                scored.append(outputs)
            return outputs

        # TRL's own loss, of the same forward, is dropped: nothing is computed twice but a sum over tokens.
        found = super().compute_loss(remembering, inputs, return_outputs, num_items_in_batch)
        (outputs,) = scored
        tokens = _token_batch(outputs, inputs.get("position_ids"))
        result = self.objective(tokens)
        self._note(tokens.logps, result)
        num_tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = result.total / torch.as_tensor(num_tokens).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count is of all ranks, and DDP averages their gradients: undo that
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if self.aux_loss_enabled:  # of mixture-of-experts models; a mean over the micro-batch
            num_steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / num_steps
        return (loss, found[1]) if return_outputs else loss

    def _note(self, logps: Tensor, result: LossSum) -> None:
        """Add a micro-batch to what is logged next, over all ranks; nothing waits for the device."""
        sums = dict(result.metrics)
        sums |= {"tokens": torch.ones_like(logps).sum(), "nll": -logps.sum(), "p_mean": logps.exp().sum()}
        if result.total.requires_grad:
            (gradient,) = torch.autograd.grad(
                result.total, logps, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            sums |= {"weight_mean": -gradient.sum(), "squares": gradient.square().sum()}
        values = self.accelerator.reduce(torch.stack([value.detach().float() for value in sums.values()]), "sum")
        noted = self._sums["train" if self.model.training else "eval"]
        for name, value in zip(sums, values, strict=True):
            noted.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means over the tokens since the last log added.

        Args:
            logs: what the Trainer logs; extended in place, so that ``evaluate`` returns it all.
            start_time: of training.
        """
        mode = "train" if self.model.training else "eval"
        sums = {name: torch.stack(values).cpu().double().sum().item() for name, values in self._sums[mode].items()}
        self._sums[mode].clear()
        if num_tokens := sums.pop("tokens", 0):
            squares = sums.pop("squares", None)
            means = {name: value / num_tokens for name, value in sums.items()}
            if squares is not None:
                means["ess"] = sums["weight_mean"] ** 2 / (num_tokens * squares) if squares > 0 else 0.0
            for name, value in means.items():
                logs.setdefault(name if mode == "train" else f"eval_{name}", value)
        super().log(logs, start_time)


def check_version(version: str) -> None:
    """Refuse a version of TRL whose loss path may be another.

    Raises:
        ValueError: it is outside ``SUPPORTED``.
    """
    if not SUPPORTED.contains(version, prereleases=True):
        raise ValueError(
            f"dftune.integrations.trl is written for TRL {SUPPORTED}, and {version} is installed; another version may "
            f"compute the loss elsewhere. Install one of these: pip install 'trl{SUPPORTED}'."
        )


def _token_batch(outputs: Any, position_ids: Tensor | None) -> TokenBatch:
    """The supervised tokens, from the outputs of TRL's fused head, (rows, positions)."""
    mask = outputs.label_mask
    rows = torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(mask)
    if position_ids is not None and position_ids.ndim == 2:  # packed: a sequence begins wherever positions begin anew
        begun = (position_ids == 0).flatten().cumsum(0).view_as(position_ids)
        rows = begun[:, -mask.shape[1] :].to(mask.device)  # of the predicted token, where labels are shifted here
    present, sequence_ids = torch.unique(rows[mask], return_inverse=True)
    squares = outputs.log_sum_sq_probs
    return TokenBatch(
        logps=outputs.log_probs[mask].float(),
        sequence_ids=sequence_ids,
        num_sequences=len(present),
        entropy=outputs.entropy[mask].float(),
        sum_sq_probs=None if squares is None else squares[mask].float().exp(),
    )
