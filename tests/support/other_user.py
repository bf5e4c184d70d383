"""Another user of this machine, made and removed by tests that run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_TOOLS = ("useradd", "userdel", "runuser", "sh")
NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, _TOOLS)),
    reason="only root can make another user",
)


class OtherUser:
    """Another user, who plants files.

    Attributes:
        name, number: of the user.
        folder: one to which all users can write, with the sticky bit, as /tmp has it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.number = pwd.getpwnam(name).pw_uid
        self.folder = folder

    def sh(self, script: str, *arguments: object) -> str:
        """Run a shell script as that user in the shared folder; return its output."""
        command = ["runuser", "-u", self.name, "--", "sh", "-euc", script, "sh"]
        result = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def owns(self, path: Path) -> bool:
        return os.lstat(path).st_uid == self.number


def make(shared: Path) -> Iterator[OtherUser]:
    """Make a user without home or password, and remove it with its files at the end.

    Args:
        shared: a new folder, which the user must be able to reach.
    """
    name = f"mlxdist{os.getpid()}"
    subprocess.run(["useradd", "-M", "-N", "-s", "/bin/sh", name], check=True)
    shared.mkdir()
    shared.chmod(0o1777)
    try:
        yield OtherUser(name, shared)
    finally:
        shutil.rmtree(shared)
        subprocess.run(["userdel", name], check=True, capture_output=True)
