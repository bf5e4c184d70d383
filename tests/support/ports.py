"""Ports of this machine for programs that must be told theirs."""

import contextlib
import random
import socket

# Below those that a system gives to whoever asks for any, such as a test beside this.
CANDIDATES = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return different ports on which nothing listens."""
    ports: list[int] = []
    with contextlib.ExitStack() as sockets:
        for port in random.sample(CANDIDATES, 100 * count):
            with contextlib.suppress(OSError):
                server = socket.create_server(("127.0.0.1", port))
                sockets.enter_context(server)
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"no {count} free ports among {CANDIDATES}")
