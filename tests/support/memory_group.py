"""Memory limits of the kernel for each rank: control groups, version 1 of Linux.

The kernel sends SIGKILL to a process whose group needs more than its limit. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup/memory")
_LIMIT = "memory.limit_in_bytes"
_RANK = "${OMPI_COMM_WORLD_RANK:-0}"
_ENTER = f'echo $$ > "$0/{_RANK}/cgroup.procs" && exec "$@"'


def problem() -> str | None:
    """Return why this machine gives no groups with a limit, None if it does."""
    if not (_ROOT / _LIMIT).exists():
        return "no control groups of version 1 with a memory controller"
    if not os.access(_ROOT, os.W_OK):
        return f"{_ROOT} can't be written: only root may make control groups"
    return None


class MemoryGroups:
    """A control group for each rank of a job, each limited to `limit` bytes."""

    def __init__(self, ranks: int, limit: int):
        self._folder = _ROOT / f"mlxdist-test-{secrets.token_hex(8)}"
        self._groups = [self._folder / str(rank) for rank in range(ranks)]
        for group in self._groups:
            group.mkdir(parents=True)
            (group / _LIMIT).write_text(str(limit))

    def command(self, program: Sequence[str]) -> list[str]:
        """Return a command that joins the group of its rank, and becomes the program.

        Without mpirun it joins that of rank 0.
        """
        return ["sh", "-c", _ENTER, str(self._folder), *program]

    @property
    def kills(self) -> list[int]:
        """How many processes of each group the kernel has killed."""
        return [_kills(group) for group in self._groups]

    @property
    def peaks(self) -> list[int]:
        """The most bytes that each group used, cached files included."""
        files = [group / "memory.max_usage_in_bytes" for group in self._groups]
        return [int(file.read_text()) for file in files]

    def remove(self) -> None:
        """Remove the groups, once their processes have ended."""
        for group in (*self._groups, self._folder):
            _remove(group)


@contextlib.contextmanager
def memory_groups(ranks: int, limit: int) -> Iterator[MemoryGroups]:
    """Make groups, which are removed when the block ends."""
    groups = MemoryGroups(ranks, limit)
    try:
        yield groups
    finally:
        groups.remove()


def _kills(group: Path) -> int:
    lines = (group / "memory.oom_control").read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


def _remove(group: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):  # a process of it is still exiting
            group.rmdir()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{group} still has processes")
