import pytest
from tests.train.conftest import addition_file, make_recipe
from tests.watch.folders import FakeTraining, write_problems

__all__ = ["addition_file", "make_recipe"]


@pytest.fixture
def problems(tmp_path):
    return write_problems(tmp_path / "sums.jsonl")


@pytest.fixture
def training(tmp_path, problems):
    return FakeTraining(tmp_path / "run", problems)
