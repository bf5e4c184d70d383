"""Progress of the MPI transport's exchanges, in the one order that all ranks share.

MPI makes progress only inside MPI calls, and evaluating gradients blocks the main
thread. Where communication can overlap the backward pass, a thread of its own drives
it. Whoever drives it waits inside MPI, which polls or naps: see `world/process.py`.
"""

from __future__ import annotations

import threading
from collections import deque

from .exchange import Exchange, Round
from .flight_recorder import Recorder

# Enough to keep the wire busy while one round is added up; each costs a buffer a peer.
ROUNDS_IN_FLIGHT = 4


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

        self._wait_all = MPI.Request.Waitall
        self._recorder = recorder
        self._incomplete: deque[Exchange] = deque()
        self._waiting: deque[Exchange] = deque()  # with rounds to post
        self._in_flight: deque[tuple[Exchange, Round]] = deque()
        self._deferred: Exchange | None = None
        self._work = threading.Condition(threading.Lock())  # and lock of the queues
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
            if self._thread is not None:
                exchange.wait()
            while not exchange.complete:
                self._check_error()
                self._complete_oldest()

    def drain(self) -> None:
        """Complete all exchanges, so that another collective may use the transport."""
        self._check_open()
        self._check_error()
        self._add_deferred()
        with self._work:
            left = list(self._incomplete)
        for exchange in left:
            self.wait(exchange)

    def close(self) -> None:
        """End the thread. All exchanges are complete; more of them raise an error."""
        with self._work:
            self._is_closed = True
            self._work.notify()
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
        self._check_error()
        with self._work:
            self._incomplete.append(exchange)
            self._waiting.append(exchange)
            self._post()
            self._work.notify()

    def _post(self) -> None:
        """Start the rounds that fit. The caller has the lock."""
        while self._waiting and len(self._in_flight) < ROUNDS_IN_FLIGHT:
            exchange = self._waiting[0]
            if not exchange.ready:  # rounds that it depends on are in flight
                break
            bounds = exchange.rounds.popleft()
            self._in_flight.append((exchange, exchange.post(*bounds)))
            if not exchange.rounds:
                self._waiting.popleft()

    def _complete_oldest(self) -> None:
        """Wait for the oldest round, start the next one and process what arrived."""
        with self._work:
            self._post()
            exchange, oldest = self._in_flight[0]
        self._wait_all(oldest.requests)
        with self._work:
            self._in_flight.popleft()
            self._post()  # the wire must not idle while this round is added up
        exchange.take(oldest)
        if exchange.complete:
            self._incomplete.popleft()

    def _has_work(self) -> bool:
        """Wait for an exchange. False once there will be no more."""
        with self._work:
            while not (self._incomplete or self._is_closed):
                self._work.wait()
            return not self._is_closed

    def _run(self) -> None:
        try:
            while self._has_work():
                self._complete_oldest()
        except BaseException as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        with self._work:
            self._error = error  # raised to whoever waits
            left = list(self._incomplete)
        for exchange in left:
            exchange.finish()
