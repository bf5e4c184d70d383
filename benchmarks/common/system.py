"""The machine, from /proc where there is one: processor, memory, load."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from pathlib import Path


def processor() -> str:
    """Return the model of the processor."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def total_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Return the bytes that new processes can allocate without swapping."""
    field = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    return int(field[1]) * 1024 if field else total_memory()


def other_load() -> float:
    """Return how many cores other processes keep busy; takes a second.

    Call it before the benchmark's own jobs start. A result with a load well above 0 was
    disturbed.
    """
    before = _busy_seconds()
    time.sleep(1.0)
    return round(_busy_seconds() - before, 2)


def _busy_seconds() -> float:
    """Return the processor seconds of all processes since the start of the system."""
    fields = _read("/proc/stat").partition("\n")[0].split()
    return sum(map(int, fields[1:4])) / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
