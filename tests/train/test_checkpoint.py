"""Checkpoints: complete or absent, and never loaded when they are not what was written."""

import json
import os
import pickle
import subprocess

import pytest
import torch
from tests.tiny import make_model
from transformers import AutoModelForCausalLM, MixtralConfig

from dftune.files import sha256_file
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


def test_a_mixture_whose_experts_transformers_stacks_comes_back(tmp_path):
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model, other = AutoModelForCausalLM.from_pretrained(tmp_path / "base"), AutoModelForCausalLM.from_config(config)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (model, other)]
    path = save_checkpoint(tmp_path, 1, Contents(model, Words(), optimizers[0], {}))
    load_checkpoint(path, model=other, optimizer=optimizers[1])
    read = AutoModelForCausalLM.from_pretrained(path / "model")
    for (name, value), again in zip(model.named_parameters(), read.parameters(), strict=True):
        assert torch.equal(other.get_parameter(name), value)
        assert torch.equal(again, value)


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


@pytest.mark.parametrize(
    ("plant", "match"),
    [
        (lambda path: (path / "optimizer.pt").write_bytes(pickle.dumps({})), r"optimizer\.pt was added"),
        (lambda path: (path / "model" / "modeling.py").write_text("raise SystemExit"), r"model/modeling\.py was added"),
        (lambda path: link(path, "state.json"), r"state\.json is not an ordinary file"),
        (lambda path: link(path, "model"), r"model is not an ordinary file"),
        (lambda path: list_outside(path, "../step-9/state.json"), r"\.\./step-9/state\.json is missing"),
        (lambda path: list_outside(path, str(path / "state.json")), r"/state\.json is missing"),
        (lambda path: (path / "manifest.json").write_text("[]"), "no readable manifest"),
        (lambda path: (path / "manifest.json").write_text('{"files": {"state.json": 3}}'), "no readable manifest"),
    ],
)
def test_what_was_planted_is_never_read(saved, plant, match):
    folder, *_ = saved
    plant(folder / "step-10")
    with pytest.raises(DamagedCheckpointError, match=match):
        verify(folder / "step-10")
    assert newest_intact(folder, lambda line: None) == folder / "step-9"


def link(path, name):
    """Move a part of a checkpoint elsewhere and put a link in its place."""
    elsewhere = path.parent / "elsewhere"
    (path / name).rename(elsewhere)
    (path / name).symlink_to(elsewhere)


def list_outside(path, name):
    """Have the manifest list a file outside of the checkpoint, with its true sum."""
    manifest = json.loads((path / "manifest.json").read_text())
    file = path / name
    manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_link_in_place_of_a_checkpoint_does_not_count(saved):
    folder, *_ = saved
    (folder / "step-11").symlink_to(folder / "step-10")
    assert newest_intact(folder, lambda line: None) == folder / "step-10"


def test_modes_of_files_and_folders_follow_the_umask(tmp_path, saved):
    _, model, optimizer = saved
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path / "group", 1, Contents(model, Words(), optimizer, {}))
    finally:
        os.umask(before)
    modes = {entry.is_dir(): entry.stat().st_mode & 0o777 for entry in (path, *path.rglob("*"))}
    assert modes == {True: 0o750, False: 0o640}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB: room for one checkpoint, and not for two."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_on_a_full_disk_the_one_before_stays_and_the_message_says_how_much_is_needed(saved, small_disk):
    _, model, optimizer = saved
    contents = Contents(model, Words(), optimizer, {})
    save_checkpoint(small_disk, 1, contents)
    with pytest.raises(OSError, match=r"could not write .*step-2 \(about 0\.000207 GB, .* GB free\)"):
        save_checkpoint(small_disk, 2, contents)
    assert [entry.name for entry in small_disk.iterdir()] == ["step-1"]
    verify(small_disk / "step-1")


class Broken:
    """A tokenizer on a disk that has just filled up."""

    def save_pretrained(self, path):
        raise OSError(28, "No space left on device")
