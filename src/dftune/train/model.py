"""The model under training: loaded, wrapped so that its forward returns log-probabilities, and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dftune.data.batches import MicroBatch
from dftune.data.hub import from_pretrained, making_a_model
from dftune.ops import attention
from dftune.ops.ulysses import SequenceGroup
from dftune.train.config import ModelConfig, ScorerConfig, ScratchConfig
from dftune.train.lora import Adapter
from dftune.train.optim import require_bitsandbytes
from dftune.train.recompute import recompute
from dftune.train.score import Scorer
from dftune.train.sequence import Part, bounds_of, part_of


class ScoredModel(nn.Module):
    """A causal language model whose forward returns statistics of the supervised tokens in place of logits.

    The head is applied inside this module's forward, so that hooks of a sharding wrapper run, and only at
    supervised positions, so that the (tokens, vocab) logits of prompts and padding are never made.

    Attributes:
        model: the transformers model.
        precision: of the compute.
        adapter: that of the model, where only an adapter is trained.
        scorer: the recipe's settings of the scorer; the route is chosen by who asks.
        keep_whole: of sharded weights, keep the head's whole after a forward without gradient.
        sequence: the ranks that share every sequence. Each computes its part; the statistics are of all tokens.
    """

    def __init__(
        self,
        model: Any,
        precision: torch.dtype = torch.float32,
        adapter: Adapter | None = None,
        scorer: ScorerConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.adapter = adapter
        self.scorer = ScorerConfig() if scorer is None else scorer
        self.keep_whole = False
        self.sequence: SequenceGroup | None = None

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Without the adapter within this context, where there is one."""
        with nullcontext() if self.adapter is None else self.adapter.off():
            yield

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and value of the model's weights, those of an adapter left out; tied ones once."""
        yield from self.model.named_parameters() if self.adapter is None else self.adapter.base_parameters()

    def forward(self, batch: MicroBatch, score: Callable[[Scorer], Any] = Scorer.logps) -> Any:
        """What ``score`` makes of the head over the supervised tokens; by default their log-probabilities."""
        part = batch if self.sequence is None else part_of(batch, self.sequence)
        return score(self._scorer(self.hidden(part), part))

    def hidden(self, batch: MicroBatch | Part) -> Tensor:
        """Last hidden states at the supervised positions: (tokens, hidden)."""
        with torch.autocast(batch.input_ids.device.type, self.precision, enabled=self.precision != torch.float32):
            output = self.model.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **bounds_of(batch)
            )
        states: Tensor = output.last_hidden_state
        return states.flatten(0, 1)[batch.positions]

    def _scorer(self, hidden: Tensor, batch: MicroBatch | Part) -> Scorer:
        head = self.model.get_output_embeddings()
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies, Granite divides
        scaling = getattr(config, "logits_scaling", None)
        return Scorer(
            hidden,
            batch.targets,
            head.weight,
            bias=getattr(head, "bias", None),
            softcap=getattr(config, "final_logit_softcapping", None),
            logit_scale=1 / scaling if scaling is not None else scale,
            operand_dtype=None if self.precision == torch.float32 else self.precision,
            logits_dtype=torch.bfloat16 if self.scorer.logits_dtype == "bfloat16" else None,
            budget_bytes=self.scorer.budget_bytes,
            part=batch if isinstance(batch, Part) else None,
        )


def load_model(
    config: ModelConfig, tokenizer: Any, *, seed: int, dtype: torch.dtype = torch.float32, empty: bool = False
) -> Any:
    """The causal language model of a recipe, with attention per packed document.

    Args:
        config: the recipe's model section.
        tokenizer: gives a new model its vocabulary and special tokens.
        seed: of a new model's weights.
        dtype: of a checkpoint's weights in memory. Those that are trained must be float32, as a new model's are.
        empty: leave a checkpoint's weights undefined and its files unread; they then come from another rank. Memory
            that nothing has written to is not taken yet.

    Raises:
        ValueError: no such model, or one whose files are not safetensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    implementation = attention.register(config.attention)
    if config.scratch is not None:
        with making_a_model(), torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _new_model(config.scratch, tokenizer, implementation)
    elif empty:
        settings = from_pretrained(AutoConfig, str(config.path), config.revision, "model.path")
        with making_a_model(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=implementation)
        model.to_empty(device="cpu").tie_weights()
        model.eval()
    else:
        assert config.path is not None
        quantized = {} if config.lora is None or config.lora.quantize is None else four_bits(dtype)
        model = from_pretrained(
            AutoModelForCausalLM,
            config.path,
            config.revision,
            "model.path",
            dtype=dtype,
            attn_implementation=implementation,
            use_safetensors=True,
            **quantized,
        )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model only "
            f"{model.get_input_embeddings().weight.shape[0]} embeddings. Use the model's own tokenizer."
        )
    recompute(model, config.gradient_checkpointing)
    return model


def four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """Options of ``from_pretrained`` that hold the linear layers of the body in NF4, scales quantized too (QLoRA).

    Args:
        dtype: of the compute, and of what is not quantized.

    Raises:
        ValueError: bitsandbytes is missing.
    """
    require_bitsandbytes("model.lora.quantize=nf4", "model.lora.quantize=null")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": settings, "device_map": {"": "cuda" if torch.cuda.is_available() else "cpu"}}


def _new_model(config: ScratchConfig, tokenizer: Any, implementation: str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    return Qwen2ForCausalLM._from_config(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        attn_implementation=implementation,
    )


class _Base(ScoredModel):
    """The base under an adapter that is being trained: the same weights in memory, the adapter off, no dropout."""

    def __init__(self, scored: ScoredModel) -> None:
        super().__init__(scored.model, scored.precision, scored.adapter, scored.scorer)
        self._scored = (scored,)  # not a submodule: its weights are there already

    def forward(self, batch: MicroBatch, score: Callable[[Scorer], Any] = Scorer.logps) -> Any:
        (scored,) = self._scored
        was_training, was_whole = scored.model.training, scored.keep_whole
        scored.model.eval()
        scored.keep_whole = True  # the head is used after this forward, in that of the model
        try:
            with self.as_base():
                return scored(batch, score)
        finally:
            scored.keep_whole = was_whole
            scored.model.train(was_training)


def frozen_copy(scored: ScoredModel) -> ScoredModel:
    """The model before training, for comparison: no gradients, no dropout. Called before anything is sharded.

    One with an adapter is not copied: with the adapter off it stays what it was.
    """
    if scored.adapter is not None:
        return _Base(scored)
    return copy.deepcopy(scored).requires_grad_(False).eval()


@torch.no_grad()
def check_scoring(scored: ScoredModel, *, vocab_size: int) -> None:
    """Compare, on a few random tokens, our scorer and packed attention with the model's own logits.

    Some architectures post-process their logits or mix tokens in ways a packed row does not stop. Training such a
    model would silently train something else, so it is refused. Where the recipe asks for kernels that are not taken
    by themselves, it is they that are compared.

    Args:
        scored: the wrapped model.
        vocab_size: random tokens are drawn below this.

    Raises:
        ValueError: they disagree, or the kernels cannot score this head.
    """
    route = scored.scorer.route if scored.scorer.route in ("triton", "liger") else "auto"
    model, device = scored.model, next(scored.parameters()).device
    was_training, implementation = model.training, model.config._attn_implementation
    model.eval()
    try:
        documents = probe_documents(vocab_size, device)
        found = scored(probe(documents), lambda scorer: scorer.stats(route=route).logps)
        model.set_attn_implementation("eager")  # the model's own, which honours every feature it has
        with torch.autocast(device.type, scored.precision, enabled=scored.precision != torch.float32):
            expected = torch.cat([_own_logps(model, document[None]) for document in documents])
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    difference = "log-probabilities of packed documents differ from the model's own"
    check_alike(scored, found, expected, difference, "Its logits or its attention are computed")


def check_alike(scored: ScoredModel, found: Tensor, expected: Tensor, difference: str, cause: str) -> None:
    """Refuse a model of which two ways of computing log-probabilities, each (tokens,), disagree.

    Raises:
        ValueError: by more than rounding.
    """
    error = (expected - found).abs().max().item()
    allowed = 1e-3 if scored.precision == torch.float32 else 0.25
    if not error <= allowed:
        raise ValueError(
            f"{type(scored.model).__name__}: {difference} by {error:.2g} (allowed {allowed:g}). {cause} in a way "
            "dftune does not know, so training it would optimise something else. Please report the architecture."
        )


def _own_logps(model: Any, input_ids: Tensor) -> Tensor:
    logits = model(input_ids=input_ids, use_cache=False).logits.float()
    logps: Tensor = logits[0, :-1].log_softmax(-1).gather(1, input_ids[0, 1:, None]).squeeze(1)
    return logps


def probe_documents(vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random tokens, always the same, of two short documents."""
    tokens = torch.randint(vocab_size, (24,), generator=torch.Generator().manual_seed(0)).to(device)
    return tokens[:9], tokens[9:]


def probe(documents: tuple[Tensor, ...]) -> MicroBatch:
    """A packed forward pass of these tokens, each predicted but the first of a document."""
    lengths = [len(document) for document in documents]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    device = documents[0].device
    positions = [
        torch.arange(length - 1, device=device) + start for length, start in zip(lengths, starts, strict=False)
    ]
    return MicroBatch(
        input_ids=torch.cat(documents)[None],
        position_ids=torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        document_starts=starts,
        positions=torch.cat(positions),
        targets=torch.cat([document[1:] for document in documents]),
        sequence_ids=torch.cat([torch.full_like(p, i) for i, p in enumerate(positions)]),
        example_ids=tuple(str(i) for i in range(len(documents))),
        num_tokens=starts[-1],
    )
