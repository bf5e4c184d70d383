"""A thread that exchanges signs of life with the other ranks, and ends stuck jobs.

The main thread may hang in a collective for ever; MLX and mpi4py let go of Python's
lock there, so that this thread goes on. It has a communicator of its own and sends its
rank's status to each peer four times a second. From those it tells a rank that is slow
(it gives signs, and its processor time grows) from one that sleeps (no processor time)
and one that is stopped or gone (no signs).

After Horovod's stall inspector and PyTorch's flight recorder, on by default.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm.flight_recorder import Recorder, Status

TICK = 0.25
_MESSAGE = 1024  # bytes; a status is about 200
_SILENT = 2.0  # seconds without a sign before a rank is called silent


@dataclass
class Peer:
    """What is known of another rank."""

    rank: int
    inbox: NDArray[np.uint8]
    request: Any
    sending: Any = None
    status: Status = field(default_factory=Status)
    host: str = "?"
    pid: int = 0
    seen: float = field(default_factory=time.monotonic)
    age: float = 0.0  # of its status, when that was sent
    busy: float | None = None  # processor seconds a second

    def told(self, own_host: str) -> str:
        """`rank 1 on mac2: in its own code, after step 12, for 40 s; it computes`."""
        now = time.monotonic()
        since = self.age + now - self.seen
        text = f"rank {self.rank} on {self.host}: {self.status}, for {since:.0f} s"
        if now - self.seen > _SILENT:
            state = process_state(self.pid) if self.host == own_host else ""
            text += f"; no sign of life for {now - self.seen:.0f} s{state}"
        elif self.busy is not None:
            works = self.busy > 0.05
            text += "; it is alive and computes" if works else "; it is alive but idle"
        return text


def process_state(pid: int) -> str:
    """What the operating system says of a process on this machine."""
    try:
        done = subprocess.run(
            ["/bin/ps", "-o", "stat=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state = done.stdout.strip()
    if not state:
        return "; its process is gone"
    if state.startswith("T"):
        return "; its process is stopped (SIGSTOP)"
    return "; its process does not let Python's threads run"


class Watchdog(threading.Thread):
    """Watches the other ranks, and this one's parent.

    Args:
        comm: an mpi4py communicator of its own.
        recorder: this rank's status.
        timeout: seconds that a rank may wait for others in one call.
        host: this machine's name.
        end: ends the job, given the reason.
        asked: another rank ends the job; whether it wants to see this one's stack.
        orphaned: the mpirun that started this rank is gone.
        terminated: this process got SIGTERM.
    """

    def __init__(
        self,
        comm: Any,
        recorder: Recorder,
        *,
        timeout: float,
        host: str,
        end: Callable[[str], None],
        asked: Callable[[bool], None],
        orphaned: Callable[[], None],
        terminated: Callable[[], None],
    ):
        super().__init__(name="mlxdist watchdog", daemon=True)
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self._recorder = recorder
        self._timeout = timeout
        self._warn_after = min(60.0, timeout / 2)
        self._host = host
        self._end, self._asked = end, asked
        self._orphaned, self._terminated = orphaned, terminated
        self._stopped = False
        # Python's own signal handler writes here at once, even while the main thread
        # is inside MPI and can't run any Python.
        self._wake, self.wake_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        self._parent = os.getppid() if "OMPI_COMM_WORLD_RANK" in os.environ else None
        self._processor = (time.monotonic(), time.process_time())
        self._rank: int = comm.Get_rank()
        self._peers = {
            rank: self._listen(rank)
            for rank in range(comm.Get_size())
            if rank != self._rank
        }

    def _listen(self, rank: int) -> Peer:
        inbox = np.zeros(_MESSAGE, np.uint8)
        return Peer(rank, inbox, self._comm.Irecv([inbox, self._mpi.BYTE], rank))

    def run(self) -> None:
        self._send(self._status())
        last = time.monotonic()
        while not self._stopped:
            self._pause()
            now = time.monotonic()
            if now - last > _SILENT:
                # This process itself was stopped, or starved: it has seen nothing in
                # that time, and holds nothing of it against others.
                self._recorder.status.since += now - last
                for peer in self._peers.values():
                    peer.seen += now - last
            last = now
            if self._parent is not None and os.getppid() != self._parent:
                self._orphaned()
            self._send(self._status())
            self._receive()
            self._judge()

    def stop(self) -> None:
        """Ends the thread, when all ranks are at their end."""
        self._stopped = True
        os.write(self.wake_fd, b"\0")
        self.join()
        for peer in self._peers.values():
            peer.request.Cancel()
            peer.request.Wait()

    def _pause(self) -> None:
        woken = select.select([self._wake], [], [], TICK)[0]
        if woken and signal.SIGTERM in os.read(self._wake, 64):
            self._terminated()

    def notify(self, *, stacks: bool) -> None:
        """Tells all peers that the job ends, so that each writes what it knows."""
        self._send({"end": True, "stacks": stacks}, always=True)

    def _status(self) -> dict[str, Any]:
        now, used = time.monotonic(), time.process_time()
        before, used_before = self._processor
        busy = (used - used_before) / max(now - before, 1e-3)
        if now - before > 2:
            self._processor = (now, used)
        status = self._recorder.status
        told = {**asdict(status), "since": now - status.since}
        return {**told, "busy": busy, "host": self._host, "pid": os.getpid()}

    def _send(self, message: dict[str, Any], *, always: bool = False) -> None:
        data = np.frombuffer(json.dumps(message).encode().ljust(_MESSAGE), np.uint8)
        for peer in self._peers.values():
            # One message on its way at most: a stopped rank takes none.
            if always or peer.sending is None or peer.sending[0].Test():
                request = self._comm.Isend([data, self._mpi.BYTE], peer.rank)
                peer.sending = (request, data)

    def _receive(self) -> None:
        for peer in self._peers.values():
            while peer.request.Test():
                message = json.loads(peer.inbox.tobytes())
                request = self._comm.Irecv([peer.inbox, self._mpi.BYTE], peer.rank)
                peer.request, peer.seen = request, time.monotonic()
                if "end" in message:
                    self._asked(message["stacks"])
                    continue
                peer.busy, peer.age = message.pop("busy"), message["since"]
                peer.host, peer.pid = message.pop("host"), message.pop("pid")
                peer.status = Status(**message)

    def _judge(self) -> None:
        status, now = self._recorder.status, time.monotonic()
        if status.leaving or self._stopped:
            return
        waited = now - status.since if status.call or status.waiting else 0.0
        peers = self._peers.values()
        # One that has made the same calls may leave while this one still receives.
        gone = [
            p for p in peers if p.status.leaving and p.status.sequence < status.sequence
        ]
        if gone and status.waiting:
            self._end(
                f"is {status} and waits for a rank that has left:\n{self._told(gone)}\n"
                "All ranks must take the same number of steps; a rank without examples "
                "calls update() with weight=0, as with mlxdist.ShardedSampler."
            )
        # Ranks that wait for the same one reach their end one after the other.
        limit = self._timeout + min(self._rank, 4) * TICK
        if waited > limit:
            self._end(
                f"has been {status} for {waited:.0f} s, longer than timeout="
                f"{self._timeout:g}:\n{self._told(self._late(status))}"
            )
        silent = [p for p in peers if now - p.seen > limit]
        if silent:
            self._end(f"has lost touch:\n{self._told(silent)}")
        if waited > self._warn_after and status.waiting:
            self._warn_after = 2 * waited
            late = self._told(self._late(status))
            self._say(f"waits for {waited:.0f} s, {status}:\n{late}")
        if not waited:
            self._warn_after = min(60.0, self._timeout / 2)

    def _late(self, own: Status) -> list[Peer]:
        """Those that have not come as far; all, where none is behind."""
        peers = list(self._peers.values())
        behind = [p for p in peers if p.status.sequence < own.sequence]
        idle = [p for p in peers if not p.status.waiting]
        return behind or idle or peers

    def _told(self, peers: list[Peer]) -> str:
        return "\n".join(f"  {peer.told(self._host)}" for peer in peers)

    def _say(self, text: str) -> None:
        who = f"rank {self._rank} on {self._host}"
        print(f"mlxdist: {who} {text}", file=sys.stderr, flush=True)
