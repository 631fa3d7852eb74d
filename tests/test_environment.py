import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from dftune.environment import available_cores, cgroup_quota, describe_environment, model_fingerprint, set_threads
from tests.chains import save_chain


def test_the_command_line_is_quoted_and_its_program_named_without_its_folder(tmp_path):
    code = "from dftune.environment import describe_environment; print(describe_environment()['command'])"
    for path, program in (("tools/sweep", "sweep"), ("dftune/__main__.py", "python -m dftune")):
        script = tmp_path / path
        script.parent.mkdir()
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, str(script), "train", "my recipe.yaml"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == f"{program} train 'my recipe.yaml'"


def test_the_description_holds_versions_and_hardware():
    found = describe_environment()
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["hardware"]["num_cores"] == available_cores()
    assert found["hardware"]["num_threads"] == torch.get_num_threads()
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["device_name"]
    assert datetime.fromisoformat(found["started"]).utcoffset().total_seconds() == 0
    json.dumps(found, allow_nan=False)


@pytest.fixture
def checkout(tmp_path):
    """A git repository that holds this package as src/dftune."""
    package = Path(describe_environment.__code__.co_filename).parent
    target = tmp_path / "repo" / "src" / "dftune"
    target.mkdir(parents=True)
    for name in ("__init__.py", "environment.py", "files.py"):
        shutil.copy(package / name, target / name)
    git(tmp_path / "repo", "init", "--quiet")
    git(tmp_path / "repo", "add", "-A")
    git(tmp_path / "repo", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    return tmp_path / "repo"


def git(folder, *arguments):
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def code_version(source):
    code = "import dftune.environment as e, json; print(json.dumps(e.code_version()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_commit_is_named_and_changed_files_make_it_dirty(checkout):
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert code_version(checkout / "src") == [head, False]
    (checkout / "notes.txt").write_text("new files do not count")
    assert code_version(checkout / "src") == [head, False]
    with (checkout / "src" / "dftune" / "files.py").open("a") as file:
        file.write("# changed\n")
    assert code_version(checkout / "src") == [head, True]


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout):
    shutil.copytree(checkout / "src" / "dftune", checkout / "site-packages" / "dftune")
    assert code_version(checkout / "site-packages") == [None, None]


def write_groups(root, limits):
    for group, files in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / group / name).write_text(text)


def test_the_smallest_quota_on_the_way_up_holds_in_control_groups_of_version_2(tmp_path):
    write_groups(
        tmp_path / "cgroup",
        {
            "outer": {"cpu.max": "150000 100000\n"},
            "outer/inner": {"cpu.max": "max 100000\n"},
            "other": {"cpu.max": "50000 100000\n"},
        },
    )
    (tmp_path / "self").write_text("0::/outer/inner\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "self") == 1.5


def test_the_quota_of_control_groups_of_version_1_is_read(tmp_path):
    write_groups(
        tmp_path / "cgroup" / "cpu", {"job": {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}}
    )
    (tmp_path / "self").write_text("12:memory:/job\n4:cpu,cpuacct:/job\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "self") == 4.0


@pytest.mark.parametrize("limit", ["max 100000\n", ""])
def test_no_quota_is_no_limit(tmp_path, limit):
    write_groups(tmp_path / "cgroup", {"job": {"cpu.max": limit}})
    (tmp_path / "self").write_text("0::/job\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "self") is None
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "absent") is None


def test_available_cores_follow_the_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    one = {min(os.sched_getaffinity(0))}
    code = f"import os, dftune.environment as e; os.sched_setaffinity(0, {one}); print(e.available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_threads_follow_omp_num_threads_unless_a_number_is_given():
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == 2 == torch.get_num_threads()
        assert set_threads() == int(os.environ["OMP_NUM_THREADS"]) == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_a_models_fingerprint_follows_weights_and_configuration_and_nothing_else(tmp_path):
    folder = save_chain(tmp_path / "model", {"a": {"b": 1.0}})
    first = model_fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "_name_or_path": "x"}))
    (folder / "generation_config.json").unlink()
    assert model_fingerprint(folder) == first
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    assert model_fingerprint(folder) != first
    (folder / "config.json").write_text(json.dumps(config))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(folder) != first


def test_a_folder_without_weights_has_no_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds config\.json"):
        model_fingerprint(tmp_path)
