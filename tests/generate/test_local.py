import pytest
import torch
from tests.chains import CONTEXT, make_chain, make_tokenizer
from tests.tiny import VOCAB, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dftune.generate.base import Request, Sampling
from dftune.generate.local import LocalEngine

LETTERS = {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}, "d": {"e": 1.0}, "e": {"<|endoftext|>": 1.0}}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def letters(tokenizer):
    """After a comes b, then c, d, e and the end."""
    return LocalEngine(make_chain(tokenizer, LETTERS, otherwise="a"), tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def coins(tokenizer):
    """After any letter: x three times in ten, y six, the end once."""
    toss = {"x": 0.3, "y": 0.6, "<|endoftext|>": 0.1}
    return LocalEngine(make_chain(tokenizer, {"x": toss, "y": toss}, otherwise="x"), tokenizer, batch_size=64)


def complete(engine, *prompts, max_tokens=20, end=True, **options):
    requests = [Request(str(i), tuple(engine.tokenizer.encode(text))) for i, text in enumerate(prompts)]
    ends = frozenset([engine.tokenizer.eos_token_id]) if end else frozenset()
    return engine.generate(requests, Sampling(max_tokens=max_tokens, end_token_ids=ends, **options))


def random_requests(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (num,), generator=generator).tolist()
    prompts = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Request(f"r{index}", tuple(prompt)) for index, prompt in enumerate(prompts)]


def by_transformers(model, request, end, max_tokens):
    """New token ids by ``model.generate`` on this prompt alone."""
    ids = torch.tensor([request.prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(end) or None,
            pad_token_id=0,
        )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", ["qwen2", "llama-untied", "mistral-window", "gpt2"])
@pytest.mark.parametrize("end", [frozenset(), frozenset(range(0, VOCAB, 12))], ids=["to-the-limit", "ending-unevenly"])
def test_greedy_batches_give_what_transformers_generates_for_each_prompt_alone(architecture, end, tokenizer):
    model = make_model(architecture, "sdpa")
    engine = LocalEngine(model, tokenizer, batch_size=10)
    requests = random_requests(14)
    completions = engine.generate(requests, Sampling(max_tokens=16, end_token_ids=end))
    lengths = set()
    for request, done in zip(requests, completions, strict=True):
        ids = by_transformers(model, request, end, 16)
        ended = ids[-1] in end
        assert done.num_tokens == len(ids)
        assert done.finish_reason == ("stop" if ended else "length")
        assert done.text == tokenizer.decode(ids[:-1] if ended else ids)
        lengths.add(len(ids))
    assert (len(lengths) > 2) == bool(end)  # rows have left the batch at several steps


def test_completions_come_in_the_order_of_the_requests(letters):
    assert [done.text for done in complete(letters, "d", "aaaaab", "c", "a", "xxxd")] == ["e", "cde", "de", "bcde", "e"]


def test_a_completion_ends_at_the_end_token_which_is_counted_but_not_part_of_the_text(letters):
    (done,) = complete(letters, "a")
    assert (done.text, done.finish_reason, done.num_tokens) == ("bcde", "stop", 5)


def test_a_completion_that_reaches_the_limit_has_finish_reason_length(letters):
    (done,) = complete(letters, "a", max_tokens=4)
    assert (done.text, done.finish_reason, done.num_tokens) == ("bcde", "length", 4)


def test_an_end_token_at_the_limit_is_still_a_stop(letters):
    (done,) = complete(letters, "a", max_tokens=5)
    assert done.finish_reason == "stop"


def test_special_tokens_that_the_model_wrote_are_kept(tokenizer):
    chain = {"a": {"<|pad|>": 1.0}, "<|pad|>": {"b": 1.0}, "b": {"<|endoftext|>": 1.0}}
    engine = LocalEngine(make_chain(tokenizer, chain, otherwise="a"), tokenizer)
    assert [done.text for done in complete(engine, "a", "aaab")] == ["<|pad|>b", ""]


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens", "ended_at"),
    [
        (("c",), "b", 2, "c"),
        (("cd",), "b", 3, "cd"),  # two tokens
        (("bcde",), "", 4, "bcde"),
        (("e", "cd"), "b", 3, "cd"),
        (("de", "d"), "bc", 3, "d"),
        (("xyz", "ab"), "bcde", 5, ""),  # "ab" would begin in the prompt
    ],
)
def test_a_completion_is_cut_before_its_first_stop_string_and_says_which(letters, stop, text, num_tokens, ended_at):
    (done,) = complete(letters, "a", stop=stop)
    assert (done.text, done.finish_reason, done.num_tokens) == (text, "stop", num_tokens)
    assert done.stop_string == ended_at


def test_a_stop_string_inside_one_token_is_found(tokenizer):
    merged = make_tokenizer(("cdecdecde " * 9,))
    assert len(merged.encode("cde")) == 1
    engine = LocalEngine(make_chain(merged, {"a": {"cde": 1.0}}, otherwise="a"), merged)
    (done,) = complete(engine, "a", stop=("d",))
    assert (done.text, done.finish_reason) == ("c", "stop")


def test_a_stop_string_of_characters_of_several_bytes_is_found(tokenizer):
    byte = [tokenizer.convert_ids_to_tokens(index) for index in tokenizer.encode("é")]
    assert len(byte) == 2
    engine = LocalEngine(make_chain(tokenizer, LETTERS, otherwise="a"), tokenizer)
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():  # a, then the two bytes of é, then b
        for before, after in (("a", byte[0]), (byte[0], byte[1]), (byte[1], "b")):
            engine.model.lm_head.weight[:, vocabulary[before]] = -10
            engine.model.lm_head.weight[vocabulary[after], vocabulary[before]] = 10
    (done,) = complete(engine, "a", max_tokens=12)
    assert done.text == "ébcde"
    (done,) = complete(engine, "aa", stop=("éb",))
    assert (done.text, done.finish_reason) == ("", "stop")


def test_a_completion_is_cut_to_what_the_context_leaves(coins):
    (done,) = complete(coins, "x" * (CONTEXT - 3), max_tokens=1000, end=False)
    assert (done.num_tokens, done.finish_reason) == (3, "length")


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 5])
def test_a_prompt_that_fills_the_context_is_an_error_that_names_the_problem(coins, length):
    delivered = []
    requests = [Request("short", (5,)), Request("algebra/17", (5,) * length)]
    with pytest.raises(ValueError, match=rf"'algebra/17' has {length} tokens.*context holds {CONTEXT}"):
        coins.generate(requests, Sampling(max_tokens=4), delivered.append)
    assert not delivered


def test_an_empty_prompt_is_an_error_that_names_the_problem(coins):
    with pytest.raises(ValueError, match="'p/1' is empty"):
        coins.generate([Request("p/1", ())], Sampling(max_tokens=4))


def test_a_sample_is_the_same_in_any_batch_and_order(coins):
    requests = [Request(f"p{index % 5}", (70 + index % 5,) * (1 + index % 7), index // 5) for index in range(30)]
    sampling = Sampling(max_tokens=30, temperature=1.0, top_p=0.95, seed=3)
    reference = coins.generate(requests, sampling)
    for batch_size in (1, 7):
        engine = LocalEngine(coins.model, coins.tokenizer, batch_size=batch_size)
        assert engine.generate(requests[::-1], sampling)[::-1] == reference


def test_samples_differ_between_indices_problems_and_seeds(coins):
    prompt = tuple(coins.tokenizer.encode("x"))
    requests = [Request("p", prompt, 0), Request("p", prompt, 1), Request("q", prompt, 0)]
    texts = {
        done.text
        for seed in (0, 1)
        for done in coins.generate(requests, Sampling(max_tokens=60, temperature=1.0, seed=seed))
    }
    assert len(texts) == 6


def test_samples_have_the_models_probabilities(coins):
    requests = [Request("p", tuple(coins.tokenizer.encode("x")), sample) for sample in range(400)]
    ends = frozenset([coins.tokenizer.eos_token_id])
    completions = coins.generate(requests, Sampling(max_tokens=60, temperature=1.0, end_token_ids=ends))
    tokens = sum(done.num_tokens for done in completions)
    for symbol, probability in (("x", 0.3), ("y", 0.6)):
        count = sum(done.text.count(symbol) for done in completions)
        deviation = (tokens * probability * (1 - probability)) ** 0.5
        assert abs(count - tokens * probability) < 4 * deviation
    ended = sum(done.finish_reason == "stop" for done in completions)
    assert abs(ended - tokens * 0.1) < 4 * (tokens * 0.09) ** 0.5


def test_every_completion_is_delivered_once_and_when_it_is_finished(letters):
    delivered = []
    requests = [Request(letter, tuple(letters.tokenizer.encode(letter))) for letter in "adcb"]
    ends = frozenset([letters.tokenizer.eos_token_id])
    letters.generate(requests, Sampling(max_tokens=9, end_token_ids=ends), delivered.append)
    assert [[done.id for done in part] for part in delivered] == [["d"], ["c"], ["b"], ["a"]]


def test_weights_that_are_not_numbers_are_an_error(tokenizer):
    model = make_chain(tokenizer, LETTERS, otherwise="a")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        complete(LocalEngine(model, tokenizer), "a")


def test_a_space_at_the_start_of_a_completion_is_kept_with_tokenizers_that_drop_it():
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "▁A": 2, ":": 3, "▁4": 4, "▁so": 5}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    raw.decoder = decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    assert words.decode([4, 5]) == "4 so"  # alone, the space is gone
    model = make_model("qwen2", "sdpa")
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:6, :6] = torch.eye(6)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head = torch.zeros_like(model.lm_head.weight)
        for before, after in ((3, 4), (4, 5), (5, 1)):
            head[after, before] = 9
        model.lm_head.weight = torch.nn.Parameter(head)
    engine = LocalEngine(model, words)
    assert words.encode("A:") == [2, 3]
    (done,) = complete(engine, "A:")
    assert done.text == " 4 so"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_gives_what_the_cpu_gives(tokenizer):
    toss = {"x": 0.3, "y": 0.6, "<|endoftext|>": 0.1}
    chain = {"x": toss, "y": toss}
    requests = [Request(f"p{index}", (70 + index,) * (1 + index)) for index in range(20)]
    for options in ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}):
        sampling = Sampling(max_tokens=30, end_token_ids=frozenset([tokenizer.eos_token_id]), **options)
        on_cpu, on_cuda = (
            LocalEngine(make_chain(tokenizer, chain, otherwise="x"), tokenizer, device=device, batch_size=7)
            for device in ("cpu", "cuda")
        )
        assert on_cuda.generate(requests, sampling) == on_cpu.generate(requests, sampling)
