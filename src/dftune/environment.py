"""What made a run: code, versions, hardware. Written into ``manifest.json`` (docs/run-folder.md)."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dftune.files import fingerprint, read_json, sha256_file

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
    "accelerate",
    "peft",
    "trl",
    "deepspeed",
    "liger-kernel",
)
# These change when a model is saved again, and say nothing about what it computes.
NOT_THE_MODEL = ("_name_or_path", "transformers_version")
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def describe_environment(device: str | None = None) -> dict[str, Any]:
    """The part of ``manifest.json`` that does not depend on the run.

    Args:
        device: the device computed on, such as ``cuda:0``; None for ``cpu``.

    Returns:
        ``dftune_version``, ``commit``, ``dirty``, ``command``, ``started``, ``versions`` and ``hardware``. Packages
        that are not installed are left out. torch is asked for its threads and device only if it is loaded already.
    """
    commit, dirty = code_version()
    return {
        "dftune_version": _version("dftune"),
        "commit": commit,
        "dirty": dirty,
        "command": " ".join([_program(Path(sys.argv[0])), shlex.join(sys.argv[1:])]).rstrip(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "hardware": _hardware(device or "cpu"),
    }


def _program(path: Path) -> str:
    return f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_version() -> tuple[str | None, bool | None]:
    """The commit of the checkout that dftune runs from, and whether tracked files differ from it; or None, None."""
    package = Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # An installed package may lie inside a checkout of something else, in its .venv for example.
    if top is None or Path(top).resolve() / "src" / "dftune" != package:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware(device: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and device.startswith("cuda")
    return {
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if torch is not None and on_gpu else _cpu_name(),
        "num_cores": available_cores(),
        "num_threads": torch.get_num_threads() if torch is not None else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores this process may use: the smaller of its CPU affinity and its control group's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(_CGROUPS, _MEMBERSHIP)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def set_threads(threads: int | None = None, *, num_processes: int = 1) -> int:
    """Give torch this many threads; None stands for ``OMP_NUM_THREADS``, else for the cores this process may use.

    torch itself counts the cores of the machine. More threads than cores: many times slower than one.

    Args:
        threads: wanted; of several processes none gets more than its share of the cores.
        num_processes: that share them.
    """
    import torch  # noqa: PLC0415  (this module is read without torch)

    chosen = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or available_cores()
    if num_processes > 1:
        chosen = min(chosen, max(1, available_cores() // num_processes))
    torch.set_num_threads(chosen)
    return chosen


def cgroup_quota(root: Path, membership: Path) -> float | None:
    """Cores that control groups (version 1 or 2) allow, or None without a limit.

    Args:
        root: where control groups are mounted.
        membership: the list of this process's groups, as ``/proc/self/cgroup``.
    """
    try:
        entries = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        relative = Path(path.lstrip("/"))
        for group in (relative, *relative.parents):  # a limit on a group above holds too
            quotas.append(_group_quota(mount / group))
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def _group_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def model_fingerprint(folder: Path) -> str:
    """Changes with a model's configuration or weights, and with nothing else: 16 hex digits.

    Raises:
        ValueError: the folder has no ``config.json`` or no ``*.safetensors``.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise ValueError(
            f"{folder} is not a model: it needs config.json and *.safetensors, "
            f"and holds {', '.join(sorted(file.name for file in folder.glob('*'))[:10]) or 'nothing'}."
        )
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in NOT_THE_MODEL}
    return fingerprint(config, {file.name: sha256_file(file) for file in weights})


def host_memory() -> tuple[int | None, int | None]:
    """Total and available memory in bytes, control groups counted."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (OSError, ValueError, AttributeError):
            return None, None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return total, free
    return min(total, limit), min(free, max(0, limit - used))
