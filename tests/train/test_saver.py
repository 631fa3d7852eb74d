"""Checkpoints written in the background: of the moment they were asked for, one at a time, failures not lost."""

import threading

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_model

from dftune.files import read_json
from dftune.train.checkpoint import Contents, list_checkpoints, verify
from dftune.train.saver import Saver


class Words:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, path):
        (path / "tokenizer.json").write_text("{}")


@pytest.fixture
def trained():
    model = make_model("llama-untied")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    step()
    return model, optimizer, step


class Gate:
    """A file of a checkpoint that takes as long to write as the test likes."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, path) -> None:
        self.reached.set()
        assert self.open.wait(60)
        path.write_text("through")


def test_what_is_saved_is_of_its_moment_though_training_goes_on_before_it_is_written(trained, tmp_path):
    model, optimizer, step = trained
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    moments = {name: optimizer.state[value]["exp_avg"].clone() for name, value in model.named_parameters()}
    torch.manual_seed(5)
    gate, done = Gate(), []
    saver = Saver(tmp_path, background=True, done=lambda step, path: done.append((step, path)))
    saver.save(3, Contents(model, Words(), optimizer, {"counters": {"step": 3}}, {"0-gate": gate}))
    torch.rand(7)
    step()
    assert gate.reached.wait(60)
    assert list_checkpoints(tmp_path) == done == []
    gate.open.set()
    saver.finish()
    path = tmp_path / "step-3"
    assert done == [(3, path)]
    verify(path)
    saved, saved_moments = load_file(path / "model" / "model.safetensors"), load_file(path / "optimizer.safetensors")
    for name, value in weights.items():
        assert torch.equal(saved[name], value)
        assert not torch.equal(model.get_parameter(name), value)
        assert torch.equal(saved_moments[f"{name}.exp_avg"], moments[name])
    assert read_json(path / "state.json")["counters"] == {"step": 3}


def test_a_save_waits_for_the_one_before(trained, tmp_path):
    model, optimizer, _ = trained
    gate, order = Gate(), []
    saver = Saver(tmp_path, background=True, done=lambda step, path: order.append(step))
    saver.save(1, Contents(model, Words(), optimizer, {}, {"gate": gate}))
    second = threading.Thread(target=lambda: saver.save(2, Contents(model, Words(), optimizer, {})))
    second.start()
    assert gate.reached.wait(60)
    assert second.is_alive()
    assert not (tmp_path / ".incomplete-step-2").exists()
    gate.open.set()
    second.join()
    saver.finish()
    assert order == [1, 2]


def test_a_save_that_failed_in_the_background_is_told_at_the_next_and_leaves_no_trace(trained, tmp_path):
    model, optimizer, _ = trained

    def full(path):
        raise OSError(28, "No space left on device")

    saver = Saver(tmp_path, background=True, done=lambda step, path: None)
    saver.save(1, Contents(model, Words(), optimizer, {}))
    saver.save(2, Contents(model, Words(), optimizer, {}, {"full": full}))
    with pytest.raises(OSError, match=r"could not write .*step-2.*--resume"):
        saver.save(3, Contents(model, Words(), optimizer, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    saver.finish()  # said once


def test_in_the_foreground_it_is_there_when_save_returns(trained, tmp_path):
    model, optimizer, _ = trained
    saver = Saver(tmp_path, background=False, done=lambda step, path: None)
    saver.save(1, Contents(model, Words(), optimizer, {}))
    verify(tmp_path / "step-1")
