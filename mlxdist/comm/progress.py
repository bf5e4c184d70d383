"""Moves the host transport's exchanges along, in the one order that all ranks share.

MPI moves data only while somebody calls it, and gradients come while the backward pass
still runs: MLX keeps whoever evaluates them waiting. So where there is something to
hide, a thread looks after the exchanges meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import mlx.core as mx

from .exchange import Exchange, Round
from .flight_recorder import Recorder

# Enough to keep the wire busy while one round is added up; each costs an inbox a peer.
ROUNDS_IN_FLIGHT = 4
# How long the thread sleeps where nothing has moved, each time half as long again. What
# arrives meanwhile is in the system's buffers, and the core is the backward pass's, or
# another rank's: short naps alone would take a good part of it, at 20 us a look.
_SHORTEST, _LONGEST = 50e-6, 800e-6  # seconds
_LOOK_FOR_ERRORS = 0.1  # seconds
_SPIN = 100e-6  # seconds in which what is about to come does come


class Progress:
    """The exchanges of one transport that are not finished, oldest first.

    Args:
        mpi: mpi4py's MPI.
        overlaps: whether computing and communicating can go on at the same time.
        recorder: told while this rank waits for others.
    """

    def __init__(self, mpi: Any, *, overlaps: bool, recorder: Recorder):
        self._mpi = mpi
        self._recorder = recorder
        self._waiting: deque[Exchange] = deque()
        self._under_way: deque[tuple[Exchange, Round]] = deque()
        self._lock = threading.RLock()
        self._work = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if overlaps:
            self._thread = threading.Thread(
                target=self._run, name="mlxdist exchanges", daemon=True
            )
            self._thread.start()

    def add(self, exchange: Exchange) -> None:
        """Evaluates an exchange's arrays, and has it follow all those before it."""
        mx.eval(exchange.arrays)
        with self._lock:
            self._waiting.append(exchange)
            self._look()
        self._work.set()

    def finish(self, exchange: Exchange) -> None:
        """Returns when the exchange, and all before it, are done."""
        with self._recorder.waiting():
            while exchange.left:
                if self._error is not None:
                    raise self._error
                if self._thread is not None:
                    exchange.finished.wait(_LOOK_FOR_ERRORS)
                elif not self._look():
                    self._mpi.Request.Waitall(self._under_way[0][1].requests)

    def drain(self) -> None:
        """Finishes all there is, so that something else may use the transport."""
        with self._lock:
            left = [*self._waiting, *(exchange for exchange, _ in self._under_way)]
        for exchange in left:
            self.finish(exchange)

    def _look(self) -> bool:
        """Posts what there is room for and takes what has arrived; never waits."""
        moved = self._post()
        while self._under_way:
            exchange, oldest = self._under_way[0]
            if not self._mpi.Request.Testall(oldest.requests):
                break
            self._under_way.popleft()
            self._post()  # the wire must not idle while this one is added up
            exchange.take(oldest)
            moved = True
        return moved

    def _post(self) -> bool:
        moved = False
        while self._waiting and len(self._under_way) < ROUNDS_IN_FLIGHT:
            exchange = self._waiting[0]
            if not exchange.ready:  # a round ahead of it is under way
                break
            exchange.begin()
            self._under_way.append((exchange, exchange.post(*exchange.todo.popleft())))
            if not exchange.todo:
                self._waiting.popleft()
            moved = True
        return moved

    def _run(self) -> None:
        nap = _SHORTEST
        while True:
            self._work.wait()
            try:
                with self._lock:
                    moved = self._look()
                    if not (self._waiting or self._under_way):
                        self._work.clear()
            except BaseException as error:
                self._error = error  # raised where the exchange is waited for
                return
            if moved:
                nap = _SHORTEST
            else:
                time.sleep(nap)
                nap = min(1.5 * nap, _LONGEST)


def wait_for(request: Any) -> None:
    """Waits for a collective, and leaves the core to ranks that still compute.

    MPI itself would spin, which took a fifth of a step of four ranks on two cores.
    """
    began, nap = time.perf_counter(), _SHORTEST
    while not request.Test():
        if time.perf_counter() - began > _SPIN:
            time.sleep(nap)
            nap = min(1.5 * nap, _LONGEST)
