"""Network namespaces without names, removed when the process that made them ends.

A namespace exists while a process runs in it. Here that is a `cat`, which reads from a
pipe of this process. When this process ends, killed or not, the kernel closes the pipe,
the `cat` exits, and a watcher kills all other processes inside. The links and queues of
a namespace go with it. Nothing is registered under a name on the machine, so nothing
can remain or conflict.

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
_PATIENCE = 20.0  # seconds in which the watcher tries to kill processes


def problem() -> str | None:
    """Return why namespaces can't be made here, and the remedy; None if they can."""
    if sys.platform != "linux":
        return f"network namespaces need Linux, and this is {sys.platform}"
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
    """Run a command and wait for it.

    Raises:
        RuntimeError: it failed; with its error output.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def processes(namespaces: Collection[str]) -> list[int]:
    """Return the ids of the processes in namespaces, given their `Namespace.net`."""
    pids = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            if os.readlink(f"/proc/{name}/ns/net") in namespaces:
                pids.append(int(name))
    return pids


class Namespace:
    """A network, host name and mounts, kept alive by a process that waits.

    Args:
        pipe: read end of a pipe; the namespace is removed when the pipe closes.
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
        """Run a command inside."""
        target = ("nsenter", "-t", str(self.pid), "--net", "--uts", "--mount")
        run([*target, *command])


class Keeper:
    """Makes namespaces, and removes them with every process inside.

    Args:
        folder: removed at the end.
    """

    def __init__(self, folder: Path):
        self.namespaces: list[Namespace] = []
        self._pipe, self._lifeline = os.pipe()
        source, self._watcher_input = os.pipe()
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", __file__, str(folder)],
            stdin=source,
            start_new_session=True,
        )
        os.close(source)

    def make(self) -> Namespace:
        namespace = Namespace(self._pipe)
        os.write(self._watcher_input, f"{namespace.net}\n".encode())
        self.namespaces.append(namespace)
        return namespace

    def close(self) -> None:
        """Remove the namespaces; return when their processes have ended."""
        if self._watcher_input < 0:
            return
        for end in (self._watcher_input, self._lifeline, self._pipe):
            os.close(end)
        self._watcher_input = -1
        self._watcher.wait()
        for namespace in self.namespaces:
            namespace.keeper.wait()
            assert namespace.keeper.stdout is not None
            namespace.keeper.stdout.close()


def watch(folder: str) -> None:
    """Read namespaces from the input until it ends, then kill their processes."""
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
