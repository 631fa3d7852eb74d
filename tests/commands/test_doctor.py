import argparse
import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dftune.commands import doctor
from dftune.environment import available_cores


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(arguments))


def checks_of(capsys) -> dict[str, dict]:
    printed = json.loads(capsys.readouterr().out)
    return {check["name"]: {**check, "healthy": printed["ok"]} for check in printed["checks"]}


@pytest.fixture
def metadata_of(tmp_path, monkeypatch):
    """Puts package metadata before the installed one, as another installation would have it."""

    def install(name: str, version: str, *lines: str) -> None:
        folder: Path = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines, ""])
        )

    monkeypatch.syspath_prepend(tmp_path)
    return install


def test_every_required_package_is_listed_with_its_version_and_the_exit_status_is_zero(capsys):
    assert run("--json") == 0
    checks = checks_of(capsys)
    for name in ("torch", "transformers", "datasets", "safetensors", "numpy", "pyarrow", "pydantic", "rich"):
        assert (checks[name]["found"], checks[name]["status"]) == (metadata.version(name), "ok")
    assert checks["torch build"]["found"].startswith(torch.__version__)
    assert checks["cpu"]["found"].startswith(f"{available_cores()} cores")


def test_every_extra_is_listed_with_the_command_that_adds_it(capsys):
    run("--json")
    checks = checks_of(capsys)
    for extra in ("gpu", "track", "sweep", "trl", "deepspeed", "lm-eval"):
        complete = checks[extra]["status"] == "ok"
        assert checks[extra]["advice"] == ("" if complete else f"pip install 'dftune[{extra}]'")
    assert "dev" not in checks


def test_an_extra_is_present_when_all_of_its_packages_are(metadata_of, capsys):
    lines = [f"Provides-Extra: {extra}" for extra in ("both", "half", "old")]
    lines += ["Requires-Dist: present>=1; extra == 'both'", "Requires-Dist: numpy; extra == 'both'"]
    lines += ["Requires-Dist: present>=1; extra == 'half'", "Requires-Dist: no-such-package; extra == 'half'"]
    lines += ["Requires-Dist: present>=3; extra == 'old'"]
    metadata_of("dftune", "9.9", *lines)
    metadata_of("present", "2.0")
    assert run("--json") == 0
    checks = checks_of(capsys)
    assert {name: checks[name]["status"] for name in ("both", "half", "old")} == {
        "both": "ok",
        "half": "note",
        "old": "note",
    }
    assert checks["half"]["found"] == "present 2.0, no-such-package missing"
    assert checks["old"]["found"] == "present 2.0, needs >=3"


@pytest.mark.parametrize(
    ("requirement", "name", "status", "found"),
    [
        ("no-such-package>=1", "no-such-package", "missing", "missing"),
        ("numpy>=999", "numpy", "wrong", "needs >=999"),
        ("numpy<1,>=0.5", "numpy", "wrong", "needs <1,>=0.5"),
    ],
)
def test_a_required_package_that_is_missing_or_out_of_range_fails_with_the_command_to_run(  # noqa: PLR0917
    requirement, name, status, found, metadata_of, capsys
):
    metadata_of("dftune", "9.9", f"Requires-Dist: {requirement}")
    assert run("--json") == 1
    check = checks_of(capsys)[name]
    assert check["status"] == status
    assert found in check["found"]
    assert check["advice"].startswith(f"pip install '{name}")
    assert check["healthy"] is False
    assert run() == 1
    printed = capsys.readouterr().out
    assert status.upper() in printed
    assert printed.endswith("Something required is missing or out of range.\n")


def test_a_python_outside_the_range_fails(metadata_of, capsys):
    metadata_of("dftune", "9.9", "Requires-Python: >=3.99")
    assert run("--json") == 1
    assert "needs >=3.99" in checks_of(capsys)["python range"]["found"]


def test_the_table_groups_checks_under_headings_and_says_how_it_stands(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines[:-1] if line and not line.startswith(" ")]
    assert headings == ["dftune", "required packages", "devices", "machine", "optional parts"]
    assert lines[-1] == "Everything required is there."
