"""A user's own objective, in a file beside the recipe."""

import re
import subprocess
import sys

import pytest
import torch
from tests.objectives.batches import tokens_of

from dftune.objectives import LossSum, get_objective, objective
from dftune.objectives.state import LogEstimates

SOURCE = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dftune.objectives import LossSum, TokenBatch, objective


@dataclass
class Scale:
    value: float


@objective(unit="sequence", separable="token", needs=["ref_logps"], formula="scale (log p - log q)^2")
def squared(tokens: TokenBatch, *, scale: Annotated[float, Field(gt=0)] = 2.0) -> LossSum:
    '''Squared distance to the reference.'''
    return LossSum(Scale(scale).value * (tokens.logps - tokens.need("ref_logps")).square().sum())


def plain(tokens: TokenBatch) -> LossSum:
    return LossSum(-tokens.logps.sum())
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my losses.py"
    path.write_text(SOURCE)
    return path


def test_a_decorated_function_in_a_file_is_an_objective_like_any_other(file):
    found = get_objective(f"{file}:squared", scale=3)
    assert (found.unit, found.separable, found.needs) == ("sequence", "token", {"ref_logps"})
    assert found.options == {"scale": 3.0}
    assert found(tokens_of([-1.0, -3.0], ref_logps=[-2.0, -1.0])).total.item() == 3 * (1 + 4)


def test_the_path_is_relative_to_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert get_objective("my losses.py:squared").options == {"scale": 2.0}


def test_its_options_are_checked(file):
    with pytest.raises(
        ValueError, match=r"scale: .*found -1.*sale: not an option of .*:squared \(its options: scale\)"
    ):
        get_objective(f"{file}:squared", scale=-1, sale=2)


def test_a_changed_file_is_read_again(file):
    get_objective(f"{file}:squared")
    file.write_text(SOURCE.replace("= 2.0", "= 5.0"))
    assert get_objective(f"{file}:squared").options == {"scale": 5.0}


def test_a_function_that_is_missing_or_not_decorated_is_answered_with_what_there_is(file):
    for name in ("cubed", "plain"):
        with pytest.raises(ValueError, match=rf"no objective '{name}'; it defines: squared\. Decorate"):
            get_objective(f"{file}:{name}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.py"):
        get_objective(f"{tmp_path}/nowhere.py:loss")


@pytest.mark.parametrize("source", ["import nothing_of_that_name", "def loss(:", "1 / 0"])
def test_a_file_that_fails_says_how(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=r"importing .*broken\.py failed: (ModuleNotFound|Syntax|ZeroDivision)Error: "):
        get_objective(f"{path}:loss")


def test_options_that_are_not_keyword_only_are_refused_where_they_are_written():
    with pytest.raises(ValueError, match=r"loss\(tokens, scale=1\.0\): an objective takes the tokens and then keyword"):

        @objective(unit="token", separable="token")
        def loss(tokens, scale=1.0):
            return LossSum(scale * tokens.logps.sum())


def test_a_stateful_objective_takes_a_state():
    with pytest.raises(ValueError, match="declared stateful and takes no `state`"):

        @objective(unit="token", separable="token", stateful=True)
        def loss(tokens):
            return LossSum(tokens.logps.sum())


def test_a_stateful_objective_of_ones_own_gets_its_state_and_needs_that_follow_its_options(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from dftune.objectives import LossSum, objective\n"
        "@objective(unit='group', separable='group', stateful=True,\n"
        "           needs=lambda options: frozenset({'ref_logps'}) if options['anchored'] else frozenset())\n"
        "def loss(tokens, *, state, anchored: bool = False):\n"
        "    state.write(tokens.example_ids, tokens.logps.detach())\n"
        "    return LossSum(-tokens.logps.sum())\n"
    )
    found, state = get_objective(f"{path}:loss"), LogEstimates()
    assert (found.options, found.needs) == ({"anchored": False}, frozenset())
    assert get_objective(f"{path}:loss", anchored=True).needs == {"ref_logps"}
    assert found(tokens_of([-1.0], example_ids=("a",)), state=state).total.item() == 1
    assert state.written == {"a": [-1.0]}


def test_a_decorated_function_is_still_the_function(file):
    @objective(unit="token", separable="token")
    def loss(tokens):
        return LossSum(-tokens.logps.sum())

    assert loss(tokens_of([-1.5])).total == torch.tensor(1.5)


def test_the_example_in_the_documentation_works(request, tmp_path):
    page = (request.config.rootpath / "docs" / "objectives" / "custom.md").read_text()
    path = tmp_path / "my_losses.py"
    path.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    loss = get_objective(f"{path}:squared", scale=0.5)(tokens_of([-1.0, -3.0], ref_logps=[-2.0, -1.0]))
    assert (loss.total.item(), loss.metrics["distance"].item()) == (2.5, 5.0)


def test_naming_the_objectives_imports_neither_torch_nor_their_modules():
    code = "import sys, dftune.objectives.registry as r; sys.exit('torch' in sys.modules or len(r.OBJECTIVES) < 15)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
