"""A checkpoint that all ranks write: each its share of the tensors, in files of its own, under one manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dftune.files import sha256_file, sync, umask_mode, write_json
from dftune.train.world import World

_NAMES = {"model": "model", "": "optimizer"}


def manifest_entry(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}


class Together:
    """What the ranks tell each other while they write: where to begin, and what each has written.

    Tensors are whole, and each is in one file, so that any number of processes can read the checkpoint, and
    ``from_pretrained`` its model.

    Args:
        world: the ranks.
        group: over which they talk; of its own where training goes on meanwhile, since calls on one must not mix.
    """

    def __init__(self, world: World, group: Any) -> None:
        self.world, self.group = world, group
        self._begun = False

    def led(self, write: Callable[[], Path]) -> Path:
        """On rank 0: write, and let the others go where it fails before they have begun."""
        try:
            return write()
        finally:
            if not self._begun:
                self._tell(None)

    def write(self, aside: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """On rank 0: have everybody write, and return the manifest's entries of all files.

        Args:
            aside: folder of the checkpoint.
            tensors: of this rank, by the folder that they go into.

        Raises:
            OSError: some rank could not write, or wrote where this one cannot see it.
        """
        self._begun = True
        self._tell(str(aside))
        found: list[Any] = [None] * self.world.size
        dist.gather_object(self._own(aside, tensors), found, dst=0, group=self.group)
        for rank, (_, _, problem) in enumerate(found):
            if problem is not None:
                raise OSError(f"rank {rank}: {problem}")
        listing = {name: value for entries, _, _ in found for name, value in entries.items()}
        unseen = [name for name in listing if not (aside / name).is_file()]
        if unseen:
            raise OSError(f"{unseen[0]} is not seen by rank 0; the run's folder must be one that all machines share")
        names = {name: file for _, held, _ in found for name, file in held.items()}
        total = sum(value["bytes"] for name, value in listing.items() if name.startswith("model/"))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        write_json(aside / "model" / "model.safetensors.index.json", index)
        return listing

    def help(self, path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """On another rank: write its share when rank 0 says where. Returns its path, complete or not."""
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[0] is not None:
            dist.gather_object(self._own(Path(box[0]), tensors), None, dst=0, group=self.group)
        return path

    def _tell(self, aside: str | None) -> None:
        dist.broadcast_object_list([aside], src=0, group=self.group)

    def _own(
        self, aside: Path, tensors: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[dict[str, Any], dict[str, str], str | None]:
        """Entries of the files written, the file of each weight, and what went wrong."""
        entries: dict[str, Any] = {}
        held: dict[str, str] = {}
        try:
            for folder, own in tensors.items():
                name = f"{_NAMES[folder]}-{self.world.rank + 1:05}-of-{self.world.size:05}.safetensors"
                file = aside / folder / name
                file.parent.mkdir(exist_ok=True)
                if own:
                    save_file(dict(own), file, metadata={"format": "pt"})
                    file.chmod(umask_mode())
                    sync(file)
                    entries[str(file.relative_to(aside))] = manifest_entry(file)
                if folder:
                    held |= dict.fromkeys(own, name)
        except (OSError, SafetensorError) as error:
            return {}, {}, str(error)
        return entries, held, None
