"""Deadline of `init()`: a rank does not wait for ever for ranks that never come."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from ..launcher import join_deadline, launches, marks
from ..launcher.join_deadline import JoinDeadline
from ..launcher.launches import Launch


@contextlib.contextmanager
def join_in_time(launch: Launch | None, timeout: float) -> Iterator[None]:
    """End this process unless all ranks join while this is entered, in time.

    Args:
        launch: the rank that this process joins as; None for a world of one.
        timeout: seconds; at least 60 are given.

    Raises:
        OSError: no helper process can be started.
    """
    if launch is None or launch.size == 1:
        yield
        return
    rank = launch.rank
    text = f"it {join_deadline.reason(max(timeout, join_deadline.LEAST_TIMEOUT), ())}"
    file, lines, stream = marks.prepare("failed", rank, text)
    deadline = JoinDeadline(
        timeout,
        title=f"mlxdist: rank {rank} on {socket.gethostname()}",
        mark_file=file,
        mark_lines=lines,
        stream=stream,
        claims=launches.claim_files(launch),
    )
    try:
        with contextlib.suppress(OSError):  # the disk of the marks is full
            marks.leave_mark("joining", rank)
        yield
        with contextlib.suppress(OSError):
            marks.leave_mark("joined", rank)
    finally:
        deadline.stop()
