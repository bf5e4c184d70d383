"""Split a stream of mpirun by the rank that wrote each part."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

# Of mpirun: tag what it reads from a rank, pass it on before the end of the line, and
# keep standard error for its own messages, which have no tags.
OPTION = ("--output", "tag-fullname:raw,merge-stderr-to-stdout")
_TAG_START = b"[prterun-"
_LONGEST_TAG = 400  # bytes
_LINE_TIMEOUT = 0.1  # seconds for the rest of a line to come


class Piece(NamedTuple):
    """Lines of one rank, or of mpirun where it is None. The last may have no end."""

    rank: int | None
    target: int  # 1 for standard output, 2 for standard error
    text: bytes


class TaggedStream:
    """Parser of a stream in which mpirun puts tags: `[prterun-HOST-PID@1,RANK]`.

    mpirun writes a tag before each part that it reads from a rank: lines, and the
    beginning or the rest of one. The lines are put together here, so that those of two
    ranks don't mix. Text before the first tag is mpirun's own.

    Args:
        mpirun_pid: its process id, by which its tags differ from other text.
        target: the stream's number, for text before the first tag.
    """

    def __init__(self, mpirun_pid: int, target: int) -> None:
        self._tag = re.compile(
            rb"\[[^\s\[\]@]{1,300}-%d@\d{1,9},(\d{1,9})\]<std(out|err)>: " % mpirun_pid
        )
        self._source: tuple[int | None, int] = (None, target)
        self._tag_start = b""  # text that may become a tag
        self._lines: dict[tuple[int | None, int], bytearray] = {}  # without an end
        self._deadlines: dict[tuple[int | None, int], float] = {}  # of those lines

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield the lines that are complete after the next piece of the stream."""
        data = self._tag_start + data
        texts = self._tag.split(data)  # text, rank, stream, text, rank, stream, text
        rest = texts[-1]
        self._tag_start = _incomplete_tag(rest)
        texts[-1] = rest[: len(rest) - len(self._tag_start)]
        yield from self._complete(texts[0])
        for rank, name, text in zip(*(texts[i::3] for i in (1, 2, 3)), strict=True):
            self._source = int(rank), 1 if name == b"out" else 2
            yield from self._complete(text)

    def _complete(self, text: bytes) -> Iterator[Piece]:
        """Yield the lines of the source that end in its next text."""
        head, end, rest = text.rpartition(b"\n")
        if end:
            before = self._lines.pop(self._source, b"")
            yield Piece(*self._source, bytes(before) + head + end)
        if rest:
            if self._source not in self._lines:
                self._lines[self._source] = bytearray()
                self._deadlines[self._source] = time.monotonic() + _LINE_TIMEOUT
            self._lines[self._source] += rest

    def seconds_left(self) -> float | None:
        """Return how long to wait for the rest of lines; None if all have ended."""
        if not self._lines:
            return None
        deadline = min(self._deadlines[source] for source in self._lines)
        return max(0.0, deadline - time.monotonic())

    def late(self) -> Iterator[Piece]:
        """Yield the beginnings of lines whose rest is late: progress bars, prompts."""
        now = time.monotonic()
        for source in [x for x in self._lines if self._deadlines[x] <= now]:
            yield Piece(*source, bytes(self._lines.pop(source)))

    def close(self) -> Iterator[Piece]:
        """Yield what is left at the end of the stream."""
        yield from self._complete(self._tag_start)
        for source, line in self._lines.items():
            yield Piece(*source, bytes(line))


def _incomplete_tag(text: bytes) -> bytes:
    """Return the end of a text that may be the beginning of a tag."""
    start = text.rfind(_TAG_START[:1], max(0, len(text) - _LONGEST_TAG))
    end = text[start:] if start >= 0 else b""
    may_be_tag = end.startswith(_TAG_START) or _TAG_START.startswith(end)
    return end if may_be_tag and not re.search(rb"\s", end) else b""
