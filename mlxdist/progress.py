"""Moves the host transport's exchanges along, in the one order that all ranks share.

MPI moves data only while somebody calls it, and gradients come while the backward pass
still runs. So where there is something to hide, nobody blocks: arrays are waited for by
a thread, and the exchange goes on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import mlx.core as mx

from .collectives import Array
from .exchange import Exchange, Round
from .recorder import Recorder

# Enough to keep the wire busy while one round is added up; each costs an inbox a peer.
ROUNDS_IN_FLIGHT = 4
# How long the thread sleeps where nothing has moved: what arrives meanwhile is in the
# system's buffers, and the core is the backward pass's, or another rank's.
_NAP = 100e-6


class Progress:
    """The exchanges of one transport that are not finished, oldest first.

    Args:
        mpi: mpi4py's MPI.
        overlaps: whether computing and communicating can go on at the same time, so
            that waiting must not hold up either.
        recorder: told while this rank waits for others.
    """

    def __init__(self, mpi: Any, *, overlaps: bool, recorder: Recorder):
        self._mpi = mpi
        self._recorder = recorder
        self._evaluator = Evaluator() if overlaps else None
        self._waiting: deque[tuple[Exchange, Callable[[], bool]]] = deque()
        self._under_way: deque[tuple[Exchange, Round]] = deque()
        self._current: Exchange | None = None

    def add(self, exchange: Exchange) -> None:
        """Takes an exchange that comes after all those before it."""
        if self._evaluator is None:
            ready = _evaluated(exchange.arrays)
        else:
            ready = self._evaluator.evaluate(exchange.arrays)
        self._waiting.append((exchange, ready))
        self._look()

    def finish(self, exchange: Exchange) -> None:
        """Returns when the exchange, and all before it, are done."""
        with self._recorder.waiting():
            while exchange.left:
                if self._look():
                    continue
                if self._evaluator is not None:
                    time.sleep(_NAP)
                else:
                    self._mpi.Request.Waitall(self._under_way[0][1].requests)

    def drain(self) -> None:
        """Finishes all there is, so that something else may use the transport."""
        last = [self._current, *(one for one, _ in (*self._waiting, *self._under_way))]
        for exchange in filter(None, last):
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
        while len(self._under_way) < ROUNDS_IN_FLIGHT and self._next():
            exchange = self._current
            assert exchange is not None
            self._under_way.append((exchange, exchange.post(*exchange.todo.popleft())))
            if not exchange.todo:
                self._current = None
            moved = True
        return moved

    def _next(self) -> bool:
        """Whether there is an exchange to post a round of."""
        if self._current is None and self._waiting and self._waiting[0][1]():
            self._current, _ = self._waiting.popleft()
            self._current.begin()
        return self._current is not None


class Evaluator:
    """A thread that waits for lazy arrays, in the order in which they were given."""

    def __init__(self) -> None:
        self._arrays: SimpleQueue[tuple[list[Array], list[BaseException | None]]] = (
            SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def evaluate(self, arrays: list[Array]) -> Callable[[], bool]:
        """Has it evaluated; what is returned tells whether it has been."""
        mx.async_eval(arrays)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="mlxdist evaluator", daemon=True
            )
            self._thread.start()
        answer: list[BaseException | None] = []
        self._arrays.put((arrays, answer))

        def ready() -> bool:
            if answer and answer[0] is not None:
                raise answer[0]
            return bool(answer)

        return ready

    def _run(self) -> None:
        while True:
            arrays, answer = self._arrays.get()
            try:
                mx.eval(arrays)
                answer.append(None)
            except BaseException as error:
                answer.append(error)
            del arrays


def _evaluated(arrays: list[Array]) -> Callable[[], bool]:
    def ready() -> bool:
        mx.eval(arrays)
        return True

    return ready
