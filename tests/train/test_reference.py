"""Reference log-probabilities: right, computed once, taken up after a break, never another model's."""

import gc
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests.tiny import make_examples, make_model, make_scored
from tests.train.full_logits import score
from tests.train.runs import run
from transformers import Qwen2ForCausalLM

from dftune.data.batches import Example, micro_batches
from dftune.train.reference import examples_fingerprint, reference_logps, weights_fingerprint

KEY = {"data": "d", "prompt_format": "p"}


class Counting:
    """Splits examples into forward passes, and fails once asked for more than ``limit``."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.asked = limit, 0

    def __call__(self, examples):
        self.asked += len(examples)
        if self.limit is not None and self.asked > self.limit:
            raise KeyboardInterrupt
        return micro_batches(examples, max_tokens=2000)


def compute(folder, examples, model=None, key=KEY, batches=None):
    return reference_logps(model or make_scored(), examples, batches or Counting(), folder, key, say=lambda line: None)


def test_they_are_those_of_the_model_loaded_by_itself(tmp_path):
    examples = make_examples(40)
    found = compute(tmp_path, examples)
    with torch.no_grad():
        expected = score(make_model(), examples)
    for i in (0, 17, 39):
        torch.testing.assert_close(found.of([examples[i].id]), expected[i].logps, rtol=1e-5, atol=1e-5)
    both = found.of([examples[5].id, examples[2].id])
    torch.testing.assert_close(both, torch.cat([expected[5].logps, expected[2].logps]), rtol=1e-5, atol=1e-5)


def test_they_are_computed_once(tmp_path):
    examples = make_examples(10)
    first = compute(tmp_path, examples)
    again = Counting(limit=0)
    second = compute(tmp_path, examples, batches=again)
    assert again.asked == 0
    assert torch.equal(first.of(["e3", "e4"]), second.of(["e3", "e4"]))


def test_of_two_that_want_the_same_at_once_one_computes_and_the_other_waits(tmp_path):
    examples = make_examples(40)
    batches = [Counting(), Counting()]
    models = [make_scored(), make_scored()]  # made here: threads would share torch's random generator
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compute, tmp_path, examples, batches=each, model=model)
            for each, model in zip(batches, models, strict=True)
        ]
        first, second = (job.result() for job in jobs)
    assert sorted(each.asked for each in batches) == [0, 40]
    assert torch.equal(first.of(["e7"]), second.of(["e7"]))


def test_work_that_was_cut_short_is_taken_up_where_it_was(tmp_path):
    examples = make_examples(600, longest=6)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, examples, batches=Counting(limit=512))
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]  # nothing that could be used
    rest = Counting()
    found = compute(tmp_path, examples, batches=rest)
    assert rest.asked == 600 - 512
    whole = compute(tmp_path / "whole", examples)
    names = [example.id for example in examples]
    assert torch.equal(found.of(names), whole.of(names))
    assert not list(tmp_path.glob(".incomplete*"))


def test_another_model_data_or_format_has_a_folder_of_its_own(tmp_path):
    examples = make_examples(10)
    other = make_scored()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    cut = Example("e0", examples[0].input_ids[:-1], examples[0].completion_mask[:-1])
    cases = [
        {},
        {"model": other},
        {"key": KEY | {"prompt_format": "q"}},
        {"examples": [cut, *examples[1:]]},
        {"examples": examples[:9]},
    ]
    found = [compute(tmp_path, **({"examples": examples} | case)).fingerprint for case in cases]
    assert len(set(found)) == len(cases)


@pytest.mark.parametrize("file", ["logps.npy", "offsets.npy", "manifest.json"])
def test_what_is_not_as_it_was_written_is_refused(tmp_path, file):
    examples = make_examples(10)
    path = tmp_path / compute(tmp_path, examples).fingerprint / file
    raw = bytearray(path.read_bytes())
    raw[-5 if file != "manifest.json" else raw.index(b'"data": "d"') + 9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"not those of this model and data.*delete that folder"):
        compute(tmp_path, examples)


def test_ids_that_come_twice_are_refused(tmp_path):
    examples = make_examples(3)
    with pytest.raises(ValueError, match="'e1' comes more than once"):
        compute(tmp_path, [*examples, examples[1]])


def test_a_starting_model_that_gives_nan_leaves_nothing_behind(tmp_path):
    model = make_scored()
    with torch.no_grad():
        next(model.parameters())[:] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        compute(tmp_path, make_examples(3), model)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_fingerprints_see_one_weight_one_token_and_one_mask_bit():
    model = make_scored()
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(make_scored())
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[-1] += 1e-6
    assert weights_fingerprint(model) != before
    example = make_examples(1)[0]
    flipped = example.completion_mask.copy()
    flipped[0] ^= True
    changed = example.input_ids.copy()
    changed[-1] += 1
    variants = [
        example,
        Example("x", example.input_ids, example.completion_mask),
        Example("e0", changed, example.completion_mask),
        Example("e0", example.input_ids, flipped),
    ]
    assert len({examples_fingerprint([variant]) for variant in variants}) == 4


@pytest.mark.parametrize(("name", "num_models"), [("prior_ft", 1), ("asft", 2)])
def test_the_reference_model_is_in_memory_only_where_whole_rows_are_compared(make_recipe, name, num_models):
    def count() -> int:
        gc.collect()
        return sum(type(thing) is Qwen2ForCausalLM for thing in gc.get_objects())

    before, seen = count(), []
    recipe, _ = make_recipe(overrides=(f"objective.name={name}", "train.steps=1", "train.checkpoint_every=null"))
    run(recipe, say=lambda line: seen.append(count() - before) if line.startswith("step 1") else None)
    assert seen == [num_models]


def test_the_manifest_beside_the_numbers_says_what_they_are_of(tmp_path):
    examples = make_examples(3)
    path = tmp_path / compute(tmp_path, examples).fingerprint
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["key"] == KEY | {
        "model": weights_fingerprint(make_scored()),
        "examples": examples_fingerprint(examples),
    }
    assert sorted(file.name for file in path.iterdir()) == ["logps.npy", "manifest.json", "offsets.npy"]
