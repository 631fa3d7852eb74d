"""What no input may do to the grader: raise, hang, eat memory, run code, or give another verdict in a thread."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.evaluate.hostile import cases


@pytest.fixture(
    scope="module",
    params=[pytest.param(12, id="every twelfth"), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
def outcome(request) -> dict:
    script = Path(__file__).parent / "hostile.py"
    command = [sys.executable, str(script), str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_set_holds_at_least_150_inputs():
    assert len(cases()) >= 150


def test_no_hostile_input_takes_two_seconds_of_processor_time(outcome):
    slow = {name: seconds for name, (seconds, _, _) in outcome["report"].items() if seconds > 2.0}
    assert not slow


def test_all_hostile_input_together_stays_below_a_gigabyte(outcome):
    assert outcome["peak_bytes"] < 1_000_000_000


def test_an_audit_hook_sees_nothing_executed_compiled_or_opened(outcome):
    assert outcome["events"] == []


def test_hostile_input_gets_the_same_verdict_in_threads(outcome):
    assert outcome["differ_in_threads"] == []


def test_hostile_input_with_a_defined_verdict_gets_it(outcome):
    expected = {name: cases()[name][2] for name in outcome["report"]}
    verdicts = {name: verdict == "correct" for name, (_, verdict, _) in outcome["report"].items()}
    assert not [name for name, wanted in expected.items() if wanted is not None and verdicts[name] != wanted]


def test_no_hostile_input_meets_an_internal_error(outcome):
    assert not [name for name, (_, _, reason) in outcome["report"].items() if reason.startswith("internal error")]
