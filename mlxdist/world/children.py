"""The work of the processes that this process has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def cpu_time_of_children() -> float:
    """Return the processor seconds of all live processes below this one.

    Read from /proc, where there is one; 0.0 on macOS. Starting `ps` would make a child
    that a program might wait for.
    """
    table = dict(_processes())
    below, count = {os.getpid()}, 0
    while len(below) > count:
        count = len(below)
        below |= {pid for pid, (parent, _) in table.items() if parent in below}
    ticks = sum(table[pid][1] for pid in below if pid != os.getpid() and pid in table)
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each process's id, its parent's, and the clock ticks that it has used."""
    for folder in _PROC.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(errors="replace")
        except OSError:  # it has ended
            continue
        # The name may contain anything. State, parent and so on follow it.
        fields = text.rpartition(")")[2].split()
        yield int(folder.name), (int(fields[1]), int(fields[11]) + int(fields[12]))
