"""Thread that exchanges heartbeats with the other ranks and ends jobs that are stuck.

The main thread may hang in a collective for ever. MLX and mpi4py release Python's lock
there, so this thread keeps running. On a communicator of its own it sends its rank's
status to its peers four times a second. By theirs it distinguishes a slow rank
(heartbeats come, its main thread makes progress) from one that is stuck (it makes none)
and from one that is stopped or gone (no heartbeats). A slow rank is reported, and goes
on.

Modelled on Horovod's stall inspector and PyTorch's flight recorder; on by default.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..comm.flight_recorder import Recorder, Status
from ..launcher import environment
from .activity import Activity
from .heartbeat import LOAD_WINDOW, SILENCE, EndNotice, Heartbeat, Message, Peer, encode

if TYPE_CHECKING:
    from mpi4py import MPI

TICK = 0.25  # seconds between heartbeats


class Events(Protocol):
    """Handlers of what a watchdog finds, called on its thread."""

    def on_stuck(self, reason: str) -> None:
        """This rank must end the job, for this reason."""

    def on_slow(self, report: str) -> None:
        """This rank has waited long for others, but not too long yet."""

    def on_end_notice(self, notice: EndNotice) -> None:
        """Another rank is about to end the job."""

    def on_orphaned(self) -> None:
        """The mpirun that started this rank is gone."""

    def on_sigterm(self) -> None:
        """This process has received SIGTERM."""


def peers_of(rank: int, size: int) -> list[int]:
    """Return the ranks with which a rank exchanges heartbeats: all others.

    A job of N ranks therefore sends N * (N - 1) messages per tick.
    """
    return [peer for peer in range(size) if peer != rank]


class Discount(NamedTuple):
    """Seconds that do not count of the activity that started at `since`.

    The watchdog's own: the main thread alone writes the status.
    """

    since: float
    seconds: float


class Watchdog(threading.Thread):
    """Watches the other ranks of a job, and the process that started this one.

    Args:
        comm: a communicator for heartbeats only.
        recorder: holds the status of this rank.
        timeout: seconds that this rank may wait in one call while no rank makes
            progress.
        host: name of this machine.
        events: called with what happens.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        recorder: Recorder,
        *,
        timeout: float,
        host: str,
        events: Events,
    ):
        super().__init__(name="mlxdist watchdog", daemon=True)
        self._recorder = recorder
        self._timeout = timeout
        self._warn_after = self._first_warning = min(60.0, timeout / 2)
        self._warned_since = 0.0  # start of the activity that is reported
        self._host = host
        self._events = events
        self._stopped = False
        self._discount = Discount(0.0, 0.0)
        # Bytes arrive here at once on SIGTERM, even while the main thread is inside MPI
        # and can't run Python handlers. See `hooks`.
        self._wake, self.wake_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        self._parent = os.getppid() if environment.started_by_mpirun() else None
        self._cpu_sample = (time.monotonic(), time.process_time())
        self._activity = Activity(min(10.0, timeout / 4))
        self._idle = 0.0  # seconds without progress of the main thread
        self._rank = comm.Get_rank()
        ranks = peers_of(self._rank, comm.Get_size())
        self._peers = [Peer(rank, comm) for rank in ranks]

    def run(self) -> None:
        self._send(self._heartbeat())
        last = time.monotonic()
        while not self._stopped:
            self._wait_for_tick()
            now = time.monotonic()
            if now - last > SILENCE:
                self._forgive(now - last)
            last = now
            if self._parent is not None and os.getppid() != self._parent:
                self._events.on_orphaned()
            self._idle = self._activity.sample()
            self._send(self._heartbeat())
            self._receive()
            self._check()

    def stop(self) -> None:
        """End the thread. Called when all ranks have finished."""
        self._stopped = True
        os.write(self.wake_fd, b"\0")
        self.join()

    def close(self) -> None:
        """Take the last messages, and free what MPI and the system keep for this."""
        for peer in self._peers:
            peer.receive()
            peer.close()
        for descriptor in (self._wake, self.wake_fd):
            os.close(descriptor)

    def notify(self, notice: EndNotice) -> None:
        """Notify all peers that the job ends, so that each writes its record."""
        self._send(notice)

    def _wait_for_tick(self) -> None:
        readable = select.select([self._wake], [], [], TICK)[0]
        if readable and os.read(self._wake, 2**16) and not self._stopped:
            self._events.on_sigterm()

    def _forgive(self, seconds: float) -> None:
        """Discount time in which this process was itself stopped or starved.

        It has received nothing meanwhile, which says nothing about its peers.
        """
        since = self._recorder.status.since
        earlier = self._discount.seconds if since == self._discount.since else 0.0
        self._discount = Discount(since, earlier + seconds)
        for peer in self._peers:
            peer.last_seen += seconds

    def _heartbeat(self) -> Heartbeat:
        now, cpu = time.monotonic(), time.process_time()
        then, cpu_then = self._cpu_sample
        load = (cpu - cpu_then) / max(now - then, 1e-3)
        if now - then > LOAD_WINDOW:
            self._cpu_sample = (now, cpu)
        status = self._recorder.status
        duration = now - self._start_of(status)
        return Heartbeat(status, duration, self._idle, load, self._host, os.getpid())

    def _start_of(self, status: Status) -> float:
        """Return when the activity started, later by what was discounted of it."""
        since, discount = status.since, self._discount
        return since + discount.seconds if since == discount.since else since

    def _send(self, message: Message) -> None:
        data = encode(message)
        for peer in self._peers:
            peer.send(data, always=isinstance(message, EndNotice))

    def _receive(self) -> None:
        for peer in self._peers:
            for message in peer.receive():
                if isinstance(message, EndNotice):
                    self._events.on_end_notice(message)

    def _check(self) -> None:
        if self._stopped:
            return
        status = self._recorder.status
        now = time.monotonic()
        is_busy = status.call or status.waiting or status.leaving
        waited = now - self._start_of(status) if is_busy else 0.0
        if status.waiting and not status.leaving:
            self._check_departed(status)
        self._check_timeout(status, waited, now)
        if status.since != self._warned_since:
            self._warned_since, self._warn_after = status.since, self._first_warning
        elif (status.waiting or status.leaving) and waited > self._warn_after:
            self._warn_after = 2 * waited
            activity = "at its end" if status.leaving else str(status)
            self._events.on_slow(
                f"has waited for {waited:.0f} s {activity}:\n"
                f"{self._describe(self._laggards(status))}"
            )

    def _check_departed(self, status: Status) -> None:
        # A peer that has made the same calls may exit while this rank still receives.
        departed = [
            peer
            for peer in self._peers
            if peer.status.leaving and peer.status.sequence < status.sequence
        ]
        if departed:
            self._events.on_stuck(
                f"is {status} and waits for a rank that has exited:\n"
                f"{self._describe(departed)}\n"
                "All ranks must take the same number of steps; a rank without examples "
                "calls update() with weight=0, as with mlxdist.ShardedSampler."
            )

    def _check_timeout(self, status: Status, waited: float, now: float) -> None:
        # Staggered: ranks that wait for the same one would all end the job at once.
        limit = self._timeout + min(self._rank, 4) * TICK
        if waited > limit and not self._may_go_on(status, limit):
            self._events.on_stuck(
                f"has been {status} for {waited:.0f} s, longer than timeout="
                f"{self._timeout:g}, and no rank makes progress:\n"
                f"{self._describe(self._laggards(status))}"
            )
        silent = [peer for peer in self._peers if now - peer.last_seen > limit]
        if silent:
            self._events.on_stuck(f"has lost touch with:\n{self._describe(silent)}")

    def _may_go_on(self, status: Status, limit: float) -> bool:
        """Whether this rank works, or waits for one that does."""
        if status.leaving:  # nothing depends on it: others may also wait for a disk
            return not all(peer.spins(limit) for peer in self._laggards(status))
        works = not status.waiting and self._idle < limit
        return works or any(peer.works(limit) for peer in self._peers)

    def _laggards(self, status: Status) -> list[Peer]:
        """Return the peers for which this rank waits: those behind it, if there are."""
        at_work = [p for p in self._peers if not p.status.leaving]
        if status.leaving:
            return at_work or self._peers
        behind = [p for p in self._peers if p.status.sequence < status.sequence]
        return behind or [p for p in at_work if not p.status.waiting] or self._peers

    def _describe(self, peers: list[Peer]) -> str:
        return "\n".join(f"  {peer.describe(self._host)}" for peer in peers)
