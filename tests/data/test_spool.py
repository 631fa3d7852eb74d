"""Lists on disk, and what preparing and loading do with them: the same as in memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftune.data import spool, tables
from dftune.data.dataset import PreparedDataset
from dftune.data.prepare import prepare
from dftune.data.spool import Spool

from .conftest import FIXTURES
from .test_prepare import files_of


@given(st.lists(st.tuples(st.sampled_from(["append", "replace", "read"]), st.integers(0, 9), st.text(max_size=200))))
def test_a_spool_is_a_list_whatever_is_done_to_it_in_whatever_order(steps):
    before = spool._IN_MEMORY
    spool._IN_MEMORY = 300  # bytes, so that most of it is in the file
    try:
        found, expected = Spool(), []
    finally:
        spool._IN_MEMORY = before
    for what, place, text in steps:
        if what == "append":
            found.append((place, text))
            expected.append((place, text))
        elif place < len(expected) and what == "replace":
            found[place] = (place, text)
            expected[place] = (place, text)
        elif place < len(expected):
            assert found[place] == expected[place]
    assert list(found) == expected
    assert len(found) == len(expected)


def test_a_killed_process_leaves_no_file_of_a_spool(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from dftune.data.spool import Spool\n"
        "rows = Spool(Path(sys.argv[1]))\n"
        "for _ in range(40): rows.append(os.urandom(2**20))\n"
        "assert rows._file._rolled; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=os.environ)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("new_model", [False, True])
def test_with_everything_on_disk_the_prepared_bytes_are_the_same(
    new_model, make_recipe, byte_model, tmp_path, monkeypatch
):
    folders = []
    for name, limit in (("memory", 2**25), ("disk", 1)):
        monkeypatch.setattr(spool, "_IN_MEMORY", limit)
        model = None if new_model else byte_model
        recipe = make_recipe(FIXTURES / "stories.jsonl", model, validation=5, prepared=str(tmp_path / name))
        prepare(recipe)
        folders.append(files_of(recipe.data.prepared))
    assert folders[0] == folders[1]


def test_mapped_tables_hold_what_tables_in_memory_hold(make_recipe, byte_model, tmp_path, write_rows, monkeypatch):
    rows = [{"problem": f"p{n}", "solution": "s" * (n % 7 + 1), "rejected": [f"r{n}", "x" * n]} for n in range(50)]
    recipe = make_recipe(write_rows(rows), byte_model, validation=5, columns={"negatives": "rejected"})
    prepare(recipe)
    held = PreparedDataset.load(recipe.data.prepared)
    monkeypatch.setattr(tables, "_MAPPED_FROM", 10)
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 7)
    mapped = PreparedDataset.load(recipe.data.prepared)
    for split in ("train", "validation"):
        one, other = held.split(split), mapped.split(split)
        assert one.ids == other.ids
        for name in ("tokens", "mask", "offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("numbers", "tokens", "offsets", "starts"):
            np.testing.assert_array_equal(getattr(one.negatives, name), getattr(other.negatives, name))
    assert isinstance(mapped.train.tokens.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped.train.tokens[0] = 1
