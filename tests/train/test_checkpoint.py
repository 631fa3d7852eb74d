"""Checkpoints: complete or absent, and never loaded when they are not what was written."""

import json

import pytest
import torch
from tests.tiny import make_model

from dftune.train.checkpoint import (
    Contents,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    newest_intact,
    prune,
    save_checkpoint,
    verify,
)


class Words:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, path):
        (path / "tokenizer.json").write_text("{}")


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, step, Contents(model, Words(), optimizer, {"counters": {"step": 2}}))
    return tmp_path, model, optimizer


def test_the_newest_is_found_by_number_and_old_ones_are_pruned(saved):
    folder, *_ = saved
    assert [path.name for path in list_checkpoints(folder)] == ["step-10", "step-9", "step-2"]
    (folder / ".incomplete-step-11").mkdir()
    prune(folder, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-10"]


def test_weights_moments_and_random_state_come_back(saved):
    folder, model, optimizer = saved
    drawn = torch.rand(3)
    torch.manual_seed(123)
    other = make_model(seed=5)
    restored = torch.optim.AdamW(other.parameters(), lr=0.1)
    state = load_checkpoint(folder / "step-9", model=other, optimizer=restored)
    assert state == {"step": 9, "counters": {"step": 2}}
    assert torch.equal(torch.rand(3), drawn)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(restored.state[ours][key], value)


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", "state.json", "model/model.safetensors", "model/config.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_any_damaged_file_is_noticed_and_the_one_before_is_used(saved, file, damage):
    folder, *_ = saved
    path = folder / "step-10" / file
    raw = path.read_bytes()
    if damage == "flip":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        path.unlink()
    with pytest.raises(DamagedCheckpointError, match=file):
        verify(folder / "step-10")
    said: list[str] = []
    assert newest_intact(folder, said.append) == folder / "step-9"
    assert len(said) == 1


def test_a_checkpoint_without_its_manifest_does_not_count(saved):
    folder, *_ = saved
    (folder / "step-10" / "manifest.json").unlink()
    assert newest_intact(folder, lambda line: None) == folder / "step-9"


def test_nothing_in_a_checkpoint_is_a_pickle(saved):
    folder, *_ = saved
    files = [file for file in (folder / "step-9").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert json.loads((folder / "step-9" / "manifest.json").read_text())["step"] == 9


def test_a_failure_while_writing_leaves_no_trace(saved):
    folder, model, optimizer = saved
    with pytest.raises(OSError, match=r"could not write .*step-12.*--resume"):
        save_checkpoint(folder, 12, Contents(model, Broken(), optimizer, {}))
    assert {path.name for path in folder.iterdir()} == {"step-2", "step-9", "step-10"}


class Broken:
    """A tokenizer on a disk that has just filled up."""

    def save_pretrained(self, path):
        raise OSError(28, "No space left on device")
