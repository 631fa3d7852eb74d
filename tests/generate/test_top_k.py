import json

import pytest
from tests.chains import make_tokenizer
from tests.generate.scripted_server import ScriptedServer

from dftune.generate.base import Request, Sampling
from dftune.generate.client import ServerEngine
from dftune.generate.config import ServerConfig
from dftune.generate.wire import ServerFacts, body

ASKED = Request("a", (1, 2), text="a")


def sampled(**options):
    return Sampling(max_tokens=30, temperature=1.0, **options)


@pytest.fixture
def engine():
    """Makes an engine for a server that is closed at the end."""
    servers = []

    def make(**options):
        tokenizer = make_tokenizer()
        servers.append(ScriptedServer(tokenizer, **options))
        config = ServerConfig(server=(servers[-1].url,), request_timeout_s=5.0)
        return ServerEngine(config, ["tiny"], tokenizer, say=lambda line: None)

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize("software", ["vllm", "sglang"])
def test_vllm_and_sglang_are_told_the_number_or_that_all_tokens_may_be_drawn(software):
    facts = ServerFacts("http://here", "m", software)
    assert body(ASKED, sampled(top_k=50), facts, chat=False, max_tokens=9)["top_k"] == 50
    assert body(ASKED, sampled(), facts, chat=False, max_tokens=9)["top_k"] == -1


def test_transformers_is_told_in_its_generation_config_where_0_is_all():
    facts = ServerFacts("http://here", "m", "transformers")
    for top_k, told in ((50, 50), (None, 0)):
        fields = body(ASKED, sampled(top_k=top_k), facts, chat=False, max_tokens=9)
        assert json.loads(fields["generation_config"])["top_k"] == told
        assert "top_k" not in fields


def test_other_servers_are_told_only_what_they_are_asked_for():
    facts = ServerFacts("http://here", "m")
    assert body(ASKED, sampled(top_k=50), facts, chat=False, max_tokens=9)["top_k"] == 50
    assert "top_k" not in body(ASKED, sampled(), facts, chat=False, max_tokens=9)
    assert "top_k" not in body(ASKED, Sampling(30, top_k=50), facts, chat=False, max_tokens=9)


def test_a_server_that_heeds_top_k_is_used(engine):
    made = engine()
    assert [facts.model for facts in made.probe(sampled(top_k=50))] == ["tiny"]


def test_a_server_that_ignores_top_k_is_refused_only_where_it_is_asked_for(engine):
    made = engine(ignores={"top_k"})
    with pytest.raises(ValueError, match=r"does not heed top_k.* 3 texts for three seeds.*Set top_k to null"):
        made.probe(sampled(top_k=50))
    assert made.probe(sampled())


def test_a_top_k_below_one_is_refused():
    with pytest.raises(ValueError, match="top_k >= 1"):
        sampled(top_k=0)
