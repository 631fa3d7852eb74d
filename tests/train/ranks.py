"""Steps of a tiny model on one process or several, and the processes themselves."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import set_forkserver_preload
from pathlib import Path

import torch
import torch.distributed as dist
from tests.tiny import VOCAB, make_examples, make_model
from tests.train.full_logits import Table, score

from dftune.data.batches import Example, micro_batches
from dftune.objectives import get_objective
from dftune.objectives.state import LogEstimates
from dftune.train.config import DistributedConfig, LoraConfig, OptimizerConfig
from dftune.train.distributed import divided, share_sequences, spread
from dftune.train.lora import Adapter
from dftune.train.metrics import token_metrics, validate
from dftune.train.model import ScoredModel, frozen_copy
from dftune.train.optim import make_optimizer
from dftune.train.recompute import compile_blocks, recompute
from dftune.train.shards import whole
from dftune.train.step import Pass, train_step
from dftune.train.supply import Supply
from dftune.train.world import ALONE, World

CPU = torch.device("cpu")
NUM_STEPS = 2


@dataclass(frozen=True)
class Case:
    """What is trained, and how the ranks hold it."""

    objective: str
    strategy: str = "none"
    options: dict = field(default_factory=dict)
    architecture: str = "qwen2"
    split: dict = field(default_factory=lambda: {"max_tokens": 70})
    route: str = "auto"
    rank: int | None = None  # of an adapter
    precision: torch.dtype = torch.float32
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    checkpointing: str = "none"
    compiled: bool = False
    num_steps: int = NUM_STEPS
    num_examples: int = 12


def grouped(num: int) -> list[Example]:
    """Groups of one chosen completion and two negatives."""
    return [
        dataclasses.replace(example, group=f"g{index // 3}", is_chosen=index % 3 == 0)
        for index, example in enumerate(make_examples(num, seed=5, longest=12))
    ]


def examples_of(case: Case) -> list[Example]:
    needs = get_objective(case.objective, **case.options).needs
    return grouped(case.num_examples) if "groups" in needs else make_examples(case.num_examples)


def build(case: Case) -> ScoredModel:
    model = make_model(case.architecture)
    recompute(model, case.checkpointing)
    adapter = None
    if case.rank is not None:
        adapter = Adapter(model, LoraConfig(rank=case.rank), seed=0)
        generator = torch.Generator().manual_seed(1)
        for value in adapter.weights().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    if case.compiled:
        compile_blocks(model)
    return ScoredModel(model, case.precision, adapter)


def supply_of(case: Case, examples: list[Example], scored: ScoredModel) -> Supply:
    """Reference and old policy from full logits of other models; the frozen one is the model as it is."""
    objective = get_objective(case.objective, **case.options)
    tables = {}
    for name, seed in (("ref_logps", 1), ("old_logps", 3)):
        if name in objective.needs:
            with torch.no_grad():
                tables[name] = Table(examples, score(make_model(case.architecture, seed=seed), examples))
    frozen = frozen_copy(scored) if "ref_kl" in objective.needs else None
    return Supply(**tables, reference=frozen, state=LogEstimates() if objective.stateful else None)


def steps(case: Case, world: World = ALONE) -> dict[str, torch.Tensor]:
    """Losses, gradient norms, metrics and the weights after some steps, and what a validation finds."""
    objective, examples = get_objective(case.objective, **case.options), examples_of(case)
    world, parts = divided(world, case.distributed.sequence_parallel), case.distributed.sequence_parallel
    scored = build(case)
    supply = supply_of(case, examples, scored)
    own = [supply.reference] if supply.reference is not None and scored.adapter is None else []
    spread([scored, *own], case.strategy, case.distributed, world, CPU)
    share_sequences([scored, *own], world, vocab_size=VOCAB, device=CPU)
    # without that eps Adam makes large steps of the rounding noise in gradients that are 0
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-2, eps=1e-4))
    how = Pass(
        supply,
        stats=frozenset({"top1_hit"}),
        route=case.route,
        world=world,
        sync_each=case.distributed.sync_each_micro_batch,
    )
    batches = micro_batches(examples, **case.split, rank=world.data.rank, num_ranks=world.data.size, parts=parts)
    found = {}
    scored.train()
    for step in range(case.num_steps):
        result = train_step(scored, optimizer, objective, batches, lr=1e-2, max_grad_norm=0.5, how=how)
        metrics = token_metrics(result.over(world.data), end_token_id=7)
        metrics |= {"loss": result.loss.item(), "grad_norm": result.grad_norm.item()}
        found |= {f"step {step} {name}": torch.tensor(value or 0.0) for name, value in metrics.items()}
    row = validate(scored, objective, batches, 7, supply, world=world.data)
    row["p_histogram"] = sum(i * n for i, n in enumerate(row["p_histogram"])) / row["num_tokens"] / 50
    found |= {f"validation {name}": torch.tensor(float(value or 0.0)) for name, value in row.items()}
    found |= {name: whole(value.detach()) for name, value in scored.named_parameters() if value.requires_grad}
    if supply.state is not None:
        found |= {f"state {name}": torch.tensor(value) for name, value in supply.state.state_dict().items()}
    return found


def _rank(rank: int, size: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    os.environ["WORLD_SIZE"] = str(size)
    function(World(rank, size, rank, size), Path(folder), *arguments)
    dist.destroy_process_group()


def spawn(size: int, folder: Path, function: Callable, *arguments) -> None:
    """Call ``function(world, folder, *arguments)`` in so many processes that know each other.

    They are forked from a server that has imported what takes seconds to import, once for all tests.
    """
    folder.mkdir(exist_ok=True)
    set_forkserver_preload(["dftune.train.loop", "transformers.models.qwen2.modeling_qwen2"])
    torch.multiprocessing.start_processes(
        _rank, (size, str(folder), function, arguments), nprocs=size, start_method="forkserver"
    )
