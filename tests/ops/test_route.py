"""Which route is taken is a pure function of the call, and a written one."""

import pytest
import torch

from dftune.ops.route import block_rows, choose_route, default_budget, tile_width

CPU = torch.device("cpu")
MIB = 2**20
CALL = {
    "num_tokens": 4096,
    "vocab_size": 151_936,
    "itemsize": 4,
    "differentiable": True,
    "head_trained": True,
    "entropy_gradient": False,
    "budget_bytes": 160 * MIB,
}


@pytest.mark.parametrize(
    ("changed", "route"),
    [
        ({}, "recompute"),  # 2.3 GiB of probabilities
        ({"vocab_size": 4096}, "stored"),  # 64 MiB
        ({"num_tokens": 256}, "stored"),  # 148 MiB
        ({"num_tokens": 0}, "plain"),
        ({"num_tokens": 512, "vocab_size": 512, "longest_group": 1}, "plain"),  # 2^18 logits
        ({"num_tokens": 512, "vocab_size": 513, "longest_group": 1}, "one_pass"),
        ({"num_tokens": 512, "vocab_size": 512, "budget_bytes": 4}, "recompute"),
        ({"longest_group": 1}, "one_pass"),
        ({"longest_group": 256}, "one_pass"),
        ({"longest_group": 300}, "recompute"),  # a group's 174 MiB do not fit
        ({"longest_group": 300, "itemsize": 2}, "one_pass"),
        ({"head_trained": False}, "frozen_head"),
        ({"head_trained": False, "longest_group": 1}, "frozen_head"),
        ({"head_trained": False, "entropy_gradient": True}, "recompute"),
        ({"differentiable": False, "head_trained": False, "vocab_size": 100}, "recompute"),
    ],
)
def test_the_route_follows_from_needs_and_budget(changed, route):
    assert choose_route(**{**CALL, **changed}) == route


def test_a_tile_of_logits_fits_a_quarter_of_the_budget_and_never_exceeds_the_vocabulary():
    assert tile_width(4096, 896, 151_936, CPU, 160 * MIB) * 4096 * 4 <= 16 * MIB
    assert tile_width(1, 896, 151_936, CPU, 160 * MIB) * 896 * 4 <= 16 * MIB  # nor a float32 copy of the weight's
    assert tile_width(4096, 896, 151_936, torch.device("cuda"), 1024 * MIB) == 16_384
    assert tile_width(4096, 896, 100, CPU, 160 * MIB) == 100
    assert tile_width(10**6, 896, 151_936, CPU, 1) == 256


def test_a_block_of_rows_fits_the_budget_and_the_cache_where_the_head_does():
    assert block_rows(151_936, 896, 4, CPU, 160 * MIB) == 160 * MIB // (151_936 * 4) == 276
    assert block_rows(4096, 256, 4, CPU, 160 * MIB) == 512  # 8 MiB
    assert block_rows(151_936, 896, 4, CPU, 1) == 1


def test_the_default_budget_is_larger_on_an_accelerator():
    assert default_budget(CPU) == 160 * MIB
    assert default_budget(torch.device("cuda")) == 1024 * MIB
