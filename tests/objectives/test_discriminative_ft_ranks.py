"""Discriminative FT on two processes keeps one truth: the loss, the gradient and the state of a single process."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.objectives.batches import gradient, random_tokens, take_groups

from dftune.objectives import TokenBatch, get_objective
from dftune.objectives.state import LogEstimates, merge

NUM_STEPS = 4


def step_tokens(step: int) -> TokenBatch:
    """Four groups of a pool of six examples, other ones each step; in step 2 one of them twice, once on each rank."""
    names = [f"problem-{(step + index) % 6}" for index in range(4)]
    if step == 2:
        names[3] = names[0]
    return dataclasses.replace(random_tokens(step, sizes=(2, 3, 2, 4)), example_ids=tuple(names))


def visit(tokens: TokenBatch, state: LogEstimates) -> tuple[float, list[float]]:
    objective = get_objective("discriminative_ft")
    slopes = gradient(objective, tokens, state=state)
    state.discard()  # as after a validation
    return objective(tokens, state=state).total.item(), slopes.tolist()


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    state, totals, slopes = LogEstimates(), [], []
    for step in range(NUM_STEPS):
        total, found = visit(take_groups(step_tokens(step), [0, 1] if rank == 0 else [2, 3]), state)
        gathered = [None, None]
        dist.all_gather_object(gathered, state.written)
        state.commit(merge(gathered))
        totals.append(total)
        slopes.append(found)
    Path(folder, f"{rank}.json").write_text(json.dumps([totals, slopes, state.state_dict()]))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_compute_what_one_process_does(tmp_path):
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    (totals, slopes, state), (other_totals, other_slopes, other_state) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    alone = LogEstimates()
    for step in range(NUM_STEPS):
        total, found = visit(step_tokens(step), alone)
        alone.commit()
        assert totals[step] + other_totals[step] == pytest.approx(total, rel=1e-12)
        assert slopes[step] + other_slopes[step] == pytest.approx(found, rel=1e-12)
    assert state == other_state
    assert state == pytest.approx(alone.state_dict(), rel=1e-12)
    assert len(state) == 6
