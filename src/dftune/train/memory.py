"""How many bytes a run takes on each device, by arithmetic: weights, gradients, moments, activations, scratch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from dftune.ops.route import default_budget
from dftune.recipe import Recipe
from dftune.train.config import LoraConfig
from dftune.train.setup import precision_of

WEIGHT_BYTES = GRADIENT_BYTES = 4
MOMENT_BYTES = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2 + 8 / 256, "sgd": 0.0}
"""Bytes of an optimizer's state for each trained parameter; in 8 bits with one float32 scale for 256 entries."""
STATE_BYTES = WEIGHT_BYTES + GRADIENT_BYTES + 8
"""Of a parameter trained by AdamW: weight, gradient and two moments, each in float32."""
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits; an 8-bit scale for 64 weights, and a float32 one for 256 of those."""
_BUCKET = 64 * 2**20

Strategy = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True)
class Shape:
    """What of a model decides memory. Widths are numbers in one token's vector.

    Attributes:
        parameters: all weights of the model itself, tied ones once.
        block_parameters: those of one transformer block, the largest.
        linear_parameters: those of the linear layers inside the blocks.
        root_parameters: those outside of the blocks: embedding, head, last norm.
        adapter: parameters of a low-rank adapter, 0 without one.
        adapter_width: what an adapter's products save in one block: the sum of its ranks.
        layers: blocks.
        hidden: of the residual stream.
        query: heads times head size.
        key: key-value heads times head size.
        intermediate: of the MLP; of a mixture, of the experts that a token passes.
        vocab: rows of the head.
    """

    parameters: int
    block_parameters: int
    linear_parameters: int
    root_parameters: int
    adapter: int
    adapter_width: int
    layers: int
    hidden: int
    query: int
    key: int
    intermediate: int
    vocab: int


@dataclass(frozen=True)
class Setting:
    """What of a recipe and a launch decides memory; names are those of the recipe.

    Attributes:
        micro_batch_tokens: tokens of a forward pass.
        itemsize: bytes of the compute's dtype: 2 for bfloat16, 4 for float32.
        gradient_checkpointing: none, full or selective.
        optimizer: its name.
        lora: whether an adapter alone is trained.
        quantize: whether its base is held in 4 bits.
        reference: whether a frozen model stays beside the trained one.
        strategy: how the model is spread.
        ranks: processes in all.
        replicas: of sharded models.
        reshard_after_forward: as in the recipe.
        cpu_offload: as in the recipe.
        sync_each_micro_batch: as in the recipe.
        background_checkpoints: whether a copy of the state is taken to CPU memory.
        budget_bytes: the scorer's scratch.
    """

    micro_batch_tokens: int
    itemsize: int = 2
    gradient_checkpointing: str = "none"
    optimizer: str = "adamw"
    lora: bool = False
    quantize: bool = False
    reference: bool = False
    strategy: Strategy = "none"
    ranks: int = 1
    replicas: int = 1
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    sync_each_micro_batch: bool = False
    background_checkpoints: bool = False
    budget_bytes: int = 1024 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for.

    Attributes:
        weights: held throughout, a frozen reference among them.
        gradients: of the trained weights.
        moments: of the optimizer.
        gathered: copies in the precision of the compute, whole blocks of sharded weights and their gradients, buckets.
        activations: kept from forward to backward, and what one block needs in its backward.
        scorer: its scratch and the head's copies. Logits of a whole micro-batch are never held.
        offloaded: weights, gradients and moments of this rank that lie in CPU memory in place of the device.
        copied: of a checkpoint that is being written, in the CPU memory of rank 0.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    scorer: int
    offloaded: int = 0
    copied: int = 0

    @property
    def lasting(self) -> int:
        """What a run cannot do without, whatever its batches."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> int:
        """All on the device."""
        return sum(getattr(self, field.name) for field in fields(self)[:6])


def estimate(shape: Shape, setting: Setting) -> Memory:
    """Bytes on each device of a run.

        weights      4 P          (frozen under an adapter: the compute's itemsize c, or 4 bits, and 4 P_adapter)
        gradients    4 P_trained
        moments      8 P_trained  (AdamW; 2 in 8 bits, 0 for sgd)

    each divided by ranks / replicas where they are sharded. Activations: :func:`activations_per_token`.

    Args:
        shape: of the model.
        setting: of the run.
    """
    s, lora = setting, setting.lora
    trained = shape.adapter if lora else shape.parameters
    parts = s.ranks // s.replicas if s.strategy == "fsdp" else 1
    if not lora:
        weights = WEIGHT_BYTES * shape.parameters * (2 if s.reference else 1)
    else:
        base = _NF4_BYTES if s.quantize else s.itemsize
        outside = shape.parameters - shape.linear_parameters
        weights = round(base * shape.linear_parameters) + s.itemsize * outside + WEIGHT_BYTES * shape.adapter
    held = [weights, GRADIENT_BYTES * trained, round(MOMENT_BYTES[s.optimizer] * trained)]
    held = [-(-size // parts) for size in held]
    kept, away = ([0, 0, 0], sum(held)) if s.strategy == "fsdp" and s.cpu_offload else (held, 0)
    head = shape.vocab * shape.hidden
    return Memory(
        weights=kept[0],
        gradients=kept[1],
        moments=kept[2],
        gathered=_gathered(shape, s),
        activations=s.micro_batch_tokens * activations_per_token(shape, s),
        scorer=s.budget_bytes + (0 if lora else WEIGHT_BYTES * head) + (2 * head if s.itemsize == 2 else 0),
        offloaded=away,
        copied=(WEIGHT_BYTES * trained + round(MOMENT_BYTES[s.optimizer] * trained)) if s.background_checkpoints else 0,
    )


def _gathered(shape: Shape, s: Setting) -> int:
    """Copies of weights that the compute needs, beside those held."""
    if s.strategy != "fsdp":
        # autocast keeps a copy of every linear layer's float32 weight until the end of the forward, or the backward
        copies = 2 * shape.linear_parameters if s.itemsize == 2 and not s.lora else 0
        return copies + (_BUCKET if s.ranks > 1 else 0)
    blocks = 2 * shape.block_parameters  # one at work, the next on its way
    if not s.reshard_after_forward:
        blocks = shape.parameters - shape.root_parameters
    weights = s.itemsize * (blocks + shape.root_parameters)
    if s.lora:
        return weights
    whole = shape.block_parameters + shape.root_parameters if s.sync_each_micro_batch else shape.parameters
    return weights + GRADIENT_BYTES * whole


def activations_per_token(shape: Shape, setting: Setting) -> int:
    """Bytes kept for the backward of one token, and what one block's backward takes beside.

    With c the compute's itemsize, h, q, k and i the widths of residual stream, queries, keys and MLP, a block keeps

        none       2 (n h) + c (3 q + 2 k + 4 i)      n = 12 in float32, 10 under bfloat16
        full       4 h
        selective  4 h + c (2 q + 2 k + 2 h + 2 i)

    where n counts, for each of two norms, its input, its normalised rows and its output: 4 + 4 + 4 bytes, the last one
    in bfloat16 2. Of attention the rotated queries and keys, the values, the output and its copy for the next product;
    of the MLP both projections, the activation and the product. Under recomputation one block at a time is whole.
    The last norm and the supervised states add 16 h, and gradients within a block c (4 i) and 8 h.
    """
    c, h, q, k, i = setting.itemsize, shape.hidden, shape.query, shape.key, shape.intermediate
    norm = 8 + c
    block = 2 * norm * h + c * (3 * q + 2 * k + 4 * i) + c * shape.adapter_width
    if setting.lora and c == 2:
        block += c * (2 * q + h + i)  # each adapter casts its own copy of what it is given
    kept = {
        "none": block,
        "full": 4 * h,
        "selective": 4 * h + c * (2 * q + 2 * k + 2 * h + 2 * i + shape.adapter_width),
    }[setting.gradient_checkpointing]
    once = 0 if setting.gradient_checkpointing == "none" else block
    return shape.layers * kept + once + 16 * h + 4 * c * i + 8 * h


# --- From a model, and from a recipe ----------------------------------------------------------------


def shape_of(model: Any, lora: LoraConfig | None = None) -> Shape:
    """The shape of a transformers model; its weights may be on the meta device, or real.

    Args:
        model: a causal language model, without an adapter.
        lora: counts the adapter that would be put on it.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    linear = [module for block in blocks for module in block.modules() if _is_linear(module)]
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = config.num_hidden_layers
    adapted = _adapted(model, lora) if lora is not None else []
    rank = 0 if lora is None else lora.rank
    return Shape(
        parameters=total,
        block_parameters=max(counts, default=total // layers),
        linear_parameters=sum(module.weight.numel() for module in linear) or total,
        root_parameters=total - sum(counts) if counts else 0,
        adapter=sum(rank * sum(module.weight.shape) for module in adapted),
        adapter_width=rank * len(adapted) // layers,
        layers=layers,
        hidden=config.hidden_size,
        query=heads * head_size,
        key=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        intermediate=_intermediate(config),
        vocab=config.vocab_size,
    )


def _intermediate(config: Any) -> int:
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    if width:
        return int(width * experts)
    return int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _adapted(model: Any, lora: LoraConfig) -> list[Any]:
    head, targets = model.get_output_embeddings(), lora.target_modules
    return [
        module
        for name, module in model.named_modules()
        if _is_linear(module)
        and module is not head
        and (targets == "all-linear" or any(name == one or name.endswith(f".{one}") for one in targets))
    ]


def setting_of(recipe: Recipe, ranks: int, device: torch.device, shape: Shape, room: int | None = None) -> Setting:
    """The setting of a recipe in a number of processes.

    Args:
        recipe: the recipe.
        ranks: processes.
        device: of the compute.
        shape: decides, with the room, what ``distributed.strategy: auto`` comes to.
        room: bytes of the device; None where it is not known, and weights are then held whole.
    """
    from dftune.objectives import get_objective  # noqa: PLC0415

    objective = get_objective(recipe.objective.name, **recipe.objective.options)
    distributed, lora = recipe.distributed, recipe.model.lora
    itemsize = precision_of(recipe.train.precision, device).itemsize
    strategy: Strategy
    if distributed.strategy != "auto":
        strategy = distributed.strategy
    elif ranks == 1:
        strategy = "none"
    else:
        trained, frozen = (shape.parameters, 0) if lora is None else (shape.adapter, itemsize * shape.parameters)
        strategy = "fsdp" if room is not None and device.type == "cuda" and is_large(trained, frozen, room) else "ddp"
    return Setting(
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        itemsize=itemsize,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        optimizer=recipe.optimizer.name,
        lora=lora is not None,
        quantize=lora is not None and lora.quantize is not None,
        reference="ref_kl" in objective.needs,
        strategy=strategy,
        ranks=ranks,
        replicas=distributed.replicas,
        reshard_after_forward=distributed.reshard_after_forward,
        cpu_offload=distributed.cpu_offload,
        sync_each_micro_batch=distributed.sync_each_micro_batch,
        background_checkpoints=recipe.train.background_checkpoints and recipe.train.checkpoint_every is not None,
        budget_bytes=recipe.scorer.budget_bytes or default_budget(device),
    )


def is_large(trained: int, frozen_bytes: int, room: int) -> bool:
    """Whether weights, gradients and moments take more than 40 % of a device's bytes: then they are sharded."""
    return STATE_BYTES * trained + frozen_bytes > 0.4 * room
