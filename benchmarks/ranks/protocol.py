"""Requests of a benchmark to the ranks of its jobs: JSON lines over a Unix socket.

`serve_requests` is the side of the ranks; `common.jobs` is the side of the benchmark.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

SOCKET_VARIABLE = "MLXDIST_BENCH_SOCKET"
JOB_VARIABLE = "MLXDIST_BENCH_JOB"

Message = dict[str, Any]


class Connection:
    """Sends and receives JSON objects over a socket, one per line."""

    def __init__(self, stream: socket.socket):
        self._stream = stream
        self._buffer = b""

    def send(self, message: Message) -> None:
        self._stream.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline: float | None) -> Message:
        """Return the next message; `deadline` is in `time.monotonic()` seconds.

        Raises:
            EOFError: the peer has closed the connection.
            TimeoutError: the deadline has passed.
        """
        while b"\n" not in self._buffer:
            self._wait(deadline)
            data = self._stream.recv(1 << 20)
            if not data:
                raise EOFError("the process ended without a reply")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def fileno(self) -> int:
        return self._stream.fileno()

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._stream, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("no reply before the timeout")

    def close(self) -> None:
        self._stream.close()


def receive_all(
    connections: Mapping[int, Connection], deadline: float
) -> dict[int, Message]:
    """Return the next message of each connection, in the order in which they come.

    A rank that has ended is noticed while others, which may wait for it, are silent.

    Raises:
        EOFError: a peer has closed its connection.
        TimeoutError: the deadline has passed.
    """
    messages: dict[int, Message] = {}
    with selectors.DefaultSelector() as selector:
        for rank, connection in connections.items():
            selector.register(connection, selectors.EVENT_READ, rank)
        while len(messages) < len(connections):
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = sorted(set(connections) - set(messages))
                raise TimeoutError(f"no reply of ranks {missing} before the timeout")
            for key, _ in ready:
                messages[key.data] = connections[key.data].receive(deadline)
                selector.unregister(key.fileobj)
    return messages


def serve_requests(rank: int, handle: Callable[..., Message]) -> None:
    """Answer each request of the benchmark with `handle(**request)`.

    Blocks in a read between requests, and so takes no processor time from the jobs of
    other contenders. Returns when the benchmark closes the connection or ends.
    """
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.environ[SOCKET_VARIABLE])
        connection = Connection(stream)
        connection.send({"job": os.environ[JOB_VARIABLE], "rank": rank})
        while True:
            try:
                request = connection.receive(None)
            except EOFError:
                return
            connection.send(handle(**request))
