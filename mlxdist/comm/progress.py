"""Progress of the MPI transport's exchanges, in the one order that all ranks share.

MPI makes progress only inside MPI calls, and evaluating gradients blocks the main
thread. Where communication can overlap the backward pass, a thread of its own drives
it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import mlx.core as mx

from .exchange import Exchange, Round
from .flight_recorder import Recorder

if TYPE_CHECKING:
    from mpi4py.MPI import Request

# Enough to keep the wire busy while one round is added up; each costs a buffer a peer.
ROUNDS_IN_FLIGHT = 4
# Seconds that the thread sleeps where nothing has moved, each time half as long again.
# What arrives meanwhile waits in the system's buffers. Short sleeps alone would take a
# good part of a core, at 20 us a look, from the backward pass or from another rank.
_SHORTEST, _LONGEST = 50e-6, 800e-6
_ERROR_CHECK = 0.1  # seconds between looks for an error of the thread
_SPIN = 100e-6  # seconds in which a collective on one host is usually complete


class Progress:
    """The exchanges of one transport that are not complete, oldest first.

    After an error of the thread nothing more is completed. The exchanges that are left
    are finished without a result, and whoever waits for one gets the error.

    Args:
        overlaps: whether ranks can compute while they communicate: starts the thread.
        recorder: notified while this rank waits for others.
    """

    def __init__(self, *, overlaps: bool, recorder: Recorder):
        from mpi4py import MPI

        self._requests = MPI.Request
        self._recorder = recorder
        self._waiting: deque[Exchange] = deque()
        self._in_flight: deque[tuple[Exchange, Round]] = deque()
        self._deferred: Exchange | None = None
        self._lock = threading.RLock()
        self._work = threading.Event()
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None
        if overlaps:
            self._thread = threading.Thread(
                target=self._run, name="mlxdist exchanges", daemon=True
            )
            self._thread.start()

    def add(self, exchange: Exchange) -> None:
        """Start an exchange behind all earlier ones."""
        self._add_deferred()
        self._enqueue(exchange)

    def add_pair(self, first: Exchange, second: Exchange) -> None:
        """Start `first`, and `second` once the next exchange has been started.

        The next bucket's reduction keeps the wire busy until this one's is complete. It
        is an order that all ranks share, whatever arrives first.
        """
        self._enqueue(first)
        self._add_deferred()
        self._deferred = second

    def wait(self, exchange: Exchange) -> None:
        """Return when the exchange, and all before it, are complete.

        Raises:
            the error of the progress thread.
        """
        if exchange is self._deferred:
            self._add_deferred()
        with self._recorder.waiting():
            while not exchange.complete:
                self._check_error()
                if self._thread is not None:
                    exchange.finished.wait(_ERROR_CHECK)
                elif not self._advance():
                    self._requests.Waitall(self._in_flight[0][1].requests)

    def drain(self) -> None:
        """Complete all exchanges, so that another collective may use the transport."""
        self._check_open()
        self._add_deferred()
        with self._lock:
            self._check_error()
            left = self._outstanding()
        for exchange in left:
            self.wait(exchange)

    def close(self) -> None:
        """End the thread. All exchanges are complete; more of them raise an error."""
        self._is_closed = True
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "this world is closed: its ranks can't communicate any more"
            )

    def _check_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _add_deferred(self) -> None:
        exchange, self._deferred = self._deferred, None
        if exchange is not None:
            self._enqueue(exchange)

    def _enqueue(self, exchange: Exchange) -> None:
        self._check_open()
        mx.eval(exchange.arrays)
        with self._lock:
            self._check_error()
            self._waiting.append(exchange)
            self._advance()
        self._work.set()

    def _advance(self) -> bool:
        """Post the rounds that fit and take those that arrived. Never blocks.

        Returns:
            Whether anything moved.
        """
        moved = self._post()
        while self._in_flight:
            exchange, oldest = self._in_flight[0]
            if not self._requests.Testall(oldest.requests):
                break
            self._in_flight.popleft()
            self._post()  # the wire must not idle while this round is added up
            exchange.take(oldest)
            moved = True
        return moved

    def _post(self) -> bool:
        moved = False
        while self._waiting and len(self._in_flight) < ROUNDS_IN_FLIGHT:
            exchange = self._waiting[0]
            if not exchange.ready:  # rounds that it depends on are in flight
                break
            exchange.begin()
            bounds = exchange.rounds.popleft()
            self._in_flight.append((exchange, exchange.post(*bounds)))
            if not exchange.rounds:
                self._waiting.popleft()
            moved = True
        return moved

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            self._error = error  # raised to whoever waits
            left = self._outstanding()
        for exchange in left:
            exchange.finish()

    def _outstanding(self) -> list[Exchange]:
        """Return the exchanges that are not complete, oldest first."""
        started = [exchange for exchange, _ in self._in_flight]
        return list(dict.fromkeys([*started, *self._waiting]))

    def _run(self) -> None:
        pause = _SHORTEST
        while not self._is_closed:
            self._work.wait()
            try:
                with self._lock:
                    moved = self._advance()
                    if not (self._waiting or self._in_flight):
                        self._work.clear()
            except BaseException as error:
                self._give_up(error)
                return
            if moved:
                pause = _SHORTEST
            else:
                time.sleep(pause)
                pause = min(1.5 * pause, _LONGEST)


def wait_for(request: Request) -> None:
    """Wait for a collective, and leave the core to ranks that still compute.

    MPI itself would spin, which took a fifth of a step of four ranks on two cores.
    """
    started, pause = time.perf_counter(), _SHORTEST
    while not request.Test():
        if time.perf_counter() - started > _SPIN:
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST)
