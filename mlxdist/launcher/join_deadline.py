"""Helper process: ends a rank that waits in `init()` for ranks that never come to it.

MLX holds Python's lock while MPI_Init waits for all ranks. No thread and no signal
handler of Python runs meanwhile, so another process has to watch. `init()` starts this
file by its path: standard library only, and no relative imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LEAST_TIMEOUT = 60.0  # seconds; ranks may start far apart, on a slow disk for example
_PRINT_TIMEOUT = 1.0  # seconds for standard error to take the message
_TICK = 0.1  # seconds


class JoinDeadline:
    """A helper process that ends this process unless `stop` is called in time.

    It leaves the mark "failed", where there is one, or prints the reason, and then
    sends SIGKILL: MPI_Init lets nothing else through.

    Args:
        timeout: seconds that the user allows; at least LEAST_TIMEOUT are given.
        title: of this rank, such as "mlxdist: rank 0 on mac1".
        mark_file: file that gets the reason, "" for none.
        mark_lines: a mark to write to `stream`, instead of the reason.
        stream: descriptor for `mark_lines` or the reason.
        claims: each rank's file with its process id, which is there once the rank has
            called `init`; none where not all ranks share this host.

    Raises:
        OSError: no process can be started.
    """

    def __init__(
        self,
        timeout: float,
        *,
        title: str,
        mark_file: str = "",
        mark_lines: str = "",
        stream: int = 2,
        claims: Sequence[str] = (),
    ) -> None:
        options = {
            "seconds": max(timeout, LEAST_TIMEOUT),
            "parent": os.getpid(),
            "title": title,
            "mark_file": mark_file,
            "mark_lines": mark_lines,
            "claims": list(claims),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream if _is_open(stream) else subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self._process.stdin.write(json.dumps(options).encode() + b"\n")

    def stop(self) -> None:
        """End the helper: this rank has joined, or has failed by itself."""
        self._process.kill()
        self._process.communicate()


def reason(seconds: float, claims: Sequence[str]) -> str:
    """Return why a rank ends that has waited in `init`, and what to do about it."""
    states = {rank: _state(Path(path)) for rank, path in enumerate(claims)}
    absent = [rank for rank, state in states.items() if state is None]
    stopped = [rank for rank, state in states.items() if state == "T"]
    if absent:
        waits = f"{rank_names(absent)}, which never called it"
    elif stopped:
        waits = f"{rank_names(stopped)}, stopped (SIGSTOP)"
    else:
        waits = "other ranks"
    return (
        f"waited {seconds:g} s in mlxdist.init() for {waits}. All ranks must call it; "
        "init(timeout=...) allows them more time"
    )


def rank_names(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 0, 3`."""
    return ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(map(str, ranks))


def _state(claim: Path) -> str | None:
    """Return the state of the process that made a claim; None without a claim."""
    try:
        text = claim.read_text()
    except OSError:
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        pid = int(text)  # it is empty where the disk was full
        ps = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
        result = subprocess.run(
            ps, capture_output=True, text=True, check=False, timeout=2
        )
        return result.stdout.strip()[:1]
    return ""


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _write(data: bytes) -> None:
    """Write to standard error, unless that takes nothing."""
    with contextlib.suppress(OSError):
        for start in range(0, len(data), select.PIPE_BUF):
            if not select.select([], [2], [], _PRINT_TIMEOUT)[1]:
                return
            os.write(2, data[start : start + select.PIPE_BUF])


def _ends_within(seconds: float) -> bool:
    """Return whether the rank ends in time.

    Time in which this process was stopped does not count: the whole job may have been.
    """
    while seconds > 0:
        tick = min(_TICK, seconds)
        if select.select([sys.stdin], [], [], tick)[0]:
            return True
        seconds -= tick
    return False


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: the rank's
    options = json.loads(sys.stdin.buffer.readline() or "null")
    if options is None or _ends_within(options["seconds"]):
        return
    if os.getppid() != options["parent"]:  # a process that it forked keeps the pipe
        return
    text = reason(options["seconds"], options["claims"])
    if options["mark_file"]:
        with contextlib.suppress(OSError), open(options["mark_file"], "x") as file:
            file.write(f"it {text}")
    elif options["mark_lines"]:
        _write(options["mark_lines"].encode())
    else:
        _write(f"{options['title']} {text}.\n".encode())
    if os.getppid() == options["parent"]:
        os.kill(options["parent"], signal.SIGKILL)


if __name__ == "__main__":
    main()
