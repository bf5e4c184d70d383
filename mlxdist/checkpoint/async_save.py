"""Saving while training goes on: one thread for each rank, one save at a time.

The threads of the ranks agree among themselves, on a communicator of their own, so
that a checkpoint is whole as soon as its files are, whatever the main threads do.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np

from ..comm.together import CheckpointError, Exchange
from ..world.world import World

_NICE = 10  # about a tenth of a core where all are busy, so that it ends all the same
_PAUSE = 0.005  # seconds between looks at what others sent; MPI itself would spin


class Background:
    """The saves of one world that go on beside its steps."""

    def __init__(self, world: World):
        self._world = world
        self._thread: Thread | None = None
        self.exchange: Exchange = (
            _alone if world.size == 1 else Polled(world.duplicate())
        )
        atexit.register(self._at_exit)

    def start(self, act: Callable[[], None]) -> None:
        """Runs `act` in a thread; what it raises is told by the next step, or save."""
        self._thread = Thread(
            target=self._run, args=[act], name="mlxdist checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the save under way is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, act: Callable[[], None]) -> None:
        yield_to_training()
        try:
            act()
        except Exception as error:
            self._world.background_errors.append(str(error) or repr(error))

    def _at_exit(self) -> None:
        self.wait()
        if self._world.background_errors:
            # An exit handler can't fail, and the job must not pass for a success.
            error = CheckpointError(self._world.background_errors.pop())
            sys.excepthook(CheckpointError, error, None)
            sys.stderr.flush()
            os._exit(1)


_of_world: dict[int, Background] = {}


def background(world: World) -> Background:
    """The one of a world. Made by all ranks together."""
    if id(world) not in _of_world:  # which is kept alive by it
        _of_world[id(world)] = Background(world)
    return _of_world[id(world)]


def failure(world: World) -> str | None:
    """Waits for the save under way in a world; why it, or one before, has failed."""
    if id(world) in _of_world:
        _of_world[id(world)].wait()
    return world.background_errors.pop() if world.background_errors else None


def yield_to_training() -> None:
    """Gives this thread, and those that it starts, what the others leave.

    Linux alone has priorities of threads; elsewhere they stay as they are.
    """
    if sys.platform == "linux":
        os.nice(_NICE)  # of this thread, there


def _alone(data: bytes) -> list[bytes]:
    return [data]


class Polled:
    """Every rank's bytes to all, in a thread that must leave the processor alone."""

    def __init__(self, comm: Any):
        from mpi4py import MPI

        self._comm, self._byte = comm, MPI.BYTE

    def __call__(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self._comm.Get_size(), np.int64)
        own = np.array([len(data)], np.int64)
        self._finish(self._comm.Iallgather(own, lengths))
        counts = [int(length) for length in lengths]
        ends = np.cumsum(counts)
        gathered = np.empty(int(ends[-1]), np.uint8)
        sent = np.frombuffer(data, np.uint8)
        received = [gathered, counts, None, self._byte]
        self._finish(self._comm.Iallgatherv([sent, self._byte], received))
        return [part.tobytes() for part in np.split(gathered, ends[:-1])]

    def _finish(self, request: Any) -> None:
        while not request.Test():
            time.sleep(_PAUSE)
