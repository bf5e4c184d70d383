"""Processes that Linux killed for want of memory while a job ran.

The kernel sends SIGKILL and tells nobody. It counts such processes in /proc/vmstat,
those killed under the limit of a control group (cgroup) included.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from .outcome import Outcome

_VMSTAT = Path("/proc/vmstat")
_CGROUPS = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")  # lines such as "4:memory:/user" or "0::/user"
_UNLIMITED = 2**60  # bytes: version 1 shows more than this where there is no limit


class OutOfMemory:
    """What the kernel counted when the job began.

    Args:
        is_local: whether all ranks run on this machine. Of others nothing is known.
        vmstat: the kernel's counts.
    """

    def __init__(self, *, is_local: bool, vmstat: Path = _VMSTAT):
        self._is_local, self._vmstat = is_local, vmstat
        self._before = _count_of_kills(vmstat)

    def explain(self, outcome: Outcome) -> Outcome:
        """Add to a job's message that the kernel ran out of memory, if it did.

        The outcome stays as it is unless SIGKILL ended a rank on this machine.
        """
        killed = _count_of_kills(self._vmstat) - self._before
        was_killed = any(rank.signal == "SIGKILL" for rank in outcome.ranks)
        if not (self._is_local and was_killed and killed > 0):
            return outcome
        limit = memory_limit()
        where = ""
        if limit is not None:
            where = f", under the limit of {limit / 1e6:,.0f} MB of this cgroup"
        processes = f"{killed} process" + "es" * (killed > 1)
        message = (
            f"{outcome.message} Linux ran out of memory{where}: it killed {processes} "
            "during the job. `mlxdist plan` shows what would need less."
        )
        return replace(outcome, message=message)


def memory_limit(
    of_process: Path = _OF_PROCESS, cgroups: Path = _CGROUPS
) -> int | None:
    """Return the bytes that this process's control groups allow; None without a limit.

    A group is limited by all groups above it too. Version 1 and 2 of control groups.
    """
    limits = [_limit(file) for file in _limit_files(of_process, cgroups)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_files(of_process: Path, cgroups: Path) -> list[Path]:
    """Return the files with the limits of this process's group and of those above."""
    files = []
    for line in _read(of_process).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / controllers, "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        # A container may see its own group as the root of another's path.
        groups = [group, *group.parents] if group.is_dir() else [root]
        files += [each / name for each in groups if each.is_relative_to(root)]
    return files


def _limit(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _count_of_kills(vmstat: Path) -> int:
    field = re.search(r"^oom_kill (\d+)$", _read(vmstat), re.MULTILINE)
    return int(field[1]) if field else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system than Linux, or an older one
        return ""
