import asyncio
import contextlib
import os
import random
import signal
import threading

import pytest
from tests.chains import make_tokenizer
from tests.generate.scripted_server import (
    ScriptedServer,
    dropped,
    half,
    hang,
    says,
    status,
)

from dftune.generate.base import IncompleteError, Request, Sampling
from dftune.generate.client import ServerEngine, load_server_engine
from dftune.generate.config import ServerConfig
from dftune.generate.endpoint import Endpoint, Pool
from dftune.generate.faults import Backoff, RequestError

pytest.importorskip("openai")

GREEDY = Sampling(max_tokens=30)
DRAWN = Sampling(max_tokens=30, temperature=1.0, seed=5)
DONE = {"choices": [{"index": 0, "text": "abc", "finish_reason": "stop"}]}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def serve(tokenizer):
    """Starts servers that are closed at the end."""
    servers = []

    def start(**options):
        servers.append(ScriptedServer(tokenizer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def engine_of(tokenizer):
    def make(*servers, said=None, needs=(), max_context=None, **options):
        urls = tuple(server if isinstance(server, str) else server.url for server in servers)
        return ServerEngine(
            ServerConfig(server=urls, **{"request_timeout_s": 5.0, "outage_s": 20.0, "max_retries": 3, **options}),
            ["tiny"],
            tokenizer,
            needs=needs,
            max_context=max_context,
            backoff=Backoff(base_s=0.01, cap_s=0.05),
            say=(lambda line: None) if said is None else said.append,
        )

    return make


@pytest.fixture
def requests(tokenizer):
    def make(num, samples=1):
        texts = [f"problem {index}: " for index in range(num)]
        return [Request(text, tuple(tokenizer.encode(text)), s, text) for text in texts for s in range(samples)]

    return make


def greedy_text(request):
    """What the scripted server writes at temperature 0."""
    letters = random.Random(str([request.text]))
    return "".join(letters.choice("abcdefg ") for _ in range(letters.randint(25, 40)))


def check_greedy(requests, completions):
    for request, done in zip(requests, completions, strict=True):
        whole = greedy_text(request)
        assert (done.id, done.sample, done.text) == (request.id, request.sample, whole[:30])
        assert done.finish_reason == ("length" if len(whole) >= 30 else "stop")
        assert done.num_tokens == min(30, len(whole) + 1)


def test_every_request_is_sent_once_and_comes_back_in_order(serve, engine_of, requests):
    server, asked, delivered, threads = serve(), requests(40), [], set()

    def receive(completions):
        delivered.extend(completions)
        threads.add(threading.current_thread())

    check_greedy(asked, engine_of(server).generate(asked, GREEDY, receive))
    assert threads == {threading.current_thread()}
    assert len(server.bodies) == 40
    assert sorted(done.id for done in delivered) == sorted(request.id for request in asked)


def test_as_many_requests_are_in_flight_as_were_allowed_and_no_more(serve, engine_of, requests):
    together = threading.Barrier(6, timeout=20)
    server = serve(faults=[lambda handler, body: together.wait() < 0] * 18)
    check_greedy(requests(18), engine_of(server, concurrency=6).generate(requests(18), GREEDY))
    assert server.peak == 6


def test_what_the_probe_found_is_said_in_a_line_and_recorded(serve, engine_of):
    server, said = serve(), []
    engine = engine_of(server, said=said)
    (facts,) = engine.probe(DRAWN)
    assert (facts.n, facts.stop, facts.logprobs, facts.seed) == (True, "cut", True, True)
    assert (facts.token_prompts, facts.fixed_sampling, facts.software) == (True, False, None)
    assert engine.describe()["servers"][0]["stop"] == "cut"
    found = "n yes, stop cut, logprobs yes, seed yes, token ids as prompts yes"
    assert said == [f"{server.url} serves tiny (unknown software): {found}"]
    assert not server.bodies


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ("n", {"n": False}),
        ("stop", {"stop": "ignored"}),
        ("logprobs", {"logprobs": False}),
        ("seed", {"seed": False}),
        ("token_prompts", {"token_prompts": False}),
    ],
)
def test_what_a_server_ignores_is_noticed(serve, engine_of, ignored, expected):
    (facts,) = engine_of(serve(ignores=[ignored])).probe(DRAWN)
    seen = {key: facts.as_dict()[key] for key in ("n", "stop", "logprobs", "seed", "token_prompts")}
    assert seen == {"n": True, "stop": "cut", "logprobs": True, "seed": True, "token_prompts": True} | expected


@pytest.mark.parametrize("ignores", [["temperature"], ["max_tokens"]])
def test_a_server_that_ignores_what_cannot_be_done_without_is_refused(serve, engine_of, requests, ignores):
    server = serve(ignores=ignores)
    with pytest.raises(ValueError, match=f"{server.url} ignores .*{ignores[0]}"):
        engine_of(server).generate(requests(2), DRAWN)
    assert not server.bodies


def test_a_server_that_samples_as_in_its_first_request_is_used_only_where_that_is_allowed(serve, engine_of, requests):
    server = serve(fixed=True)
    with pytest.raises(ValueError, match=r"samples every request as its first one.*fixed_sampling=true"):
        engine_of(server).generate(requests(1), DRAWN)
    with pytest.raises(ValueError, match="ignores the temperature: asked three times at temperature 0"):
        engine_of(server).generate(requests(1), GREEDY)
    engine = engine_of(server, fixed_sampling=True)
    assert len(engine.generate(requests(1, samples=3), DRAWN)) == 3
    assert engine.facts[0].fixed_sampling


def test_vllm_gets_end_tokens_that_are_not_the_models_own_by_their_ids(serve, engine_of, requests):
    server = serve(models=[{"id": "tiny", "owned_by": "vllm"}])
    engine_of(server).generate(requests(1), Sampling(30, end_token_ids=frozenset([7, 9])))
    assert server.bodies[0]["stop_token_ids"] == [7, 9]
    assert "stop" not in server.bodies[0]


@pytest.mark.parametrize("need", ["logprobs", "seed"])
def test_a_need_that_a_server_does_not_meet_is_refused(serve, engine_of, need):
    with pytest.raises(ValueError, match=f"gives no {need}"):
        engine_of(serve(ignores=[need]), needs=[need]).probe(DRAWN)


def test_a_server_of_another_model_is_refused_with_what_it_serves(serve, engine_of, requests):
    server = serve(models=[{"id": "large"}, {"id": "huge"}])
    with pytest.raises(ValueError, match=r"serves large, huge, not tiny.*served_model=large"):
        engine_of(server).generate(requests(1), GREEDY)
    with pytest.raises(ValueError, match="serves large, huge, not small"):
        engine_of(server, served_model="small").generate(requests(1), GREEDY)
    engine_of(server, served_model="huge").generate(requests(1), GREEDY)
    assert server.bodies[-1]["model"] == "huge"


def test_a_model_is_recognised_by_the_path_it_was_loaded_from(serve, tokenizer, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}')
    server = serve(models=[{"id": "alias", "root": str(tmp_path), "max_model_len": 50}])
    config = ServerConfig(server=(server.url,))
    engine = load_server_engine(config, "some/name", tokenizer, folder=tmp_path, say=lambda line: None)
    (facts,) = engine.probe(GREEDY)
    assert facts.model == "alias"
    assert engine.end_token_ids == {tokenizer.eos_token_id, 3, 4}
    with pytest.raises(ValueError, match="'long' has 50 tokens, and the model's context holds 50"):
        engine.generate([Request("long", (70,) * 50)], GREEDY)
    (done,) = engine.generate([Request("long", (70,) * 40)], GREEDY)
    assert (done.finish_reason, done.num_tokens) == ("length", 10)


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503),
        status(429),
        status(408),
        dropped,
        half,
        says("<html>busy</html>"),
        says('{"choices": [{"text": "half'),
        says({"error": {"message": "out of memory"}}),
        says({"choices": []}),
        says({"choices": None}),
        says([1, 2]),
        says({"choices": [{"index": 0, "text": None, "finish_reason": "stop"}]}),
        says({"choices": [{"index": 0, "text": "half of an ans", "finish_reason": "abort"}]}),
        says({"choices": ["text"]}),
    ],
    ids=[
        *("500", "503", "429", "408", "dropped", "half closed", "html", "half a JSON", "error with 200", "no choices"),
        *("choices null", "a list", "text null", "aborted", "choice of no object"),
    ],
)
def test_a_request_that_fails_twice_is_tried_again_and_succeeds(serve, engine_of, requests, fault):
    server, asked = serve(faults=[None, fault, fault]), requests(4)
    check_greedy(asked, engine_of(server, concurrency=1).generate(asked, GREEDY))
    assert len(server.bodies) == 4 + 2


def test_a_reply_that_hangs_is_given_up_after_the_time_limit_and_asked_for_again(serve, engine_of, requests):
    server, asked = serve(faults=[hang]), requests(3)
    engine = engine_of(server, request_timeout_s=0.3)
    check_greedy(asked, engine.generate(asked, GREEDY))
    assert len(server.bodies) == 4
    assert engine.asked["busy"] == 1


def test_retry_after_is_waited_for_by_every_request(serve, engine_of, requests):
    server, asked = serve(faults=[status(429, retry_after="0.4")]), requests(3)
    check_greedy(asked, engine_of(server, concurrency=1).generate(asked, GREEDY))
    assert server.times[1] - server.times[0] >= 0.4
    assert len(server.bodies) == 4


def test_a_request_that_always_fails_is_a_failure_and_all_others_are_delivered(serve, engine_of, requests):
    server, asked, delivered = serve(faults=[status(500, "no memory")] * 4), requests(6), []
    with pytest.raises(IncompleteError, match=r"1 of 6 .*\(1\): HTTP 500: no memory. Run the same command") as caught:
        engine_of(server, concurrency=1).generate(asked, GREEDY, delivered.extend)
    (failure,) = caught.value.failures
    assert (failure.id, failure.sample, failure.reason) == (asked[0].id, 0, "HTTP 500: no memory")
    check_greedy(asked[1:], delivered)
    assert len(server.bodies) == 4 + 5


def test_a_request_that_the_server_refuses_is_not_sent_again(serve, engine_of, requests):
    server, asked, delivered = serve(faults=[status(400, "prompt too long")]), requests(3), []
    with pytest.raises(IncompleteError, match=r"1 of 3 .*HTTP 400: prompt too long"):
        engine_of(server, concurrency=1).generate(asked, GREEDY, delivered.extend)
    check_greedy(asked[1:], delivered)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(("code", "advice"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "served_model")])
def test_a_wrong_key_or_model_stops_everything_at_once(serve, engine_of, requests, code, advice):
    server, delivered = serve(faults=[None, status(code)]), []
    with pytest.raises(ValueError, match=f"{server.url}: HTTP {code}: no.*{advice}"):
        engine_of(server, concurrency=1).generate(requests(50), GREEDY, delivered.extend)
    assert len(delivered) == 1
    assert len(server.bodies) == 2


def test_the_key_comes_from_the_environment_and_is_in_no_message(serve, engine_of, requests, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server, said = serve(faults=[None, status(401, "wrong key sk-secret")]), []
    with pytest.raises(ValueError, match=r"wrong key \*\*\*") as caught:
        engine_of(server, concurrency=1, said=said).generate(requests(2), GREEDY)
    assert "sk-secret" not in str(caught.value) + str(said)
    assert set(server.keys) == {"Bearer sk-secret"}


def test_a_password_in_a_url_is_in_no_message(serve, engine_of):
    said = []
    engine = engine_of(serve().url.replace("//", "//user:pass@"), said=said)
    engine.probe(GREEDY)
    assert "pass" not in str(said) + str(engine.describe())


def test_no_server_at_all_is_an_error_that_says_what_to_do(serve, engine_of, requests):
    server = serve()
    server.close()
    with pytest.raises(ValueError, match=rf"No server can be used \({server.url}: connection failed.*dftune serve"):
        engine_of(server).generate(requests(1), GREEDY)


def test_servers_share_the_load_and_one_that_is_down_is_left_out(serve, engine_of, requests):
    first, second, gone, said, asked = serve(), serve(), serve(), [], requests(30)
    gone.close()
    check_greedy(asked, engine_of(first, gone, second, concurrency=2, said=said).generate(asked, GREEDY))
    assert len(first.bodies) + len(second.bodies) == 30
    assert min(len(first.bodies), len(second.bodies)) >= 5
    assert any(f"{gone.url} does not answer; it is left out" in line for line in said)


def leave(handler, body):
    """A fault: the server goes, and its connections with it."""
    threading.Thread(target=handler.server.close).start()
    handler.server.released.wait(5)
    handler.close_connection = True
    return True


@pytest.fixture
def restarted(tokenizer):
    """Starts another server at the port of one as soon as that has gone."""
    back = []

    def start(server, **options):
        def watch():
            server.released.wait(20)
            while not back:
                with contextlib.suppress(OSError):
                    back.append(ScriptedServer(tokenizer, port=server.server_port, **options))

        threading.Thread(target=watch, daemon=True).start()
        return back

    yield start
    for server in back:
        server.close()


def test_a_server_that_comes_back_with_another_model_is_not_asked(serve, engine_of, requests, restarted):
    server = serve(faults=[None, leave])
    back = restarted(server, models=[{"id": "other"}])
    with pytest.raises(ValueError, match=f"{server.url} serves other, not tiny"):
        engine_of(server, concurrency=1).generate(requests(9), GREEDY)
    assert not back[0].bodies


def test_a_server_that_goes_away_and_comes_back_is_used_again_and_nothing_is_lost(
    serve, engine_of, requests, restarted
):
    server, asked, delivered = serve(faults=[None] * 5 + [leave] * 4), requests(20), []
    back = restarted(server)
    check_greedy(asked, engine_of(server, concurrency=4).generate(asked, GREEDY, delivered.extend))
    assert len(delivered) == 20
    assert back[0].bodies
    lost = len(server.bodies) + len(back[0].bodies) - 20  # asked again: those that were under way, and no other
    assert 1 <= lost <= 4


def test_requests_become_failures_when_no_server_comes_back(serve, engine_of, requests):
    server, delivered = serve(faults=[None, None, leave]), []
    with pytest.raises(IncompleteError, match=r"8 of 10 requests failed.*no server could be reached for 0.3 s"):
        engine_of(server, concurrency=1, outage_s=0.3).generate(requests(10), GREEDY, delivered.extend)
    assert len(delivered) == 2


def test_an_outage_is_counted_from_the_loss_of_the_last_server():
    async def wait():
        first, last = (Endpoint("http://x/v1", concurrency=1, timeout_s=1, backoff=Backoff()) for _ in range(2))
        pool = Pool([first, last], outage_s=0.3)
        first.lose()
        await asyncio.sleep(0.4)
        last.lose()
        lost_at = asyncio.get_running_loop().time()
        with pytest.raises(RequestError, match=r"no server could be reached for 0\.3 s"):
            await pool.free()
        return asyncio.get_running_loop().time() - lost_at

    assert asyncio.run(wait()) >= 0.3


def test_the_number_of_requests_in_flight_adapts_to_what_the_server_takes(serve, engine_of, requests):
    server, asked = serve(most=3), requests(60)
    engine = engine_of(server, concurrency=32, max_retries=50)
    check_greedy(asked, engine.generate(asked, GREEDY))
    assert engine.asked["busy"] >= 1
    assert engine.endpoints[0].limit < 20  # halved once at least, and 60 answers add less than 60 / 16


def test_requests_turned_away_together_halve_the_number_in_flight_once(serve, engine_of, requests):
    together = threading.Barrier(8, timeout=20)

    def turned_away(handler, body):
        together.wait()
        return status(429)(handler, body)

    engine = engine_of(serve(faults=[turned_away] * 8), concurrency=8)
    check_greedy(requests(8), engine.generate(requests(8), GREEDY))
    expected = 4.0
    for _ in range(8):
        expected += 1 / expected
    assert engine.endpoints[0].limit == pytest.approx(expected)


def test_samples_of_a_problem_are_asked_for_at_once_where_the_server_gives_several(serve, engine_of, requests):
    server, asked = serve(), requests(2, samples=10)
    completions = engine_of(server, samples_per_request=4).generate(asked, DRAWN)
    assert sorted(body.get("n", 1) for body in server.bodies) == [2, 2, 4, 4, 4, 4]
    assert [(done.id, done.sample) for done in completions] == [(request.id, request.sample) for request in asked]
    assert len({done.text for done in completions}) == 20


def test_samples_are_asked_for_one_by_one_where_n_is_ignored(serve, engine_of, requests):
    server, asked = serve(ignores=["n"]), requests(3, samples=4)
    completions = engine_of(server).generate(asked, DRAWN)
    assert [body.get("n", 1) for body in server.bodies] == [1] * 12
    assert len({body["seed"] for body in server.bodies}) == 12
    assert len({done.text for done in completions}) == 12


def test_samples_that_an_answer_lacks_are_asked_for_again(serve, engine_of, requests):
    two = {"choices": [{"index": i, "text": "ab"[i], "finish_reason": "stop"} for i in (1, 0)]}
    server, asked = serve(faults=[says(two)]), requests(1, samples=5)
    completions = engine_of(server).generate(asked, DRAWN)
    assert [body.get("n", 1) for body in server.bodies] == [5, 3]
    assert [done.text for done in completions[:2]] == ["a", "b"]
    assert [done.sample for done in completions] == [0, 1, 2, 3, 4]


def test_a_sample_asked_for_alone_is_the_same_in_any_run(serve, engine_of, requests):
    asked = requests(3, samples=4)
    whole = engine_of(serve(), samples_per_request=1).generate(asked, DRAWN)
    engine = engine_of(serve(), serve(), samples_per_request=1)
    parts = [*engine.generate(asked[5:][::-1], DRAWN)[::-1], *engine.generate(asked[:5], DRAWN)]
    assert parts[-5:] + parts[:-5] == whole
    other = engine_of(serve(), samples_per_request=1).generate(asked, Sampling(30, temperature=1.0, seed=6))
    assert not {done.text for done in other} & {done.text for done in whole}


@pytest.mark.parametrize("options", [{}, {"stop": "kept"}, {"ignores": ["stop"]}], ids=["cut", "kept", "ignored"])
def test_a_completion_is_cut_before_a_stop_string_whatever_the_server_does(serve, engine_of, requests, options):
    server, asked = serve(**options), requests(8)
    completions = engine_of(server).generate(asked, Sampling(max_tokens=30, stop=("e", "zz", "b")))
    assert server.bodies[0]["stop"] == ["e", "zz", "b"]
    for request, done in zip(asked, completions, strict=True):
        text = greedy_text(request)[:30]
        cut = min(text.index(stop) for stop in "eb" if stop in text)
        assert (done.text, done.finish_reason, done.num_tokens) == (text[:cut], "stop", cut + 1)


def test_the_mean_log_probability_is_that_of_the_tokens_given(serve, engine_of, requests):
    asked = requests(3)
    for request, done in zip(asked, engine_of(serve()).generate(asked, GREEDY), strict=True):
        length = min(30, len(greedy_text(request)))
        assert done.mean_logp == pytest.approx((-0.5 * (length - 1) - 1.5) / length)
    assert engine_of(serve(ignores=["logprobs"])).generate(asked, GREEDY)[0].mean_logp is None


def test_prompts_are_token_ids_where_the_server_takes_them_and_text_elsewhere(serve, engine_of, requests):
    ids, text = serve(), serve(ignores=["token_prompts"])
    for server, prompt in ((ids, list(requests(1)[0].prompt)), (text, "problem 0: ")):
        check_greedy(requests(1), engine_of(server).generate(requests(1), GREEDY))
        assert server.bodies[0]["prompt"] == prompt
    engine_of(text).generate([Request("p", requests(1)[0].prompt)], GREEDY)  # without its text
    assert text.bodies[1]["prompt"] == "problem 0: "


def test_end_tokens_that_are_not_the_models_own_are_stop_strings(serve, engine_of, requests, tokenizer):
    pad = tokenizer.convert_tokens_to_ids("<|pad|>")
    wrote = {"choices": [{"index": 0, "text": "abc<|pad|>def", "finish_reason": "length"}]}
    server = serve(faults=[says(wrote)])
    (done,) = engine_of(server).generate(requests(1), Sampling(30, end_token_ids=frozenset([pad])))
    assert server.bodies[0]["stop"] == ["<|pad|>"]
    assert (done.text, done.finish_reason, done.num_tokens) == ("abc", "stop", 4)


def test_a_chat_server_gets_messages(serve, engine_of):
    server = serve()
    messages = (("system", "Be brief."), ("user", "How many?"))
    asked = [Request("a", (1,), text="How many?"), Request("b", (1,), messages=messages)]
    first, second = engine_of(server, chat=True).generate(asked, GREEDY)
    sent = sorted((body["messages"] for body in server.bodies), key=len)
    assert sent[0] == [{"role": "user", "content": "How many?"}]
    assert sent[1] == [{"role": role, "content": content} for role, content in messages]
    assert first.text == second.text == greedy_text(asked[0])[:30]
    assert first.mean_logp is None or first.mean_logp < 0


def test_thoughts_that_a_chat_server_takes_out_stay_in_the_text(serve, engine_of):
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    cut = {"role": "assistant", "content": None, "reasoning_content": "2 + "}
    replies = [says({"choices": [{"index": 0, "message": m, "finish_reason": "stop"}]}) for m in (message, cut)]
    asked = [Request("a", (1,), text="x"), Request("b", (1,), text="y")]
    done = engine_of(serve(faults=replies), chat=True, concurrency=1).generate(asked, GREEDY)
    assert [d.text for d in done] == ["<think>2 + 2</think>4", "<think>2 + "]


def test_a_missing_finish_reason_follows_from_the_number_of_tokens(serve, engine_of, requests):
    replies = [says({"choices": [{"text": text}]}) for text in ("a" * 30, "a" * 12)]
    done = engine_of(serve(faults=replies), concurrency=1).generate(requests(2), GREEDY)
    assert [(d.finish_reason, d.num_tokens) for d in done] == [("length", 30), ("stop", 12)]


def test_an_interrupt_stops_promptly_and_keeps_what_was_delivered(serve, engine_of, requests):
    server, delivered = serve(faults=[None] * 5 + [hang] * 20), []

    def interrupt():
        while len(server.bodies) < 7:
            server.released.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine_of(server, concurrency=2, request_timeout_s=250.0).generate(requests(12), GREEDY, delivered.extend)
    check_greedy([request for done in delivered for request in requests(12) if request.id == done.id], delivered)
    assert len(delivered) == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "requests"]


def test_an_error_of_the_receiver_ends_the_run(serve, engine_of, requests):
    def full(completions):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        engine_of(serve(faults=[None] + [hang] * 9), concurrency=1).generate(requests(9), GREEDY, full)


def test_an_engine_works_within_a_running_event_loop(serve, engine_of, requests):
    async def cell():
        return engine_of(serve()).generate(requests(2), GREEDY)

    check_greedy(requests(2), asyncio.run(cell()))


def test_an_empty_prompt_is_an_error_that_names_the_problem(serve, engine_of):
    with pytest.raises(ValueError, match="'p/1' is empty"):
        engine_of(serve()).generate([Request("p/1", ())], GREEDY)


def test_no_url_and_a_url_without_its_scheme_are_refused(tokenizer):
    with pytest.raises(ValueError, match="There is no server"):
        ServerEngine(ServerConfig(), ["tiny"], tokenizer)
    with pytest.raises(ValueError, match="'localhost:8000' is not a base URL"):
        ServerConfig(server=("localhost:8000",))
