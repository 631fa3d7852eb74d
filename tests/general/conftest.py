"""Local tasks for lm_eval, and models whose answers are known; nothing may reach beyond this machine."""

import json
import socket

import pytest
from tests.chains import save_chain

QUESTIONS = [
    {"question": "First?", "choices": ["A", "B", "C"], "label": 0},
    {"question": "Second?", "choices": ["A", "B", "C"], "label": 0},
    {"question": "Third?", "choices": ["A", "B", "C"], "label": 1},
    {"question": "Fourth?", "choices": ["A", "B", "C"], "label": 2},
]
SUMS = [{"question": "3+4", "answer": "7"}, {"question": "4+4", "answer": "8"}, {"question": "9-2", "answer": "7"}]
LIKES_A = {":": {" ": 1.0}, " ": {"A": 0.6, "B": 0.3, "C": 0.1}, "=": {"7": 1.0}}
LIKES_B = {":": {" ": 1.0}, " ": {"A": 0.3, "B": 0.6, "C": 0.1}, "=": {"8": 1.0}}

LETTERS = """\
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/letters.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.5}}
"""
MASS = """\
include: letters.yaml
task: mass
process_results: !function utils.mass_of_the_right_choice
metric_list: [{metric: mass, aggregation: mean, higher_is_better: true}]
"""
SUMS_TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}="
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 2.0}}
"""
BOTH = """\
group: both
task: [letters, letters_again]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
"""
UTILS = """\
import math
def mass_of_the_right_choice(doc, results):
    masses = [math.exp(logp) for logp, _ in results]
    return {"mass": masses[doc["label"]] / sum(masses)}
"""


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch):
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address} was tried")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks: letters and mass (multiple choice), sums (generated), both (a group)."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "letters.yaml").write_text(LETTERS.format(folder=folder))
    (folder / "again.yaml").write_text("include: letters.yaml\ntask: letters_again\n")
    (folder / "mass.yaml").write_text(MASS)
    (folder / "sums.yaml").write_text(SUMS_TASK.format(folder=folder))
    (folder / "both.yaml").write_text(BOTH)
    (folder / "utils.py").write_text(UTILS)
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    return folder


@pytest.fixture(scope="session")
def likes_a(tmp_path_factory):
    """Says A with probability 0.6, B with 0.3, C with 0.1, and 7 after an equals sign."""
    return save_chain(tmp_path_factory.mktemp("models") / "likes-a", LIKES_A)


@pytest.fixture(scope="session")
def likes_b(tmp_path_factory):
    """Says B with probability 0.6, A with 0.3, C with 0.1, and 8 after an equals sign."""
    return save_chain(tmp_path_factory.mktemp("models") / "likes-b", LIKES_B)
