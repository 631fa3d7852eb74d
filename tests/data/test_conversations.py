"""Conversations of several turns: what is trained on, and what a chat template may do to them."""

import json

import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from dftune.data.batches import micro_batches
from dftune.data.conversations import split_turns
from dftune.data.dataset import PreparedDataset
from dftune.data.messages import Message
from dftune.data.prepare import prepare
from dftune.data.prompts import PromptFormat, get_format
from dftune.data.tokenizer import BatchEncoder

from .test_format_families import CHATML
from .test_prompts import make_tokenizer

TALK = [
    Message("user", "1 + 1?"),
    Message("assistant", "2"),
    Message("user", "Twice that?"),
    Message("assistant", "4"),
]
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set ns = namespace(first=true) %}{% for m in messages %}{{ (bos_token if loop.first else '') + '<|im_start|>' "
    "+ m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FORGETS_THOUGHTS = (  # as Qwen3's and DeepSeek-R1's do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows_of(messages: list[Message]) -> list[dict]:
    return [message._asdict() for message in messages]


def trained_texts(dataset: PreparedDataset, tokenizer, index: int = 0) -> list[str]:
    """The completions of a training example, each with its end token."""
    ids, mask = dataset.input_ids("train", index), dataset.completion_mask("train", index)
    edges = [place for place in range(len(ids)) if mask[place] and not mask[place - 1]]
    return [
        tokenizer.decode(ids[start : start + next((n for n, on in enumerate(mask[start:]) if not on), len(ids))])
        for start in edges
    ]


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, LLAMA_3, NO_GENERATION_PROMPT])
@pytest.mark.parametrize("bos", [False, True])
def test_the_parts_of_a_conversation_are_what_the_template_renders(template, bos):
    tokenizer = make_tokenizer(bos=bos, template=template)
    chat = get_format("chat", tokenizer)
    (row,) = BatchEncoder(chat, tokenizer).rows([TALK], "all")
    whole = tokenizer.apply_chat_template(rows_of(TALK), tokenize=False)
    decoded = tokenizer.decode(row.ids).removeprefix("<s>")
    assert whole.removeprefix("<s>").rstrip() == decoded  # the last turn's line break is not trained on
    trained = [tokenizer.decode(row.ids[start:stop]) for start, stop in row.spans]
    end = " <|endoftext|>" if template == LLAMA_2 else "<|im_end|>"
    assert [text.strip() for text in trained] == [f"2{end}", f"4{end}"]
    assert row.ids[:2].count(tokenizer.bos_token_id) == (1 if bos or template in (LLAMA_2, LLAMA_3) else 0)


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, LLAMA_3, NO_GENERATION_PROMPT])
@pytest.mark.parametrize("bos", [False, True])
def test_single_questions_and_conversations_of_one_turn_are_rendered_alike(template, bos):
    tokenizer = make_tokenizer(bos=bos, template=template)
    chat = get_format("chat", tokenizer)
    for problem, solution in (("Q", "A"), (" padded\n", "\n A ")):
        messages = [Message("user", problem), Message("assistant", solution)]
        (turn,) = split_turns(chat, tokenizer, messages, "all")
        (first, _) = split_turns(chat, tokenizer, [*messages, *TALK[2:]], "all")
        assert first == turn == (chat.render(problem), chat.render_completion(solution))


def test_a_template_that_trims_is_followed():
    tokenizer = make_tokenizer(template=LLAMA_3)
    chat = get_format("chat", tokenizer)
    assert chat.trim == ("problem", "solution")
    problem = "  1 + 1?\n"
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem}], tokenize=False, add_generation_prompt=True
    )
    assert chat.render(problem) == expected
    assert chat.render_completion("\n2 ") == "2"
    assert get_format("chat", make_tokenizer(template=CHATML)).trim == ()


def test_the_header_of_an_answer_is_prompt_even_where_the_template_has_no_generation_prompt():
    chat = get_format("chat", make_tokenizer(template=NO_GENERATION_PROMPT))
    assert chat.render("Q") == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render_completion("A") == "A"


def test_a_template_that_forgets_earlier_thoughts_is_trained_on_the_last_answer_alone():
    tokenizer = make_tokenizer(template=FORGETS_THOUGHTS)
    chat = get_format("chat", tokenizer)
    talk = [TALK[0], Message("assistant", "hm</think>2"), TALK[2], Message("assistant", "hm</think>4")]
    with pytest.raises(ValueError, match=r"renders an answer otherwise once others follow it: .*data\.turns=last"):
        split_turns(chat, tokenizer, talk, "all")
    (turn,) = split_turns(chat, tokenizer, talk, "last")
    assert turn.prompt.endswith(
        "assistant\n2<|im_end|>\n<|im_start|>user\nTwice that?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert turn.completion == "hm</think>4"


def test_a_conversation_needs_a_format_that_renders_it():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=r"'plain' renders single questions, and a conversation has 2\. Use chat"):
        split_turns(get_format("plain", tokenizer), tokenizer, TALK)
    with pytest.raises(ValueError, match=r"'qwen-boxed' has no place for the system message"):
        split_turns(get_format("qwen-boxed", tokenizer), tokenizer, [Message("system", "s"), *TALK])
    refuses = "{{ raise_exception('no system role') }}"
    template = "{% if messages[0].role == 'system' %}" + refuses + "{% endif %}" + CHATML
    tokenizer = make_tokenizer(template=template)
    with pytest.raises(ValueError, match=r"chat template refuses messages of system, user: no system role"):
        split_turns(get_format("chat", tokenizer), tokenizer, [Message("system", "s"), *TALK[:2]])


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("prompt_format", ["chat", "qwen-boxed", "llama-base-boxed"])
def test_answers_of_conversations_are_trained_on_as_the_recipe_says(
    turns, prompt_format, make_recipe, write_rows, chat_model
):
    expected = {"all": ["2<|im_end|>", "4<|im_end|>"], "last": ["4<|im_end|>"]}[turns]
    rows = [{"id": "t", "messages": rows_of(TALK)}, {"id": "s", "messages": rows_of([Message("user", "x"), TALK[3]])}]
    recipe = make_recipe(
        write_rows(rows), chat_model, prompt_format=prompt_format, turns=turns, columns={"messages": "messages"}
    )
    manifest = prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = make_tokenizer_of(dataset)
    end = "<|end_of_text|>" if prompt_format == "llama-base-boxed" else "<|im_end|>"
    assert trained_texts(dataset, tokenizer) == [text.replace("<|im_end|>", end) for text in expected]
    assert trained_texts(dataset, tokenizer, 1) == [f"4{end}"]
    assert manifest["tokens"]["completion"]["sum"] == 2 * len(expected) + 2
    (first, _) = parquet.read_table(recipe.data.prepared / "train.parquet").to_pylist()
    assert (first["problem"], first["solution"]) == ("Twice that?", "4")
    if prompt_format == "qwen-boxed":
        boxed = "\nPlease reason step by step, and put your final answer within \\boxed{}."
        assert tokenizer.decode(dataset.input_ids("train", 0)) == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n1 + 1?{boxed}<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
            f"<|im_start|>user\nTwice that?{boxed}<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
        )


def make_tokenizer_of(dataset: PreparedDataset):
    return AutoTokenizer.from_pretrained(dataset.tokenizer_folder)


def test_a_forward_pass_predicts_exactly_the_tokens_of_every_answer(make_recipe, write_rows, chat_model):
    rows = [{"messages": rows_of([*TALK, Message("user", f"{n}?"), Message("assistant", "x" * n)])} for n in (1, 5)]
    recipe = make_recipe(write_rows(rows), chat_model, prompt_format="chat", columns={"messages": "messages"})
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = make_tokenizer_of(dataset)
    for packing in (True, False):
        (batch,) = micro_batches([dataset.train.example(i) for i in (0, 1)], max_tokens=1000, packing=packing)
        flat = batch.input_ids.flatten()
        assert batch.targets.tolist() == flat[batch.positions + 1].tolist()
        texts = sorted(tokenizer.decode(batch.targets[batch.sequence_ids == i]) for i in (0, 1))
        assert texts == ["2<|im_end|>4<|im_end|>x<|im_end|>", "2<|im_end|>4<|im_end|>xxxxx<|im_end|>"]


def test_a_conversation_that_cannot_be_trained_on_is_counted_or_named(make_recipe, write_rows, chat_model):
    good = rows_of(TALK)
    rows = [good, good[:3], [*good[:3], {"role": "assistant", "content": ""}], good]
    path = write_rows([{"messages": messages} for messages in rows])
    recipe = make_recipe(path, chat_model, prompt_format="chat", columns={"messages": "messages"})
    dropped = prepare(recipe)["counts"]["dropped"]
    assert {reason: entry["examples"][0].rpartition(" ")[2] for reason, entry in dropped.items()} == {
        "conversation that ends without an answer": "2",
        "empty problem or solution": "3",
        "exact duplicate": "4",
    }
    path = write_rows([{"messages": good}, {"messages": [good[0], good[0], good[1]]}])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: column 'messages' .* 3 messages of user, user, assist"):
        prepare(make_recipe(path, chat_model, prompt_format="chat", columns={"messages": "messages"}, prepared="x"))
    path = write_rows([{"messages": good[:2]}, {"messages": good}])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: prompt format 'cot' renders single questions"):
        prepare(make_recipe(path, chat_model, prompt_format="cot", columns={"messages": "messages"}, prepared="x"))


def test_a_message_that_differs_early_makes_another_row(make_recipe, write_rows, chat_model):
    other = [Message("user", "3 - 1?"), *TALK[1:]]
    path = write_rows([{"messages": rows_of(TALK)}, {"messages": rows_of(other)}])
    recipe = make_recipe(path, chat_model, prompt_format="chat", columns={"messages": "messages"})
    assert prepare(recipe)["num_train"] == 2


def test_prompt_and_completion_may_be_lists_of_messages(make_recipe, write_rows, chat_model):
    rows = [
        {"prompt": rows_of(TALK[:3]), "completion": rows_of(TALK[3:])},
        {"prompt": rows_of([Message("system", "s"), TALK[0]]), "completion": "2"},
    ]
    columns = {"problem": "prompt", "solution": "completion"}
    recipe = make_recipe(write_rows(rows), chat_model, prompt_format="chat", turns="last", columns=columns)
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = make_tokenizer_of(dataset)
    assert tokenizer.decode(dataset.input_ids("train", 0)) == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nTwice that?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert trained_texts(dataset, tokenizer) == ["4<|im_end|>"]
    assert tokenizer.decode(dataset.input_ids("train", 1)).startswith("<|im_start|>system\ns<|im_end|>\n")


def test_negatives_answer_the_last_question_of_a_conversation(make_recipe, write_rows, chat_model):
    rejected = [*TALK[:3], Message("assistant", "5")]
    rows = [{"id": "a", "chosen": rows_of(TALK), "rejected": rows_of(rejected)}]
    columns = {"messages": "chosen", "negatives": "rejected"}
    recipe = make_recipe(write_rows(rows), chat_model, prompt_format="chat", columns=columns)
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = make_tokenizer_of(dataset)
    chosen, negative = dataset.train.group(0)
    assert tokenizer.decode(chosen.input_ids[chosen.completion_mask]) == "4<|im_end|>"
    assert tokenizer.decode(negative.input_ids[negative.completion_mask]) == "5<|im_end|>"
    prompt = tokenizer.decode(chosen.input_ids[~chosen.completion_mask])
    assert prompt == tokenizer.decode(negative.input_ids[~negative.completion_mask])
    assert "1 + 1?" in prompt
    rows[0]["rejected"][0]["content"] = "another start"
    with pytest.raises(ValueError, match="answers another question than the solution does"):
        prepare(make_recipe(write_rows(rows), chat_model, prompt_format="chat", columns=columns, prepared="x"))


def test_messages_take_the_place_of_problem_and_solution(make_recipe):
    with pytest.raises(ValueError, match="messages takes the place of problem and solution"):
        make_recipe("rows.jsonl", columns={"messages": "messages", "problem": "prompt"})


@pytest.mark.parametrize("layout", [None, 1, 99])
def test_a_dataset_of_another_layout_asks_to_be_prepared_again(layout, make_recipe, write_rows, byte_model):
    recipe = make_recipe(write_rows([{"problem": "p", "solution": "s"}]), byte_model)
    prepare(recipe)
    path = recipe.data.prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest = {key: value for key, value in manifest.items() if key != "layout"}
    path.write_text(json.dumps(manifest if layout is None else {**manifest, "layout": layout}))
    with pytest.raises(ValueError, match=r"another version of dftune .*Run `dftune prepare RECIPE --force`"):
        PreparedDataset.load(recipe.data.prepared)
    with pytest.raises(ValueError, match=r"--force"):
        prepare(recipe)
    prepare(recipe, force=True)
    assert len(PreparedDataset.load(recipe.data.prepared).train) == 1


def test_how_conversations_are_rendered_has_a_fingerprint_of_its_own():
    tokenizer = make_tokenizer()
    one = PromptFormat("a", "{problem}\n", later_template="\n{problem}\n")
    two = PromptFormat("a", "{problem}\n", later_template="{problem}\n")
    assert one.fingerprint == two.fingerprint == PromptFormat("a", "{problem}\n").fingerprint
    assert one.conversation_fingerprint(tokenizer) != two.conversation_fingerprint(tokenizer)
