"""What is kept by example: one truth, whatever the order of micro-batches and the number of ranks."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dftune.objectives.state import LogEstimates, merge

VISITS = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-700, 700)), max_size=20)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def write_all(state: LogEstimates, visits) -> LogEstimates:
    for name, value in visits:
        state.write([name], values(value))
    return state


def test_an_example_not_seen_before_reads_as_0_and_unseen():
    found, seen = LogEstimates().read(["a", "b"])
    assert found.tolist() == [0, 0]
    assert seen.tolist() == [False, False]


def test_what_is_written_is_read_after_the_commit_and_not_before():
    state = LogEstimates()
    state.write(["a", "b"], values(1.5, -2.0))
    assert state.read(["a"])[1].tolist() == [False]
    state.commit()
    found, seen = state.read(["b", "c", "a"])
    assert found.tolist() == [-2.0, 0.0, 1.5]
    assert seen.tolist() == [True, False, True]
    assert state.written == {}


def test_what_is_discarded_is_never_read():
    state = write_all(LogEstimates(), [("a", 1.0)])
    state.discard()
    state.commit()
    assert state.state_dict() == {}


def test_an_example_visited_twice_in_a_step_keeps_the_mean_of_its_estimates():
    state = write_all(LogEstimates(), [("a", math.log(2)), ("a", math.log(4))])
    state.commit()
    assert state.state_dict()["a"] == pytest.approx(math.log(3))


@given(VISITS, st.lists(st.integers(0, 2), min_size=20, max_size=20), st.permutations(range(3)))
def test_ranks_agree_to_the_bit_however_the_visits_are_dealt_out(visits, ranks, order):
    alone = write_all(LogEstimates(), visits)
    alone.commit()
    states = [LogEstimates() for _ in range(3)]
    for (name, value), rank in zip(visits, ranks, strict=False):
        states[rank].write([name], values(value))
    gathered = [copy.deepcopy(states[rank].written) for rank in order]
    for state in states:
        state.commit(merge(gathered))
        assert state.state_dict() == alone.state_dict()
        assert state.written == {}


@given(VISITS)
def test_a_saved_state_comes_back_to_the_bit_through_json(visits):
    state = write_all(LogEstimates(), visits)
    state.commit()
    other = write_all(LogEstimates(), [("a", 1.0)])
    other.load_state_dict(json.loads(json.dumps(state.state_dict())))
    other.commit()
    assert other.state_dict() == state.state_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_changes_nothing(bad):
    state = write_all(LogEstimates(), [("a", 1.0)])
    state.commit()
    write_all(state, [("b", 2.0), ("c", bad)])
    with pytest.raises(ValueError, match=r"estimates of 1 examples are not finite, the first \['c'\]"):
        state.commit()
    with pytest.raises(ValueError, match="earlier checkpoint"):
        state.load_state_dict({"a": bad})
    assert state.state_dict() == {"a": 1.0}
