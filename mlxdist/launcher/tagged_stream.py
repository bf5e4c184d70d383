"""Split a stream of mpirun by the rank that wrote each part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

OPTION = ("--output", "tag-fullname")  # of mpirun, so that it tags each line


class Piece(NamedTuple):
    """A part of a stream: at most a line, of one rank; of mpirun where it is None."""

    rank: int | None
    text: bytes


class TaggedStream:
    """Parser of a stream in which mpirun tags lines as `[prterun-HOST-PID@1,RANK]`.

    mpirun writes whole lines. Text without an end of line comes when its rank ends, and
    a tag may follow it. A line without a tag is mpirun's own.

    Args:
        mpirun_pid: its process id, which tells its tags from text that looks like one.
    """

    def __init__(self, mpirun_pid: int) -> None:
        self._tag = re.compile(
            rb"\[[^\s\[\]@]{1,300}-%d@\d{1,9},(\d{1,9})\]<std(?:out|err)>: ?"
            % mpirun_pid
        )
        self._pending = bytearray()  # a line that has not ended

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield the parts that are complete after the next piece of the stream."""
        head, end, rest = data.rpartition(b"\n")
        if not end:
            self._pending += data
            return
        complete = bytes(self._pending) + head + end
        self._pending = bytearray(rest)
        for line in complete.split(b"\n")[:-1]:
            yield from self._split(line + b"\n")

    def close(self) -> Iterator[Piece]:
        """Yield what is left at the end of the stream."""
        if self._pending:
            yield from self._split(bytes(self._pending))

    def _split(self, line: bytes) -> Iterator[Piece]:
        own, *parts = self._tag.split(line)  # text, rank, text, rank, text
        if own:
            yield Piece(None, own)
        for rank, text in zip(parts[::2], parts[1::2], strict=True):
            if text:
                yield Piece(int(rank), text)
