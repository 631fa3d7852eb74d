"""Compiled blocks on several processes compute what uncompiled ones do in one."""

import dataclasses
import shutil

import pytest
import torch
import torch.distributed as dist
from tests.train.ranks import Case, spawn, steps

from dftune.train.config import DistributedConfig

SHARDED = DistributedConfig(strategy="fsdp")
CASES = {
    "ddp": Case("dynamic_ft", "ddp", compiled=True),
    "fsdp": Case("dynamic_ft", "fsdp", compiled=True, distributed=SHARDED),
    "fsdp, an adapter, activations recomputed": Case(
        "talr", "fsdp", compiled=True, checkpointing="selective", rank=4, distributed=SHARDED
    ),
}


def all_of(world, folder):
    found = {}
    for name, case in CASES.items():
        found[name] = steps(case, world)
        found[name]["compiled"] = torch.tensor(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch.save(found, folder / f"{world.rank}.pt")


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process compiles
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_two_processes_with_compiled_blocks_do_what_one_does_without(tmp_path):
    spawn(2, folder := tmp_path / "ranks", all_of)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for name, case in CASES.items():
        plain = dataclasses.replace(
            case, strategy="none", compiled=False, checkpointing="none", distributed=DistributedConfig()
        )
        expected = steps(plain)
        for found in ranks:
            assert found[name].pop("compiled") > 0
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                error = (found[name][key].double() - value.double()).norm()
                assert error <= 5e-5 * value.double().norm() + 2e-6, (name, key)
