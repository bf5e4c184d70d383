"""Messages between watchdogs, and what a rank knows of each peer from them."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..comm.flight_recorder import Status

if TYPE_CHECKING:
    from mpi4py import MPI

SILENCE = 2.0  # seconds without a heartbeat after which a rank is reported as silent
LOAD_WINDOW = 1.0  # seconds over which a rank measures its use of the processor
_MESSAGE_BYTES = 1024  # a heartbeat is about 200
_LONG_CALL = 30.0  # seconds without progress that are reported
_BUSY = 0.05  # processor seconds per second above which a rank counts as computing


@dataclass(frozen=True)
class Heartbeat:
    """Status of a rank, sent to the other ranks four times a second.

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


@dataclass(frozen=True)
class EndNotice:
    """The sender is about to end the job.

    `print_stacks` asks the receivers to print their Python stacks. `cause` says why,
    for their records, since those of other hosts may be out of reach.
    """

    print_stacks: bool
    cause: str = ""


Message = Heartbeat | EndNotice


def encode(message: Message) -> NDArray[np.uint8]:
    """Return a message as an array of 1024 bytes, padded with spaces."""
    text = json.dumps({type(message).__name__: asdict(message)}, ensure_ascii=False)
    data = text.encode(errors="replace")
    if isinstance(message, EndNotice) and len(data) > _MESSAGE_BYTES:
        return encode(
            replace(message, cause=message.cause[: -1 - len(message.cause) // 8])
        )
    return np.frombuffer(data.ljust(_MESSAGE_BYTES), np.uint8)


def decode(data: NDArray[np.uint8]) -> Message:
    """Return the message that `encode` made into bytes."""
    fields = json.loads(data.tobytes())
    if "EndNotice" in fields:
        return EndNotice(**fields["EndNotice"])
    heartbeat = fields["Heartbeat"]
    return Heartbeat(**{**heartbeat, "status": Status(**heartbeat["status"])})


@dataclass
class Peer:
    """Another rank, and the messages to and from it.

    Attributes:
        heartbeat: the last one; None before the first.
        last_seen: when the last message came, in seconds of `time.monotonic`.
    """

    rank: int
    comm: MPI.Intracomm
    heartbeat: Heartbeat | None = None
    last_seen: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._inbox = np.zeros(_MESSAGE_BYTES, np.uint8)
        self._outbox = self._inbox[:0]  # kept while MPI sends it
        self._sending: MPI.Request | None = None
        self._receiving = self.comm.Irecv(self._inbox, self.rank)

    @property
    def status(self) -> Status:
        """The last status that this peer sent."""
        return Status() if self.heartbeat is None else self.heartbeat.status

    def works(self, timeout: float) -> bool:
        """Whether the peer does something that others may wait for, however long."""
        if self.heartbeat is None or self.status.waiting or self.status.leaving:
            return False
        silence = time.monotonic() - self.last_seen
        return self.heartbeat.idle + silence < timeout

    def spins(self, timeout: float) -> bool:
        """Whether the peer uses the processor in one call, as MPI does where it waits.

        A rank that waits for a disk, a network or another process uses none.
        """
        if self.heartbeat is None or self.status.leaving:
            return False
        # What it did before that call must not count.
        shortest = max(timeout, 2 * LOAD_WINDOW)
        return self.heartbeat.idle > shortest and self.heartbeat.cpu_load > _BUSY

    def send(self, data: NDArray[np.uint8], *, always: bool) -> None:
        """Start to send an encoded message.

        Unless `always`, it is dropped while the one before it is under way: a stopped
        rank receives none, and they must not pile up.
        """
        if always or self._sending is None or self._sending.Test():
            self._outbox = data
            self._sending = self.comm.Isend(data, self.rank)

    def receive(self) -> list[Message]:
        """Return the messages that have arrived, oldest first."""
        messages: list[Message] = []
        while self._receiving.Test():
            messages.append(decode(self._inbox))
            self._receiving = self.comm.Irecv(self._inbox, self.rank)
            self.last_seen = time.monotonic()
            if isinstance(messages[-1], Heartbeat):
                self.heartbeat = messages[-1]
        return messages

    def close(self) -> None:
        """Stop receiving and sending. The peer does neither any more."""
        self._receiving.Cancel()
        self._receiving.Wait()
        if self._sending is not None:
            self._sending.Wait()

    def describe(self, local_host: str) -> str:
        """Return a line on what the peer does.

        Such as `rank 1 on mac2: in user code, after step 3, for 40 s; it is alive but
        idle`.
        """
        silence = time.monotonic() - self.last_seen
        beat = self.heartbeat
        host = "an unknown host" if beat is None else beat.host
        duration = silence + (0.0 if beat is None else beat.duration)
        text = f"rank {self.rank} on {host}: {self.status}, for {duration:.0f} s"
        if silence > SILENCE:
            text += f"; no heartbeat for {silence:.0f} s"
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
