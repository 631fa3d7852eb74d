"""Samples of the machine while it trains, as rows of kind ``system`` (docs/tracking.md)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dftune.run import RunFolder

_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")


class Sampler(threading.Thread):
    """Appends a sample every so many seconds until it is stopped; the first after as many.

    Args:
        folder: of the run.
        step: tells how many optimizer steps are done.
        every_s: seconds between two samples.
    """

    def __init__(self, folder: RunFolder, step: Callable[[], int], every_s: float) -> None:
        super().__init__(daemon=True, name="system")
        self._folder, self._step, self._every_s = folder, step, every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample."""
        before = _clocks()
        while not self._stopped.wait(self._every_s):
            now = _clocks()
            with suppress(OSError):  # a full disk is the loop's to report
                self._folder.log("system", self._step(), **sample(now[0] - before[0], now[1] - before[1]))
            before = now

    def stop(self) -> None:
        """No further sample is taken."""
        self._stopped.set()
        if self.is_alive():
            self.join()


def sample(cpu_s: float, wall_s: float) -> dict[str, Any]:
    """What the machine does now.

    Args:
        cpu_s: processor time of this process since the sample before.
        wall_s: seconds since then.

    Returns:
        ``cpu_percent`` (of one core), ``rss_bytes``, ``load_1m``, ``available_memory_bytes``; with a CUDA device in use
        ``gpu_allocated_bytes``, ``gpu_reserved_bytes``, ``gpu_used_bytes`` (by all processes), and ``gpu_percent``
        where NVML can be asked. What the system does not tell is left out.
    """
    found: dict[str, Any] = {"cpu_percent": 100 * cpu_s / wall_s}
    with suppress(OSError):
        found["load_1m"] = os.getloadavg()[0]
    with suppress(OSError):
        found["rss_bytes"] = int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        found["available_memory_bytes"] = int(lines["MemAvailable"].split()[0]) * 1024
    return found | _gpu()


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    found = {
        "gpu_allocated_bytes": torch.cuda.memory_allocated(),
        "gpu_reserved_bytes": torch.cuda.memory_reserved(),
        "gpu_used_bytes": total - free,
    }
    with suppress(ModuleNotFoundError, RuntimeError):  # NVML's Python package is optional
        found["gpu_percent"] = torch.cuda.utilization()
    return found


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.monotonic()
