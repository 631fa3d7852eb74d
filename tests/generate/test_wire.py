import json
import time
from email.utils import formatdate

import pytest

from dftune.generate.base import Request, Sampling
from dftune.generate.faults import Backoff, RequestError, retry_after
from dftune.generate.wire import ServerFacts, body, choices_of

REQUEST = Request("p", (5, 6), text="1 + 1 =\n")
DRAWN = Sampling(max_tokens=9, temperature=0.7, top_p=0.9, end_token_ids=frozenset([2, 1]))


def sent(software, sampling=DRAWN, **options):
    facts = ServerFacts("http://here/v1", "tiny", software)
    return body(REQUEST, sampling, facts, chat=False, max_tokens=8, **options)


def test_vllm_is_told_not_to_take_its_sampling_from_the_models_generation_config():
    fields = sent("vllm", num_samples=3, seed=4, stop=("a",))
    assert fields == {
        **{"model": "tiny", "prompt": "1 + 1 =\n", "max_tokens": 8, "temperature": 0.7, "top_p": 0.9},
        **{"n": 3, "seed": 4, "stop": ["a"], "stop_token_ids": [1, 2], "skip_special_tokens": False},
        **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    }


def test_transformers_is_told_to_sample_from_all_tokens_and_where_to_end():
    config = json.loads(sent("transformers")["generation_config"])
    assert config == {
        **{"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
        **{"max_new_tokens": 8, "eos_token_id": [1, 2], "pad_token_id": 1},
    }
    assert json.loads(sent("transformers", Sampling(max_tokens=9))["generation_config"])["do_sample"] is False


def test_an_unknown_server_gets_the_fields_of_the_protocol_only_and_no_seed_at_temperature_0():
    assert set(sent(None, Sampling(max_tokens=9))) == {"model", "prompt", "max_tokens", "temperature", "top_p"}


def test_transformers_gets_no_stop_string_that_could_begin_in_the_prompt():
    stops = ("\n\nQuestion:", "=\n#", "Question:", "\n")
    assert sent("transformers", stop=stops)["stop"] == ["Question:", "\n"]
    assert sent("vllm", stop=stops)["stop"] == list(stops)


def test_a_server_gets_at_most_four_stop_strings():
    assert sent(None, stop=tuple("abcdef"))["stop"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("logps", [None, [], [-1.0, None], [-1.0, float("nan")], ["a"]])
def test_log_probabilities_that_are_not_all_numbers_are_none(logps):
    (choice,) = choices_of({"choices": [{"text": "ab", "logprobs": {"token_logprobs": logps}}]}, 1)
    assert choice.logps is None


def test_log_probabilities_of_a_chat_are_read():
    logprobs = {"content": [{"token": "a", "logprob": -1}, {"token": "b", "logprob": -0.5}]}
    reply = {"choices": [{"message": {"content": "ab"}, "logprobs": logprobs}]}
    assert choices_of(reply, 1)[0].logps == (-1.0, -0.5)


def test_more_choices_than_were_asked_for_are_left_out():
    choices = [{"index": index, "text": str(index)} for index in (2, 0, 1)]
    assert [choice.text for choice in choices_of({"choices": choices}, 2)] == ["0", "1"]


@pytest.mark.parametrize("reason", ["content_filter", "abort", "tool_calls", 7])
def test_an_ending_that_is_none_is_not_a_completion(reason):
    with pytest.raises(RequestError, match=f"finish_reason {reason!r}"):
        choices_of({"choices": [{"text": "a", "finish_reason": reason}]}, 1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "86400"}, 600),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
    ],
)
def test_retry_after_is_read_in_seconds_and_milliseconds(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    assert retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(100, abs=30)
    assert retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0


def test_waiting_times_double_up_to_a_limit_with_jitter():
    backoff = Backoff(base_s=1.0, cap_s=20.0)
    for attempt, most in enumerate([1, 2, 4, 8, 16, 20, 20]):
        drawn = [backoff.seconds(attempt) for _ in range(200)]
        assert most / 2 <= min(drawn) < 0.6 * most < 0.9 * most < max(drawn) <= most
    assert backoff.seconds(10**6) <= 20
