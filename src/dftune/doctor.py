"""What is installed, what this machine has, and the command that adds each missing part."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dftune.environment import available_cores, code_version, host_memory

Status = Literal["ok", "note", "missing", "wrong"]
"""``missing`` and ``wrong`` stand for a required part; what is optional is ``note`` at worst."""

_NOT_FOR_USERS = ("dev",)
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        section: heading it belongs under.
        name: what was looked at.
        found: what was found.
        status: whether that will do.
        advice: what to do about it; empty when nothing is to be done.
    """

    section: str
    name: str
    found: str
    status: Status = "ok"
    advice: str = ""


def diagnose() -> list[Check]:
    """Look at everything, in the order in which it is shown."""
    return [*_python(), *_required(), *_torch(), *_machine(), *_optional()]


def is_healthy(checks: list[Check]) -> bool:
    """Whether everything required is there, in a version that will do."""
    return all(check.status in ("ok", "note") for check in checks)


def _python() -> Iterator[Check]:
    yield Check("dftune", "python", f"{platform.python_version()} ({sys.executable})")
    try:
        version = metadata.version("dftune")
        wanted = metadata.metadata("dftune")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        yield Check("dftune", "dftune", "not installed", "missing", "pip install -e . in the checkout")
        return
    if not _within(platform.python_version(), wanted):
        yield Check("dftune", "python range", f"needs {wanted}", "wrong", "create the environment with such a Python")
    commit, dirty = code_version()
    code = "" if commit is None else f", commit {commit[:12]}" + (" with changes" if dirty else "")
    yield Check("dftune", "dftune", version + code)


def _required() -> Iterator[Check]:
    for name, wanted, _ in _requirements(None):
        yield _package("required packages", name, wanted, required=True)


def _optional() -> Iterator[Check]:
    try:
        extras = metadata.metadata("dftune").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        if extra in _NOT_FOR_USERS:
            continue
        parts = [_package("", name, wanted, required=False) for name, wanted, _ in _requirements(extra)]
        found = ", ".join(f"{part.name} {part.found}" for part in parts)
        complete = all(part.status == "ok" for part in parts)
        advice = "" if complete else f"pip install 'dftune[{extra}]'"
        yield Check("optional parts", extra, found, "ok" if complete else "note", advice)
    yield Check(
        "optional parts", "serving", "vLLM, in an environment of its own", "note", "make serve-env (in a checkout)"
    )


def _requirements(extra: str | None) -> Iterator[tuple[str, str, str]]:
    """Name, version range and marker of every requirement of an extra; None stands for what is always required."""
    from packaging.requirements import Requirement  # noqa: PLC0415  (comes with transformers, which may be missing)

    try:
        lines = metadata.requires("dftune") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if extra is None else (not always and marker is not None and marker.evaluate({"extra": extra})):
            yield requirement.name, str(requirement.specifier), str(marker or "")


def _package(section: str, name: str, wanted: str, *, required: bool) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        advice = f"pip install '{name}{wanted}'"
        return Check(section, name, "missing", "missing" if required else "note", advice)
    if _within(version, wanted):
        return Check(section, name, version)
    found = f"{version}, needs {wanted}"
    return Check(section, name, found, "wrong" if required else "note", f"pip install '{name}{wanted}'")


def _within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _torch() -> Iterator[Check]:
    section = "devices"
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # a broken installation fails in many ways
        reason = " ".join(str(error).split())[:200]
        yield Check(section, "torch", f"cannot be imported: {reason}", "wrong", "pip install --force-reinstall torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Check(section, "torch build", f"{torch.__version__} ({build})")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: computes in fp32"
        memory = f"{properties.total_memory / _GIB:.0f} GiB"
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield Check(section, f"cuda:{index}", f"{properties.name}, {memory}, {capability}, {bf16}")
    if not count and (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        reason = "torch is a CPU build" if not torch.version.cuda else "torch finds no device"
        yield Check(
            section, "cuda", f"an NVIDIA driver is installed, but {reason}", "note", "see the README on CUDA builds"
        )
    elif not count:
        yield Check(section, "cuda", "no NVIDIA device; training runs on the CPU in fp32", "note")
    yield Check(section, "cpu", f"{available_cores()} cores for this process, {torch.get_num_threads()} torch threads")


def _machine() -> Iterator[Check]:
    total, free = host_memory()
    if total is not None:
        available = f"{free / _GIB:.1f} of " if free is not None else ""
        yield Check("machine", "memory", f"{available}{total / _GIB:.1f} GiB" + (" available" if available else ""))
    disk = shutil.disk_usage(Path.cwd())
    yield Check("machine", "disk here", f"{disk.free / _GIB:.1f} of {disk.total / _GIB:.1f} GiB free")
    yield Check("machine", "system", platform.platform())
