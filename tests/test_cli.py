"""The command line, run as a user runs it."""

import subprocess
import sys
import time

import pytest

from dftune.cli import COMMANDS, main


def dftune(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dftune", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_answers_without_importing_anything_heavy():
    code = (
        "import sys; from dftune.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pydantic', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "VERB" in done.stdout


def test_help_answers_in_under_half_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert dftune("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_verb_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: dftune " + command in shown
    assert "examples:" in shown


def test_a_verb_that_is_not_there_is_named_with_those_that_are():
    done = dftune("trian")
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert "train" in done.stderr
    assert "Traceback" not in done.stderr


def test_overrides_may_stand_on_both_sides_of_an_option(request):
    recipe = str(request.config.rootpath / "recipes" / "examples" / "gsm8k-tiny")
    done = dftune("train", recipe, "seed=4", "--dry-run", "optimizer.lr=7e-4")
    assert done.returncode == 0, done.stderr
    assert "seed: 4" in done.stdout
    assert "lr: 0.0007" in done.stdout


def test_an_unknown_option_is_an_error():
    done = dftune("train", "x.yaml", "--steps", "3")
    assert done.returncode == 2
    assert "unknown argument --steps" in done.stderr


def test_errors_fit_on_a_screen_and_show_no_traceback(tmp_path):
    done = dftune("train", str(tmp_path / "missing.yaml"))
    assert done.returncode == 1
    assert "There is no recipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25
