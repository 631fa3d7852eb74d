"""Checkpoints that several ranks write: a share each, readable by anybody, complete or absent whoever fails."""

import resource
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.train.ranks import spawn
from tests.train.runs import run
from transformers import AutoModelForCausalLM

from dftune.data.prepare import prepared
from dftune.files import read_json
from dftune.recipe import Recipe
from dftune.train.checkpoint import DamagedCheckpointError, list_checkpoints, newest_intact, verify
from dftune.train.loop import train
from dftune.train.world import World

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
FSDP = ("distributed.strategy=fsdp", "optimizer.eps=1e-5", "train.checkpoint_every=2", "train.steps=5")


def train_on(world: World, folder: Path, recipe: Recipe) -> None:
    train(recipe, prepared(recipe), say=lambda line: None, world=world)


@pytest.fixture
def both(make_recipe, tmp_path):
    """The checkpoint of the same step, written by one process and by two that shard the model."""
    alone = run(make_recipe("alone", FSDP[1:])[0]).checkpoints / "step-4"
    several, _ = make_recipe("several", FSDP)
    spawn(2, tmp_path / "ranks", train_on, several)
    return alone, several.output / "checkpoints" / "step-4"


def tensors(files) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in files:
        own = load_file(file)
        assert not found.keys() & own.keys()
        found |= own
    return found


def test_each_rank_writes_its_share_of_what_one_process_writes(both):
    alone, several = both
    assert sorted(file.name for file in several.glob("optimizer*")) == [
        f"optimizer-0000{rank}-of-00002.safetensors" for rank in (1, 2)
    ]
    for one, pattern in (("model/model.safetensors", "model/*.safetensors"), ("optimizer.safetensors", "optim*")):
        expected, files = load_file(alone / one), list(several.glob(pattern))
        found = tensors(files)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5)
        sizes = [sum(value.nbytes for value in load_file(file).values()) for file in files]
        largest = max(value.nbytes for value in expected.values())
        assert abs(sizes[0] - sizes[1]) <= largest
    assert {file.suffix for file in several.rglob("*") if file.is_file()} == {".json", ".jinja", ".safetensors"}
    assert len({file.stat().st_mode for file in several.rglob("*") if file.is_file()}) == 1


def test_its_model_loads_with_from_pretrained_and_a_damaged_share_is_noticed(both):
    _, several = both
    model = AutoModelForCausalLM.from_pretrained(several / "model")
    saved = tensors((several / "model").glob("*.safetensors"))
    for name, value in model.named_parameters():
        assert torch.equal(value, saved[name])
    listed = read_json(several / "manifest.json")["files"].keys()
    assert listed == {str(file.relative_to(several)) for file in several.rglob("*") if file.is_file()} - {
        "manifest.json"
    }
    verify(several)
    (several / "optimizer-00002-of-00002.safetensors").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"optimizer-00002-of-00002\.safetensors is missing"):
        verify(several)
    assert newest_intact(several.parent, lambda line: None) == several.parent / "step-2"


def train_with_little_room(world: World, folder: Path, recipe: Recipe, full: int) -> None:
    """One rank cannot write files of over 1000 bytes."""
    if world.rank == full:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        train(recipe, prepared(recipe), say=lambda line: None, world=world)
    except OSError as error:
        said = str(error)
    except SystemExit as end:
        said = f"status {end.code}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / f"said-{world.rank}").write_text(said)


def test_where_one_rank_cannot_write_all_are_told_and_no_checkpoint_is_left(make_recipe, tmp_path):
    recipe, _ = make_recipe("full", FSDP)
    prepared(recipe)
    spawn(2, tmp_path / "ranks", train_with_little_room, recipe, 1)
    first, second = ((tmp_path / "ranks" / f"said-{rank}").read_text() for rank in range(2))
    assert "could not write" in first
    assert "rank 1: " in first
    assert second == "status 1"
    assert list_checkpoints(recipe.output / "checkpoints") == []
    assert not list((recipe.output / "checkpoints").iterdir())
