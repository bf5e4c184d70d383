"""Progress of the MPI transport's exchanges, in the one order that all ranks share.

MPI makes progress only inside MPI calls. The main thread makes them where it waits for
an exchange. While it computes, as in a backward pass that it evaluates, a thread makes
them in its place, where communication can overlap computing. Whoever does so waits
inside MPI, which polls or naps: see `world/process.py`.
"""

from __future__ import annotations

import threading
from collections import deque

from .exchange import Exchange, Round
from .flight_recorder import Recorder

# Bytes of rounds under way from which on no more are started: enough to keep the wire
# busy while one round is added up. They bound the receive buffers.
ENOUGH_IN_FLIGHT = 12 * 2**20
# The same where ranks compute and communicate in turn, so that no wire is kept busy:
# two full rounds. With one, a step of two ranks took 1.1 of the time.
ENOUGH_IN_TURN = 8 * 2**20
# Seconds without a call of the main thread after which the thread takes over. Each
# hand-over costs two switches of threads, and the main thread may be back at once.
PATIENCE = 0.001


class Progress:
    """The exchanges of one transport that are not complete, oldest first.

    After an error of the thread nothing more is completed, and whoever waits for what
    is left gets the error.

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
        self._bytes_in_flight = 0
        self._enough = ENOUGH_IN_FLIGHT if overlaps else ENOUGH_IN_TURN
        self._deferred: Exchange | None = None
        self._work = threading.Condition(threading.Lock())  # and lock of the queues
        self._driver = threading.Lock()  # of the thread that completes rounds
        self._is_awaited = False  # the main thread is that one, or is to be it
        self._calls = 0  # of the main thread
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
        if exchange.complete:
            return
        with self._recorder.waiting():
            self._is_awaited = True
            try:
                with self._driver:
                    while not exchange.complete:
                        self._check_error()
                        self._complete_oldest()
            finally:
                self._calls += 1
                self._is_awaited = False

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
            self._calls += 1
            self._incomplete.append(exchange)
            self._waiting.append(exchange)
            self._post()
            if len(self._incomplete) == 1:  # else the thread looks by itself
                self._work.notify()

    def _post(self) -> None:
        """Start the rounds that fit. The caller has the lock of the queues."""
        while self._waiting and self._bytes_in_flight < self._enough:
            exchange = self._waiting[0]
            if not exchange.ready:  # rounds that it depends on are in flight
                break
            posted = exchange.post(*exchange.rounds.popleft())
            self._in_flight.append((exchange, posted))
            self._bytes_in_flight += posted.nbytes
            if not exchange.rounds:
                self._waiting.popleft()

    def _complete_oldest(self) -> None:
        """Wait for the oldest round, start more and process it. The caller drives."""
        with self._work:
            self._post()
            exchange, oldest = self._in_flight[0]
        self._wait_all(oldest.requests)
        with self._work:
            self._in_flight.popleft()
            self._bytes_in_flight -= oldest.nbytes
            self._post()  # the wire must not idle while this round is added up
        exchange.take(oldest)
        if exchange.complete:
            self._incomplete.popleft()

    def _run(self) -> None:
        """Complete rounds while the main thread computes, until it does so itself."""
        while self._is_needed():
            with self._driver:
                try:
                    while self._incomplete and not self._is_awaited:
                        self._complete_oldest()
                except BaseException as error:
                    self._error = error  # raised to whoever waits
                    return

    def _is_needed(self) -> bool:
        """Wait until the main thread leaves exchanges alone. False once closed."""
        with self._work:
            while not self._is_closed:
                calls = self._calls
                self._work.wait(PATIENCE if self._incomplete else None)
                is_left_alone = calls == self._calls and not self._is_awaited
                if self._incomplete and is_left_alone:
                    return True
            return False
