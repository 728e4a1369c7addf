"""Joules that the processor and the GPUs take, where the machine tells: Linux' powercap (RAPL) and NVIDIA's library.

RAPL's files are for root only on most machines, and absent in most virtual ones. NVML counts since its driver was
loaded (nvmlDeviceGetTotalEnergyConsumption, millijoules, Volta and later).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


class Meter:
    """Adds up what is taken between calls; to be called more often than RAPL's counter wraps, which is minutes."""

    def __init__(self, rapl: Path = RAPL) -> None:
        self.packages = [path for path in sorted(rapl.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self.gpus = _gpus()
        self.last, self.joules = self._read(), 0.0

    def __call__(self) -> float | None:
        """Return the joules since this meter was made; None where nothing can be read."""
        now = self._read()
        for key, (value, span) in now.items():
            if key in self.last:
                taken = value - self.last[key][0]
                self.joules += taken if taken >= 0 else taken + span
        self.last = now
        return self.joules if now else None

    def _read(self) -> dict[str, tuple[float, float]]:
        """Return each counter's joules, and where it wraps."""
        found = {}
        for path in self.packages:
            with suppress(OSError, ValueError):
                value, span = (int((path / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
                found[path.name] = (value, span)
        for number, (library, handle) in enumerate(self.gpus):
            taken = ctypes.c_ulonglong()
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(taken)) == 0:
                found[f"gpu {number}"] = (taken.value / 1e3, 0.0)
        return found


def _gpus() -> list[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    """Return NVML and a handle for each GPU; none without the driver."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    count, found = ctypes.c_uint(), []
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for number in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) == 0:
            found.append((library, handle))
    return found
