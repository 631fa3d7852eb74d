"""The ``model``, ``objective``, ``optimizer`` and ``train`` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from dftune.config import Config
from dftune.watch.config import KeepBestConfig

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ScratchConfig(Config):
    """A new Qwen2 model with random weights, and a byte-level BPE tokenizer trained on the training texts."""

    vocab_size: Annotated[int, Field(ge=260)] = 4096
    """Tokens in the vocabulary: 256 bytes, special tokens, and merges."""
    hidden_size: Count = 256
    """Width."""
    num_layers: Count = 4
    """Transformer blocks."""
    num_heads: Count = 4
    """Attention heads; must divide hidden_size."""
    num_kv_heads: Count = 2
    """Key-value heads; must divide num_heads."""
    intermediate_size: Count = 704
    """Width inside the MLP."""
    max_position_embeddings: Count = 2048
    """Longest context."""
    tie_word_embeddings: bool = True
    """Share the embedding with the head."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchConfig:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}, "
                f"and that of num_kv_heads {self.num_kv_heads}"
            )
        return self


class LoraConfig(Config):
    """A low-rank adapter: the base stays as it is, and each adapted weight W becomes W + (alpha / rank) B A."""

    rank: Count = 16
    """Rows of A and columns of B."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update; it acts as alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers: all linear ones but the head, or a list of names such as [q_proj, v_proj]."""
    quantize: Literal["nf4"] | None = None
    """nf4 holds the base's linear layers in 4 bits (QLoRA; CUDA and bitsandbytes); null: the compute's precision."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_or_names(cls, value: object) -> object:
        names = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)
        if value != "all-linear" and not names:
            raise ValueError(f"expected all-linear or a list of names such as [q_proj, v_proj], found {value!r}")
        return value


class ModelConfig(Config):
    """What is trained: a checkpoint (path), or a new model (scratch)."""

    path: str | None = None
    """Folder of a Hugging Face checkpoint, or a model id on the hub."""
    revision: str | None = None
    """Revision on the hub."""
    tokenizer: str | None = None
    """Folder or id of the tokenizer, where it is not the model's own."""
    scratch: ScratchConfig | None = None
    """Train a new model instead of a checkpoint."""
    gradient_checkpointing: Literal["none", "full", "selective"] = "none"
    """full (true): keep a block's input alone and run the block again in the backward pass, about a third more time.
    selective: keep what matrix products and attention gave as well, and make the rest again. none (false)."""
    compile: bool = False
    """torch.compile each transformer block: slow first steps, then faster ones. Attention itself is not compiled."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter and leave the model's own weights as they are; null trains all weights."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """Of packed rows. auto: torch's own varlen kernel on CUDA, else document by document, as sdpa always does.
    flash_attention_2 and _3: the packages flash-attn and flash-attn-3, on CUDA in bfloat16."""
    kernels: Literal["none", "liger"] = "none"
    """liger: Liger's kernels for norms, gated MLPs and rotations (CUDA and liger-kernel), compared with the model's own
    layers before training begins. The head is scorer.route's."""

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _from_switch(cls, value: object) -> object:
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either model.path or model.scratch")
        if self.scratch is not None and (self.tokenizer or self.revision):
            raise ValueError("model.scratch trains its own tokenizer; leave model.tokenizer and model.revision out")
        if self.scratch is not None and self.lora is not None:
            raise ValueError(
                "model.lora leaves the base as it is, and that of model.scratch has random weights; give model.path"
            )
        return self


class ObjectiveConfig(Config):
    """The loss: its name, and beside it the options of that objective."""

    model_config = ConfigDict(extra="allow")

    name: str
    """Name of the objective (`dftune objectives` lists them), or path/to/file.py:name for one of your own."""

    @property
    def options(self) -> dict[str, Any]:
        """The objective's own options."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> ObjectiveConfig:
        from dftune.objectives.registry import get_objective  # noqa: PLC0415  (objectives are read only when one is named)

        bound = get_objective(self.name, **self.options)
        # Defaults are written into the resolved recipe, as for every other section.
        object.__setattr__(self, "__pydantic_extra__", dict(bound.options))
        return self


class OptimizerConfig(Config):
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "adamw_fused", "adamw_8bit", "sgd"] = "adamw"
    """adamw: fused on CUDA. adamw_fused: fused on the CPU too. adamw_8bit: moments in 8 bits (CUDA and bitsandbytes; it
    saves no checkpoints). sgd: no momentum and no state."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate. Objectives differ in the scale of their gradients: tune it for each."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled; on matrices only, not on norms and biases."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient to this global L2 norm; null does not clip."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the warm-up: cosine or linear decay, constant, or warm-up-stable-decay."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which the rate rises linearly from 0."""
    decay_ratio: Share = 0.1
    """Share of the steps at the end over which wsd decays linearly."""
    min_lr_ratio: Share = 0.0
    """The rate at the end, as a share of the peak."""


class ScorerConfig(Config):
    """How hidden states become log-probabilities. Only `logits_dtype` changes them, by rounding."""

    route: Literal["auto", "plain", "stored", "recompute", "one_pass", "frozen_head", "triton", "liger"] = "auto"
    """How training steps are scored (docs/scorer.md); auto chooses by need and memory, and never triton or liger."""
    logits_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 rounds logits as a bfloat16 model's own forward does: log-probabilities lose five digits, and bfloat16
    compute on a CPU gets faster. Everything that this run scores is scored so, the reference too."""
    budget_mib: Count | None = None
    """Scratch memory of the scorer in MiB, beside inputs and gradients; null is 160 on CPU and 1024 elsewhere."""

    @property
    def budget_bytes(self) -> int | None:
        """The budget, None where it is left to the scorer."""
        return None if self.budget_mib is None else self.budget_mib * 2**20


class TrainConfig(Config):
    """The training loop."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training data."""
    steps: Count | None = None
    """Optimizer steps; give this or epochs."""
    batch_size: Count = 256
    """Examples an optimizer step."""
    micro_batch_tokens: Count = 8192
    """Most tokens in one forward pass. It bounds memory and leaves the gradient as it is."""
    micro_batch_size: Count | None = None
    """Most examples in one forward pass; null leaves it to micro_batch_tokens."""
    normalization: Literal["global", "micro_batch_mean_sum"] = "global"
    """global: one division by the units of the step. micro_batch_mean_sum: the gradients of each micro-batch's mean,
    added up without division, as released code does (docs/training.md); it then depends on the split."""
    inner_loop: Count = 1
    """Optimizer steps that share the log-probabilities of the policy at their start, for objectives that need them."""
    packing: bool | Literal["best_fit", "in_order", "length_sorted"] = True
    """Put the examples of a forward pass end to end, without padding; each attends to itself alone. best_fit (true)
    fills the passes best, in_order keeps the order of the step; length_sorted (false) pads instead, longest first."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the compute; weights and optimizer are fp32. auto: bf16 where the device has it, fp32 on CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    threads: Count | None = None
    """CPU threads; null uses OMP_NUM_THREADS where it is set, else the cores this process may run on. Never more than
    its share of them, where several processes train on one machine."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """Skip so many steps of a run whose loss or gradient is not finite: no weight moves, and the batch is written to
    failed-batches/. The next one stops the run; with 0 the first does."""
    log_every: Count = 1
    """Write metrics every so many steps."""
    validate_every: Count | None = None
    """Score the held-out rows every so many steps; null does so before the first step and after the last."""
    checkpoint_every: Count | None = None
    """Save a checkpoint every so many steps; null saves none but the final model."""
    background_checkpoints: bool = True
    """Copy what is to be saved to CPU memory (12 bytes a trained parameter) and write it while training goes on."""
    keep_checkpoints: Count | None = None
    """Keep the newest so many; null keeps all."""
    keep_best: KeepBestConfig | None = None
    """Never delete the best so many; null: only how new a checkpoint is counts."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either train.epochs or train.steps")
        return self


class DistributedConfig(Config):
    """Several processes: `dftune train --nproc N`, or torchrun."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds all weights. fsdp: weights, gradients and optimizer state are divided among them (FSDP2,
    block by block). auto: one process as ever; of several, fsdp where 16 bytes a parameter would take more than 40 % of
    a CUDA device, else ddp."""
    world_size: Count | None = None
    """Processes that must take part; null takes as many as were launched."""
    replicas: Count = 1
    """fsdp: copies of the model, each divided among world_size / replicas processes (hybrid sharding). With one copy a
    machine, weights are gathered within it."""
    sequence_parallel: Count = 1
    """Processes that share every sequence (Ulysses): each computes its part of the positions, in attention its share
    of the heads, so that together they train on sequences of so many times train.micro_batch_tokens."""
    reshard_after_forward: bool = True
    """fsdp: give a block's gathered weights back after its forward and gather them again for its backward. false keeps
    them: less communication, the memory of a whole model in the precision of the compute."""
    cpu_offload: bool = False
    """fsdp: shards of weights, gradients and optimizer state live in CPU memory, and the optimizer runs there."""
    sync_each_micro_batch: bool = False
    """fsdp: reduce gradients after every micro-batch in place of once a step: more communication, and no process holds
    a whole model's float32 gradient between micro-batches."""
    timeout_s: Annotated[float, Field(gt=0)] = 1800
    """A process that has waited this long for the others gives up, and the run fails."""

    @model_validator(mode="after")
    def _whole_copies(self) -> DistributedConfig:
        for name in ("replicas", "sequence_parallel"):
            if self.world_size is not None and self.world_size % getattr(self, name):
                raise ValueError(f"world_size {self.world_size} must be a multiple of {name} {getattr(self, name)}")
        only = [name for name in ("cpu_offload", "sync_each_micro_batch") if getattr(self, name)]
        only += ["replicas"] if self.replicas > 1 else []
        if only and self.strategy != "fsdp":
            raise ValueError(f"{', '.join(only)}: of strategy fsdp alone, and strategy is {self.strategy}")
        return self
