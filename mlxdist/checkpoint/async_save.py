"""Background saves: one thread a rank, one save at a time.

The threads commit among themselves, over a communicator of their own, so a checkpoint
is complete as soon as its files are, whatever the main threads do.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ..world.world import World
from .collective import AllGather, CheckpointError, problem_of
from .commit import SaveJob

if TYPE_CHECKING:
    from mpi4py import MPI

_NICE = 10  # leaves about a tenth of a busy core, so that the save ends
_POLL = 0.005  # seconds; MPI itself would spin


class BackgroundSaver:
    """The background saves of one world. Made by all its ranks together."""

    def __init__(self, world: World):
        self._errors = world.background_errors
        self._thread: Thread | None = None
        self._all_gather: AllGather = _gather_alone
        if world.size > 1:
            comm = world.duplicate()
            self._all_gather = PolledAllGather(comm)
            world.at_close.callback(comm.Free)
        world.at_close.callback(self.wait)  # called first
        atexit.register(self._at_exit)

    def start(self, job: SaveJob) -> None:
        """Run a job in a thread. The next step or save raises its error."""
        thread = Thread(
            target=self._run, args=[job], name="mlxdist checkpoint", daemon=True
        )
        try:
            thread.start()
        except Exception:  # the system has no more threads; the other ranks wait
            self._commit(job)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Return when the save under way is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, job: SaveJob) -> None:
        lower_priority()
        self._commit(job)

    def _commit(self, job: SaveJob) -> None:
        try:
            with job:
                job.commit(*job.write(), self._all_gather)
        except Exception as error:
            self._errors.append(problem_of(error))

    def _at_exit(self) -> None:
        self.wait()
        if self._errors:
            # An exit handler can't raise, so set the exit code of a failed job here.
            error = CheckpointError(self._errors.pop())
            sys.excepthook(CheckpointError, error, None)
            sys.stderr.flush()
            os._exit(1)


_savers: WeakKeyDictionary[World, BackgroundSaver] = WeakKeyDictionary()


def saver_of(world: World) -> BackgroundSaver:
    """Return the world's saver. The first call is made by all ranks together."""
    if world not in _savers:
        _savers[world] = BackgroundSaver(world)
    return _savers[world]


def wait_for_all() -> None:
    """Wait for the saves under way, of any world: they may be in the same folder."""
    for saver in list(_savers.values()):
        saver.wait()


def wait(world: World) -> str | None:
    """Wait for all saves under way; return why one of this world failed."""
    wait_for_all()
    return world.background_errors.pop() if world.background_errors else None


def lower_priority() -> None:
    """Give this thread, and those that it starts, the time that training leaves.

    Only Linux has priorities of threads.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(_NICE)  # of this thread alone


def _gather_alone(data: bytes) -> list[bytes]:
    return [data]


class PolledAllGather:
    """An all-gather of bytes that sleeps while it waits, and leaves the core free."""

    def __init__(self, comm: MPI.Comm):
        from mpi4py import MPI

        self._comm, self._byte = comm, MPI.BYTE

    def __call__(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self._comm.Get_size(), np.int64)
        length = np.array([len(data)], np.int64)
        self._finish(self._comm.Iallgather(length, lengths))
        counts = lengths.tolist()
        ends = np.cumsum(counts)
        gathered = np.empty(int(ends[-1]), np.uint8)
        sent = np.frombuffer(data, np.uint8)
        request = self._comm.Iallgatherv(
            [sent, self._byte], [gathered, counts, None, self._byte]
        )
        self._finish(request)
        return [part.tobytes() for part in np.split(gathered, ends[:-1])]

    def _finish(self, request: MPI.Request) -> None:
        while not request.Test():
            time.sleep(_POLL)
