"""What holds for every route of the scorer whatever the input: order, parts, duplicates, padding, chunk size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dftune.ops.frozen_head import frozen_head
from dftune.ops.one_pass import Pass, blocks, one_pass
from dftune.ops.plain import plain
from dftune.ops.recompute import recompute
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.stored import stored

ROUTES = {"plain": plain, "stored": stored, "recompute": recompute, "frozen_head": frozen_head}
every_route = pytest.mark.parametrize("route", [*ROUTES, "one_pass"])
FEW = settings(max_examples=25, deadline=None)


@dataclass(frozen=True)
class Problem:
    """Rows to score in float64, d loss / d log p of each, and how the scorer is to cut them."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    width: int
    rows: int

    def take(self, order: Tensor | slice) -> Problem:
        """Some of the rows."""
        return replace(self, hidden=self.hidden[order], targets=self.targets[order], upstream=self.upstream[order])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    tokens, hidden, vocab = draw(st.integers(2, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(vocab, (tokens,), generator=generator)
    cuts = draw(st.integers(1, 30)), draw(st.integers(1, 10))
    return Problem(normal(tokens, hidden), normal(vocab, hidden), targets, normal(tokens), *cuts)


def score(route: str, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, and the gradients of hidden and weight (zero where the head is frozen)."""
    hidden = problem.hidden.clone().requires_grad_()
    weight = problem.weight.clone().requires_grad_(route != "frozen_head")
    scoring = Scoring(problem.targets, width=problem.width)
    if route == "one_pass":

        def fn(chunk: TokenStats, rows: slice) -> Tensor:
            return (problem.upstream[rows] * chunk.logps).sum()

        edges = blocks(len(hidden), problem.rows, None)
        total, stats, _ = one_pass(hidden, weight, None, Pass(scoring, fn, edges))
    else:
        stats = ROUTES[route](hidden, weight, None, scoring)
        total = (problem.upstream * stats.logps).sum()
    total.backward()
    assert hidden.grad is not None
    return stats.logps.detach(), hidden.grad, torch.zeros_like(weight) if weight.grad is None else weight.grad


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_route
@FEW
@given(problem=problems(), data=st.data())
def test_the_order_of_the_rows_does_not_matter(route, problem, data):
    order = torch.tensor(data.draw(st.permutations(range(len(problem.hidden)))))
    logps, of_hidden, of_weight = score(route, problem)
    found = score(route, problem.take(order))
    for ours, expected in zip(found, (logps[order], of_hidden[order], of_weight), strict=True):
        assert_close(ours, expected)


@every_route
@FEW
@given(problem=problems(), data=st.data())
def test_two_parts_have_the_rows_of_the_whole_and_their_gradients_add_up(route, problem, data):
    cut = data.draw(st.integers(0, len(problem.hidden)))
    whole = score(route, problem)
    parts = [score(route, problem.take(rows)) for rows in (slice(0, cut), slice(cut, None))]
    assert_close(torch.cat([part[0] for part in parts]), whole[0])
    assert_close(torch.cat([part[1] for part in parts]), whole[1])
    assert_close(torch.stack([part[2] for part in parts]).sum(0), whole[2])


@every_route
@FEW
@given(problem=problems())
def test_a_row_given_twice_counts_twice(route, problem):
    twice = problem.take(torch.arange(len(problem.hidden)).repeat(2))
    logps, of_hidden, of_weight = score(route, problem)
    for ours, expected in zip(
        score(route, twice), (logps.repeat(2), of_hidden.repeat(2, 1), 2 * of_weight), strict=True
    ):
        assert_close(ours, expected)


@every_route
@FEW
@given(problem=problems(), num=st.integers(1, 5))
def test_rows_that_the_loss_leaves_out_change_nothing(route, problem, num):
    more = problem.take(torch.cat([torch.arange(len(problem.hidden)), torch.zeros(num, dtype=torch.int64)]))
    more.upstream[-num:] = 0
    logps, of_hidden, of_weight = score(route, problem)
    found = score(route, more)
    assert_close(found[0][:-num], logps)
    assert_close(found[1][:-num], of_hidden)
    assert not found[1][-num:].any()
    assert_close(found[2], of_weight)


@every_route
@FEW
@given(problem=problems(), width=st.integers(1, 30), rows=st.integers(1, 10))
def test_the_size_of_a_chunk_changes_nothing(route, problem, width, rows):
    other = replace(problem, width=width, rows=rows)
    for ours, expected in zip(score(route, other), score(route, problem), strict=True):
        assert_close(ours, expected)
