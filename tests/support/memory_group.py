"""Memory limits of the kernel for single processes: control groups, version 1 of Linux.

A process that needs more than the limit of its group is killed by SIGKILL. A group is
made for one test and removed at its end. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup/memory")
_LIMIT = "memory.limit_in_bytes"


def problem() -> str | None:
    """Return why this machine gives no groups with a limit, None if it does."""
    if not (_ROOT / _LIMIT).exists():
        return "no control groups of version 1 with a memory controller"
    if not os.access(_ROOT, os.W_OK):
        return f"{_ROOT} can't be written: only root may make control groups"
    return None


needs_memory_groups = pytest.mark.skipif(problem() is not None, reason=problem() or "")


class MemoryGroup:
    """A control group, whose processes together may use `limit` bytes."""

    def __init__(self, limit: int):
        self._folder = _ROOT / f"mlxdist-test-{secrets.token_hex(8)}"
        self._folder.mkdir()
        (self._folder / _LIMIT).write_text(str(limit))

    def command(self, program: Sequence[str]) -> list[str]:
        """Return a command that starts a program inside of the group."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", enter, str(self._folder / "cgroup.procs"), *program]

    @property
    def peak(self) -> int:
        """The most bytes that it used, including files that the kernel cached."""
        return int((self._folder / "memory.max_usage_in_bytes").read_text())

    @property
    def kills(self) -> int:
        """How many processes the kernel killed for want of memory."""
        lines = (self._folder / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def remove(self) -> None:
        """Remove the group, once its processes have ended."""
        for _ in range(200):
            with contextlib.suppress(OSError):  # a process of it is still exiting
                self._folder.rmdir()
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self._folder} still has processes")


@contextlib.contextmanager
def memory_groups(count: int, limit: int) -> Iterator[list[MemoryGroup]]:
    """Make groups of `limit` bytes each, and remove them when the block ends."""
    with contextlib.ExitStack() as stack:
        groups = []
        for _ in range(count):
            groups.append(MemoryGroup(limit))
            stack.callback(groups[-1].remove)
        yield groups
