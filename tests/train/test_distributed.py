"""Several processes compute what one does: losses, gradients, metrics, weights, state, whoever holds the weights."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.tiny import VOCAB, make_examples
from tests.train.ranks import CPU, Case, build, examples_of, spawn, steps

from dftune.data.batches import micro_batches
from dftune.objectives import OBJECTIVES, LossSum, get_objective
from dftune.objectives.entry import Entry, Objective
from dftune.ops.token_logps import token_logps
from dftune.train.config import DistributedConfig
from dftune.train.distributed import check_world, divided, share_sequences, spread
from dftune.train.optim import OptimizerConfig, make_optimizer
from dftune.train.setup import check_joined
from dftune.train.shards import check_held, whole
from dftune.train.step import NonFiniteError, Pass, train_step
from dftune.train.world import ALONE, World

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
NEEDS_ROLLOUTS = {"ppo", "grpo"}
VARIANTS = {
    "deft cayley": {"exponent": "cayley"},
    "iw_sft token": {"form": "token"},
    "asft k3": {"kl": "k3"},
    "discriminative_ft ref_free": {"ref_free": True},
}
OBJECTIVE_CASES = {
    f"{name}, {strategy}": Case(name.split()[0], strategy, options=options)
    for name, options in ({name: {} for name in OBJECTIVES if name not in NEEDS_ROLLOUTS} | VARIANTS).items()
    for strategy in ("ddp", "fsdp")
}
ONE_EACH = {"max_tokens": 1000, "max_examples": 1}
PADDED = {"max_tokens": 60, "packing": False}


def sharded(**settings) -> DistributedConfig:
    return DistributedConfig(strategy="fsdp", **settings)


OTHER_CASES = {
    **{
        f"{what}, {strategy}": dataclasses.replace(case, strategy=strategy)
        for strategy in ("ddp", "fsdp")
        for what, case in {
            "padded": Case("talr", split=PADDED),
            "groups padded": Case("dpo", split={"max_tokens": 130, "packing": False}),
            "an untied head, one example a pass": Case("dynamic_ft", architecture="llama-untied", split=ONE_EACH),
            "a rank without an example": Case("dynamic_ft", num_examples=1),
            "a rank without an example, one batch": Case("talr", num_examples=1),
            "a rank without an example, two models": Case("asft", num_examples=1),
            "an odd number of passes, one batch": Case("talr", num_examples=5, split=ONE_EACH),
            "activations recomputed": Case("eaft", checkpointing="full"),
            "activations recomputed selectively": Case("eaft", checkpointing="selective"),
            "an adapter": Case("dynamic_ft", rank=4, route="frozen_head"),
            "an adapter against its base": Case("asft", rank=4),
            "an adapter, one batch, activations recomputed": Case("talr", rank=4, checkpointing="full"),
        }.items()
    },
    **{
        f"fsdp, {route}, {head} head": Case("sft", "fsdp", architecture=architecture, route=route)
        for route in ("stored", "recompute", "one_pass")
        for head, architecture in (("tied", "qwen2"), ("untied", "llama-untied"))
    },
    "fsdp, gradients reduced each pass": Case("sft", "fsdp", distributed=sharded(sync_each_micro_batch=True)),
    "fsdp, blocks kept": Case("talr", "fsdp", distributed=sharded(reshard_after_forward=False)),
    "fsdp, offloaded": Case("sft", "fsdp", distributed=sharded(cpu_offload=True)),
}
HALVES = DistributedConfig(sequence_parallel=2)
IN_PARTS = {
    **{
        name.replace("ddp", "in parts"): dataclasses.replace(case, distributed=HALVES)
        for name, case in OBJECTIVE_CASES.items()
        if case.strategy == "ddp"
    },
    **{
        f"{what}, in parts": dataclasses.replace(case, strategy="ddp", distributed=HALVES)
        for what, case in {
            "padded rows": Case("talr", split=PADDED),
            "padded groups": Case("dpo", split={"max_tokens": 130, "packing": False}),
            "a window": Case("eaft", architecture="mistral-window"),
            "soft-caps": Case("sft", architecture="gemma2-softcap"),
            "learned positions": Case("sft", architecture="gpt2"),
            "an example a pass, untied": Case("dynamic_ft", architecture="llama-untied", split=ONE_EACH),
            "an adapter and its base": Case("asft", rank=4),
            "an adapter, activations recomputed": Case("talr", rank=4, checkpointing="full"),
            "activations recomputed in part": Case("iw_sft", checkpointing="selective"),
            "the head recomputed": Case("power", route="recompute"),
        }.items()
    },
    **{
        f"{objective}, in parts of shards": Case(objective, "fsdp", distributed=sharded(sequence_parallel=2))
        for objective in ("dynamic_ft", "asft", "talr", "discriminative_ft")
    },
}
CASES = OBJECTIVE_CASES | OTHER_CASES | IN_PARTS
FOUR = OBJECTIVE_CASES | {
    **{f"two of {name}": case for name, case in IN_PARTS.items()},
    "quarters, fewer key-value heads than parts": Case(
        "psft", "ddp", distributed=DistributedConfig(sequence_parallel=4)
    ),
    "replicas of shards, in parts": Case("eaft", "fsdp", distributed=sharded(replicas=2, sequence_parallel=2)),
    "a group without an example, in parts": Case("talr", "ddp", num_examples=1, distributed=HALVES),
    "a group without an example, in parts of shards": Case(
        "sft", "fsdp", num_examples=1, distributed=sharded(sequence_parallel=2)
    ),
    "replicas of shards": Case("talr", "fsdp", distributed=sharded(replicas=2)),
    "replicas of shards, reduced each pass": Case(
        "dpo", "fsdp", distributed=sharded(replicas=2, sync_each_micro_batch=True)
    ),
    "replicas of shards, an adapter": Case("asft", "fsdp", rank=4, distributed=sharded(replicas=2)),
}


def test_no_objective_is_left_out_for_another_reason_than_rollouts():
    assert {name for name in OBJECTIVES if "advantages" in get_objective(name).needs} == NEEDS_ROLLOUTS


@functools.cache
def alone(name: str) -> dict[str, torch.Tensor]:
    """The same by a single process."""
    case = (CASES | FOUR)[name]
    if case.strategy == "fsdp" and (twin := name.removesuffix("fsdp") + "ddp") in CASES:
        return alone(twin)
    return steps(dataclasses.replace(case, strategy="none", distributed=DistributedConfig()))


def all_of(world: World, folder: Path, names: list[str]) -> None:
    torch.save({name: steps((CASES | FOUR)[name], world) for name in names}, folder / f"{world.rank}.pt")
    if world.size == 2:
        check_ranks(world, folder)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two ranks finds in every case."""
    spawn(2, folder := tmp_path_factory.mktemp("two"), all_of, list(CASES))
    return [
        torch.load(folder / f"{rank}.pt") | {"checks": json.loads((folder / f"{rank}.json").read_text())}
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    spawn(4, folder, all_of, list(FOUR))
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def assert_same(ranks, name: str) -> None:
    expected = alone(name)
    for found in ranks:
        assert found[name].keys() == expected.keys()
        for key, value in expected.items():
            error = (found[name][key].double() - value.double()).norm()
            assert error <= 5e-5 * value.double().norm() + 2e-6, (key, found[name][key], value)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(of_two, name):
    assert_same(of_two, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_do_what_one_does(of_four, name):
    assert_same(of_four, name)


def test_what_these_cases_compare_moves_and_is_clipped():
    """A case in which nothing happened would prove nothing."""
    before = {name: value.detach() for name, value in build(CASES["sft, ddp"]).named_parameters()}
    found = alone("sft, ddp")
    assert all((found[name] - value).abs().max() > 1e-3 for name, value in before.items() if "k_proj.bias" not in name)
    assert found["step 0 grad_norm"] > 0.5
    assert len(alone("discriminative_ft, fsdp").keys() - alone("dpo, fsdp").keys()) >= 4  # estimates of four groups
    assert alone("asft, fsdp")["step 1 kl"] > 1e-3


# --- What more has to hold on two ranks, in one pair of processes ----------------------------------


def nan_on_one(tokens) -> LossSum:
    """Not finite where one example is among the tokens, which only one rank has."""
    total = -tokens.logps.sum()
    return LossSum(total * math.nan if "e0" in tokens.example_ids else total)


def check_ranks(world: World, folder: Path) -> None:
    found = {
        "nan": [nan_stops(world, strategy) for strategy in ("ddp", "fsdp")],
        "outside": scorer_outside_forward(world),
        "bfloat16": [in_bfloat16(world, parts) for parts in (1, 2)],
        "held": shard_sizes(world),
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))


def nan_stops(world: World, strategy: str) -> dict:
    case = Case("sft", strategy)
    scored = build(case)
    spread([scored], strategy, case.distributed, world, CPU)
    optimizer = make_optimizer(scored, OptimizerConfig(lr=0.1))
    objective = Objective("nan_on_one", {}, Entry(nan_on_one, "token", "sequence", frozenset(), "", ""), nan_on_one)
    batches = micro_batches(examples_of(case), max_tokens=70, rank=world.rank, num_ranks=world.size)
    before = [whole(value).clone() for value in scored.parameters()]
    raised = ""
    try:
        train_step(scored, optimizer, objective, batches, lr=0.1, max_grad_norm=1.0, how=Pass(world=world))
    except NonFiniteError as error:
        raised = str(error)
    same = [torch.equal(whole(value), old) for value, old in zip(scored.parameters(), before, strict=True)]
    return {"has it": any("e0" in b.example_ids for b in batches), "raised": raised, "same": all(same)}


def scorer_outside_forward(world: World) -> str:
    scored = build(Case("sft"))
    spread([scored], "fsdp", DistributedConfig(), world, CPU)
    with pytest.raises(ValueError, match="ddp over 2 processes, with all weights whole"):
        check_held(scored, "ddp", world)
    weight = scored.model.get_output_embeddings().weight
    hidden, targets = torch.randn(3, weight.shape[1]), torch.tensor([1, 2, 3])
    for route in ("auto", "recompute"):
        try:
            token_logps(hidden, weight, targets, route=route)
        except ValueError as error:
            said = str(error)
    full = whole(weight)
    assert torch.isfinite(token_logps(hidden, full, targets)).all()
    return said


def in_bfloat16(world: World, parts: int) -> dict:
    """Dtypes of the shards, of what the blocks compute on, and of the gradients; and the first loss."""
    case = Case("dynamic_ft", "fsdp", precision=torch.bfloat16)
    scored, seen, world = build(case), [], divided(world, parts)
    spread([scored], "fsdp", case.distributed, world, CPU)
    share_sequences([scored], world, vocab_size=VOCAB, device=CPU)
    block = scored.model.model.layers[0]
    block.register_forward_pre_hook(lambda module, _: seen.append(str(module.mlp.up_proj.weight.dtype)))
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-2))
    batches = micro_batches(examples_of(case), max_tokens=70, rank=world.data.rank, num_ranks=world.data.size)
    objective = get_objective("dynamic_ft")
    result = train_step(scored, optimizer, objective, batches, lr=1e-2, max_grad_norm=None, how=Pass(world=world))
    return {
        "masters": sorted({str(value.dtype) for value in scored.parameters()}),
        "gradients": sorted({str(value.grad.dtype) for value in scored.parameters()}),
        "compute": sorted(set(seen)),
        "loss": result.loss.item(),
        "norm": result.grad_norm.item(),
    }


def shard_sizes(world: World) -> list[int]:
    """Numbers held by this rank: at rest, after a forward without gradient, and after a step."""
    case = Case("sft", "fsdp")
    scored = build(case)
    sizes = [sum(value.numel() for value in scored.parameters())]
    spread([scored], "fsdp", case.distributed, world, CPU)

    def held() -> int:
        return sum(value.to_local().numel() for value in scored.parameters())

    batches = micro_batches(examples_of(case), max_tokens=70, rank=world.rank, num_ranks=world.size)
    sizes.append(held())
    with torch.no_grad():
        scored(batches[0])
    sizes.append(held())
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-2))
    train_step(scored, optimizer, get_objective("sft"), batches, lr=1e-2, max_grad_norm=1.0, how=Pass(world=world))
    sizes.append(held())
    sizes.append(sum(state["exp_avg"].to_local().numel() for state in optimizer.state.values()))
    return sizes


@pytest.fixture(scope="module")
def checks(of_two):
    return [found["checks"] for found in of_two]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_a_weight_moves(checks):
    for strategy in range(2):
        rows = [found["nan"][strategy] for found in checks]
        assert sorted(row["has it"] for row in rows) == [False, True]
        assert all("loss nan" in row["raised"] and row["same"] for row in rows)
        assert rows[0]["raised"] == rows[1]["raised"]


def test_a_sharded_head_outside_the_root_s_forward_is_refused(checks):
    for found in checks:
        assert "is a shard (DTensor)" in found["outside"]
        assert "full_tensor()" in found["outside"]


def test_bfloat16_computes_on_copies_of_float32_shards_and_reduces_in_float32(checks):
    expected = steps(Case("dynamic_ft"))
    for row in (row for found in checks for row in found["bfloat16"]):
        assert row["masters"] == row["gradients"] == ["torch.float32"]
        assert row["compute"] == ["torch.bfloat16"]
        assert row["loss"] == pytest.approx(expected["step 0 loss"].item(), rel=0.02)
        assert row["norm"] == pytest.approx(expected["step 0 grad_norm"].item(), rel=0.05)


def test_each_rank_holds_half_of_weights_and_optimizer_state_also_after_a_forward_without_gradient(checks):
    for total, *rest in (found["held"] for found in checks):
        assert all(size == pytest.approx(total / 2, rel=0.01) for size in rest)


# --- Shares of a step, and who takes part ----------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("packing", [True, False])
def test_the_ranks_share_every_example_once_in_equal_numbers_of_passes_and_keep_groups_together(num_ranks, packing):
    examples = examples_of(Case("dpo", num_examples=30))
    ranks = [
        micro_batches(examples, max_tokens=100, packing=packing, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    ids = [name for batches in ranks for batch in batches for name in batch.example_ids]
    assert sorted(ids) == sorted(example.id for example in examples)
    for batches in ranks:
        for batch in batches:
            assert len(batch.example_ids) == 3 * batch.num_groups
    tokens = [sum(batch.num_tokens for batch in batches) for batches in ranks]
    assert max(tokens) - min(tokens) <= 3 * 12  # the longest group


def test_more_ranks_than_examples_leave_idle_passes_that_count_nothing():
    ranks = [micro_batches(make_examples(2), max_tokens=100, rank=rank, num_ranks=4) for rank in range(4)]
    assert [batch.is_idle for (batch,) in ranks] == [False, False, True, True]
    idle = ranks[3][0]
    assert (idle.num_tokens, idle.num_units("token"), idle.num_units("sequence"), idle.num_padding) == (0, 0, 0, 1)


LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "settings", "expected"),
    [
        ({"WORLD_SIZE": "2"}, {}, r"WORLD_SIZE is 2, and RANK, .* not set: .*--nproc"),
        ({}, {"world_size": 2}, r"asks for 2 processes; launched: 1.*--nproc 2"),
        ({**LAUNCHED, "WORLD_SIZE": "2"}, {"world_size": 4}, r"asks for 4 processes; launched: 2"),
        ({}, {"strategy": "fsdp"}, r"asks for fsdp, and this is a process by itself.*strategy=auto"),
        ({**LAUNCHED, "WORLD_SIZE": "3"}, {"strategy": "fsdp", "replicas": 2}, r"replicas is 2, .* 3, is no"),
        ({**LAUNCHED, "WORLD_SIZE": "3"}, {"sequence_parallel": 2}, r"parallel is 2, and .* 3, is no"),
        ({}, {"sequence_parallel": 2}, r"sequence_parallel is 2, and .*, 1, is no .*--nproc 2"),
    ],
)
def test_another_world_than_the_one_asked_for_is_refused(monkeypatch, environment, settings, expected):
    for name in (*LAUNCHED, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=expected):
        check_world(DistributedConfig(**settings))


def test_a_process_alone_does_not_train_as_if_it_were_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, and train\(\) was given a world of 1"):
        check_joined(ALONE)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match=r"sequence_parallel is 2, and .* each sequence is shared by 1"):
        check_joined(ALONE, sequence_parallel=2)


@pytest.mark.parametrize(
    ("strategy", "size", "expected"),
    [
        ("fsdp", 2, r"fsdp over 2 processes, with all weights divided among 2 processes; \d+ of \d+ are not"),
        ("none", 2, r"none over 2 processes, with all weights whole in every process"),
    ],
)
def test_weights_that_lie_otherwise_than_the_strategy_says_stop_the_run(strategy, size, expected):
    scored = build(Case("sft"))
    check_held(scored, "ddp", World(0, 2))
    check_held(scored, "none", ALONE)
    with pytest.raises(ValueError, match=expected):
        check_held(scored, strategy, World(0, size))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"world_size": 3, "replicas": 2, "strategy": "fsdp"}, "multiple of replicas"),
        ({"replicas": 2}, "replicas: of strategy fsdp alone, and strategy is auto"),
        ({"cpu_offload": True, "strategy": "ddp"}, "cpu_offload: of strategy fsdp alone, and strategy is ddp"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        DistributedConfig(**settings)
