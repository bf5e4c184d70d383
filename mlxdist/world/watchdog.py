"""Thread that exchanges heartbeats with the other ranks and ends jobs that are stuck.

The main thread may hang in a collective for ever. MLX and mpi4py release Python's lock
there, so this thread keeps running. On a communicator of its own it sends its rank's
status four times a second, and receives a digest of all ranks' (see `tree`). By that it
distinguishes a slow rank (heartbeats come, its main thread makes progress) from one
that is stuck (it makes none) and from one that is stopped or gone (no heartbeats). A
slow rank is reported, and goes on.

Modelled on Horovod's stall inspector and PyTorch's flight recorder; on by default.
"""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..comm.flight_recorder import Recorder, Status
from ..launcher import environment
from .activity import Activity
from .channel import Channel
from .digest import EndNotice
from .heartbeat import LOAD_WINDOW, SILENCE, Heartbeat
from .stall import View
from .tree import Node

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
        self._poll = select.poll()  # `select` takes no descriptor above 1023
        self._poll.register(self._wake, select.POLLIN)
        self._parent = os.getppid() if environment.started_by_mpirun() else None
        self._cpu_sample = (time.monotonic(), time.process_time())
        self._activity = Activity(min(10.0, timeout / 4))
        self._idle = 0.0  # seconds without progress of the main thread
        self._rank = comm.Get_rank()
        self._node = Node(self._rank, comm.Get_size(), time.monotonic())
        self._channel = Channel(comm)

    def run(self) -> None:
        self.tick()
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
            view = self.tick()
            if not self._stopped:
                self._check(view)

    def tick(self) -> View:
        """Receive what has arrived, send this rank's part, and return the job."""
        now = time.monotonic()
        for sender, message in self._channel.receive():
            if isinstance(message, EndNotice):
                self._events.on_end_notice(message)
            else:
                self._node.receive(sender, message, now)
        node, heartbeat = self._node, self._heartbeat()
        job = node.job(heartbeat, now)
        if node.parent is not None:
            self._channel.send(node.subtree(heartbeat, now), [node.parent])
        self._channel.send(job, list(node.children))
        return View(self._rank, self._host, heartbeat.status, self._idle, job)

    def stop(self) -> None:
        """End the thread. Called when all ranks have finished."""
        self._stopped = True
        os.write(self.wake_fd, b"\0")
        self.join()

    def close(self) -> None:
        """Take the last messages, and free what MPI and the system keep for this."""
        self._channel.close()
        for descriptor in (self._wake, self.wake_fd):
            os.close(descriptor)

    def notify(self, notice: EndNotice) -> None:
        """Notify all peers that the job ends, so that each writes its record."""
        self._channel.notify(notice)

    def _wait_for_tick(self) -> None:
        readable = self._poll.poll(TICK * 1000)
        if readable and os.read(self._wake, 2**16) and not self._stopped:
            self._events.on_sigterm()

    def _forgive(self, seconds: float) -> None:
        """Discount time in which this process was itself stopped or starved.

        It has received nothing meanwhile, which says nothing about its peers.
        """
        since = self._recorder.status.since
        earlier = self._discount.seconds if since == self._discount.since else 0.0
        self._discount = Discount(since, earlier + seconds)
        self._node.forgive(seconds)

    def _heartbeat(self) -> Heartbeat:
        now, cpu = time.monotonic(), time.process_time()
        then, cpu_then = self._cpu_sample
        load = (cpu - cpu_then) / max(now - then, 1e-3)
        if now - then > LOAD_WINDOW:
            self._cpu_sample = (now, cpu)
        status = replace(self._recorder.status)
        duration = now - self._start_of(status)
        return Heartbeat(status, duration, self._idle, load, self._host, os.getpid())

    def _start_of(self, status: Status) -> float:
        """Return when the activity started, later by what was discounted of it."""
        since, discount = status.since, self._discount
        return since + discount.seconds if since == discount.since else since

    def _check(self, view: View) -> None:
        status = view.status
        is_busy = status.call or status.waiting or status.leaving
        waited = time.monotonic() - self._start_of(status) if is_busy else 0.0
        departed = view.departed()
        if departed:
            self._events.on_stuck(
                f"is {status} and waits for a rank that has exited:\n"
                f"{view.describe(departed)}\n"
                "All ranks must take the same number of steps; a rank without examples "
                "calls update() with weight=0, as with mlxdist.ShardedSampler."
            )
        self._check_timeout(view, waited)
        if status.since != self._warned_since:
            self._warned_since, self._warn_after = status.since, self._first_warning
        elif (status.waiting or status.leaving) and waited > self._warn_after:
            self._warn_after = 2 * waited
            activity = "at its end" if status.leaving else str(status)
            self._events.on_slow(
                f"has waited for {waited:.0f} s {activity}:\n{view.report()}"
            )

    def _check_timeout(self, view: View, waited: float) -> None:
        # Staggered: ranks that wait for the same one would all end the job at once.
        limit = self._timeout + min(self._rank, 4) * TICK
        if waited > limit and not view.may_go_on(limit):
            self._events.on_stuck(
                f"has been {view.status} for {waited:.0f} s, longer than timeout="
                f"{self._timeout:g}, and no rank makes progress:\n{view.report()}"
            )
        silent = view.silent(limit)
        if silent:
            self._events.on_stuck(f"has lost touch with:\n{view.describe(silent)}")
