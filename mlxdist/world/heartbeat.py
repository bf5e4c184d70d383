"""What a rank knows of another one: its last heartbeat, and how old that is."""

from __future__ import annotations

import subprocess

import msgspec

from ..comm.flight_recorder import Status

SILENCE = 2.0  # seconds without a heartbeat after which a rank is reported as silent
LOAD_WINDOW = 1.0  # seconds over which a rank measures its use of the processor
_LONG_CALL = 30.0  # seconds without progress that are reported
_BUSY = 0.05  # processor seconds per second above which a rank counts as computing


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """Status of a rank, which it sends four times a second.

    Attributes:
        status: its `since` is a time of the sender's own clock.
        duration: seconds for which the sender has been in this status.
        idle: seconds since its main thread has last made progress.
        cpu_load: processor seconds per second that the sender has used of late.
        host, pid: of the sender.
    """

    status: Status
    duration: float
    idle: float
    cpu_load: float
    host: str
    pid: int


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """A rank, as another one knows it.

    Attributes:
        heartbeat: its last one; None before the first.
        silence: seconds for which the rank that receives its heartbeats has had none.
        age: seconds since the last heartbeat was sent. It is longer than `silence` if
            other ranks have passed the heartbeat on.
    """

    rank: int
    heartbeat: Heartbeat | None = None
    silence: float = 0.0
    age: float = 0.0

    @property
    def status(self) -> Status:
        """The last status that this peer sent."""
        return Status(since=0.0) if self.heartbeat is None else self.heartbeat.status

    def works(self, timeout: float) -> bool:
        """Whether the peer does something that others may wait for, however long."""
        if self.heartbeat is None or self.status.waiting or self.status.leaving:
            return False
        return self.heartbeat.idle + self.age < timeout

    def spins(self, timeout: float) -> bool:
        """Whether the peer uses the processor in one call, as MPI does where it waits.

        A rank that waits for a disk, a network or another process uses none.
        """
        if self.heartbeat is None or self.status.leaving:
            return False
        # What it did before that call must not count.
        shortest = max(timeout, 2 * LOAD_WINDOW)
        return self.heartbeat.idle > shortest and self.heartbeat.cpu_load > _BUSY

    def describe(self, local_host: str) -> str:
        """Return a line on what the peer does.

        Such as `rank 1 on mac2: in user code, after step 3, for 40 s; it is alive but
        idle`.
        """
        beat = self.heartbeat
        host = "an unknown host" if beat is None else beat.host
        duration = self.age + (0.0 if beat is None else beat.duration)
        text = f"rank {self.rank} on {host}: {self.status}, for {duration:.0f} s"
        if self.silence > SILENCE:
            text += f"; no heartbeat for {self.silence:.0f} s"
            if beat is not None and beat.host == local_host:
                text += _process_state(beat.pid)
        elif beat is not None and not self.status.leaving:
            computes = beat.cpu_load > _BUSY
            text += (
                "; it is alive and computes" if computes else "; it is alive but idle"
            )
            if beat.idle > _LONG_CALL:
                text += f", and its main thread is in one call for {beat.idle:.0f} s"
        return text


def _process_state(pid: int) -> str:
    """Return what the operating system says about a process on this machine."""
    try:
        result = subprocess.run(
            ["/bin/ps", "-o", "stat=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state = result.stdout.strip()
    if not state:
        return "; its process is gone"
    if state.startswith("T"):
        return "; its process is stopped (SIGSTOP)"
    return "; its process does not let Python's threads run"
