"""Energy that a run takes, by counters the hardware keeps anyway: NVML for a GPU, RAPL for processors.

Both count whatever the device does: RAPL whole processor packages, all processes on them included, NVML the whole GPU.
What cannot be read is unknown and never zero. RAPL: Linux, Documentation/power/powercap/powercap.rst; since 2020 only
root may read it on most systems (CVE-2020-8694).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+")  # AMD's too; intel-rapl:0:1 is a part of intel-rapl:0

Joules = Mapping[str, float | None]
"""By ``gpu_joules`` and ``cpu_joules``: None where this process should know and does not; absent where another does."""


class EnergyMeter:
    """Energy since it was made, of this process's share of the hardware.

    Args:
        device: that this process trains on.
        reads_cpu: whether it is the one process of its machine that answers for the processors.
        powercap: folder of the RAPL zones; None is the system's.
    """

    def __init__(self, device: torch.device, *, reads_cpu: bool, powercap: Path | None = None) -> None:
        self._gpu = _gpu_counter(device) if device.type == "cuda" else None
        self._has_gpu = device.type == "cuda"
        self._packages = _packages(powercap or POWERCAP) if reads_cpu else []
        self._reads_cpu = reads_cpu

    def read(self) -> Joules:
        """Joules so far. A RAPL counter comes round within an hour or so at full power: call this more often."""
        found: dict[str, float | None] = {}
        if self._has_gpu:
            found["gpu_joules"] = None if self._gpu is None else self._gpu()
        if self._reads_cpu:
            parts = [package.read() for package in self._packages]
            known = [part for part in parts if part is not None]
            found["cpu_joules"] = sum(known) if parts and len(known) == len(parts) else None
        return found


def total_energy(readings: Iterable[Joules]) -> dict[str, float]:
    """The sum over all processes; a key that one of them should know and does not is left out."""
    values: dict[str, list[float | None]] = {}
    for reading in readings:
        for key, value in reading.items():
            values.setdefault(key, []).append(value)
    known = {key: [value for value in column if value is not None] for key, column in values.items()}
    return {key: sum(column) for key, column in known.items() if len(column) == len(values[key])}


class _Package:
    """The counter of one RAPL zone, in microjoules, which starts from zero again after its range."""

    def __init__(self, zone: Path) -> None:
        self._counter, self._range = zone / "energy_uj", _integer(zone / "max_energy_range_uj")
        self._last, self._sum = _integer(self._counter), 0

    def read(self) -> float | None:
        """Joules since it was made; None once it could not be read."""
        now = _integer(self._counter)
        if now is None or self._last is None or (now < self._last and self._range is None):
            self._last = None
            return None
        self._sum += now - self._last + (self._range or 0) * (now < self._last)
        self._last = now
        return self._sum / 1e6


def _packages(powercap: Path) -> list[_Package]:
    """Processor packages; a zone called psys is the whole board with them, and would count them twice."""
    zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if _ZONE.fullmatch(zone.name))
    return [_Package(zone) for zone in zones if _text(zone / "name").startswith("package")]


def _integer(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _gpu_counter(device: torch.device) -> Callable[[], float | None] | None:
    """Joules of the GPU since now, or None without NVML's Python package or such a counter (before Volta, some MIG)."""
    try:
        pynvml = importlib.import_module("pynvml")  # of the optional package nvidia-ml-py
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def joules() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - start) / 1e3
        except pynvml.NVMLError:
            return None

    return joules
