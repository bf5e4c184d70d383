"""Network namespaces that nobody outside can see, and that end with their maker.

A namespace lives as long as a process is in it. Here that is a `cat` on a pipe, of
which this process holds the other end. When it goes, killed or not, the kernel closes
the pipe, the cats leave, and a watcher kills whatever else was started inside. The
links and queues in a namespace go with it. Nothing has a name on the machine, so
nothing can be left over, or clash with what is there.

Run as a script, this file is the watcher.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

_PACKAGES = {"iproute2": ("ip", "tc"), "util-linux": ("unshare", "nsenter", "mount")}
_UNSHARE = ("unshare", "--net", "--uts", "--mount")
_PATIENCE = 20.0  # seconds until the watcher gives up on processes that won't die


def problem() -> str | None:
    """Why there can be no namespaces here, and the remedy; None where there can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "only root may make network namespaces: run it with sudo"
    for package, programs in _PACKAGES.items():
        for program in programs:
            if shutil.which(program) is None:
                return f"there is no `{program}` here: apt install {package}"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    if tried.returncode:
        return (
            f"{tried.stderr.strip()}: a container must be allowed to make namespaces "
            "(Docker: --privileged)"
        )
    return None


def run(command: Sequence[str]) -> None:
    """Runs a command and waits.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def processes(namespaces: Collection[str]) -> list[int]:
    """The processes in any of these namespaces, which `Namespace.net` names."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # gone by now
            if os.readlink(f"/proc/{name}/ns/net") in namespaces:
                found.append(int(name))
    return found


class Namespace:
    """Network, host name and mounts of their own, kept by a process that waits.

    Args:
        pipe: the end to read of a pipe; the namespace is given up when it ends.
    """

    def __init__(self, pipe: int):
        self.keeper = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", "echo; exec cat >/dev/null"],
            stdin=pipe,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )
        assert self.keeper.stdout is not None
        if not self.keeper.stdout.readline():
            raise RuntimeError("unshare could not make a namespace")
        self.net = os.readlink(f"/proc/{self.keeper.pid}/ns/net")

    @property
    def pid(self) -> int:
        return self.keeper.pid

    def run(self, *command: str) -> None:
        """Runs a command inside."""
        target = ("nsenter", "-t", str(self.pid), "--net", "--uts", "--mount")
        run([*target, *command])


class Keeper:
    """Makes namespaces, and ends them with all that runs inside.

    Args:
        folder: removed at the end.
    """

    def __init__(self, folder: Path):
        self.namespaces: list[Namespace] = []
        self._pipe, self._lifeline = os.pipe()
        source, self._told = os.pipe()
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", __file__, str(folder)],
            stdin=source,
            start_new_session=True,
        )
        os.close(source)

    def make(self) -> Namespace:
        namespace = Namespace(self._pipe)
        os.write(self._told, f"{namespace.net}\n".encode())
        self.namespaces.append(namespace)
        return namespace

    def close(self) -> None:
        """Returns when nothing is left."""
        if self._told < 0:
            return
        for end in (self._told, self._lifeline, self._pipe):
            os.close(end)
        self._told = -1
        self._watcher.wait()
        for namespace in self.namespaces:
            namespace.keeper.wait()
            assert namespace.keeper.stdout is not None
            namespace.keeper.stdout.close()


def watch(folder: str) -> None:
    """Reads namespaces until the input ends; then kills all that is in them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    namespaces = {line.strip() for line in sys.stdin}
    deadline = time.monotonic() + _PATIENCE
    while (left := processes(namespaces)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1])
