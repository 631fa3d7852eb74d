"""Every command and every block of code in the README runs, on small stand-ins for what a user would have."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dftune.demo.problems import generate
from dftune.demo.run import BASE_MODEL, write_problems

README = (Path(__file__).parents[1] / "README.md").read_text()
# What a command gets besides: a model that is here, and sizes that take seconds.
SMALL = {
    "my.yaml": ["data.max_length=256", "train.threads=1"],
    "recipes/examples/gsm8k-tiny.yaml": [
        "data.source=gsm8k.jsonl",
        "data.validation=20",
        "train.steps=3",
        "train.threads=1",
        "evaluate.benchmarks=[math500.jsonl]",
        "evaluate.max_tokens=8",
    ],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme")
    write_problems(path / "my-data.jsonl", generate(264, seed=1, split="train"))
    write_problems(path / "gsm8k.jsonl", generate(200, seed=2, split="train"))
    write_problems(path / "math500.jsonl", generate(4, seed=1, split="test"))
    recipe = next(block for block in blocks("yaml") if block.startswith("# my.yaml"))
    values = yaml.safe_load(recipe)
    assert values["model"]["path"] == "Qwen/Qwen2.5-Math-1.5B"
    (path / "my.yaml").write_text(recipe.replace("Qwen/Qwen2.5-Math-1.5B", str(BASE_MODEL)))
    (path / "recipes").symlink_to(Path(__file__).parents[1] / "recipes")
    return path


@pytest.mark.slow
def test_every_dftune_command_runs_in_the_order_of_the_text(folder):
    found = [command for command in commands() if command.startswith("dftune ")]
    assert len(found) >= 6
    for command in found:
        words = shlex.split(command)[1:]
        small = next((options for name, options in SMALL.items() if name in words), [])
        done = subprocess.run(
            [sys.executable, "-m", "dftune", *words, *small],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "runs" / "report.html").is_file()
    assert (folder / "runs" / "my-dynamic" / "model" / "config.json").is_file()


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("make ")])
def test_every_make_target_exists(command, request):
    done = subprocess.run(
        ["make", "-n", *command.split()[1:]], cwd=request.config.rootpath, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_other_commands_are_known_to_this_test():
    assert {command.split()[0] for command in commands()} == {"make", "dftune"}


def test_the_python_block_runs_and_gives_what_it_names():
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert {"TokenBatch", "get_objective", "token_logps", "is_correct"} <= names.keys()


def test_every_linked_file_exists(request):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (request.config.rootpath / target).exists(), target
