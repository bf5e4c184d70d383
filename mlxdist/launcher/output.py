"""The job's output: copied to the terminal, labelled, and logged for each rank."""

from __future__ import annotations

import errno
import itertools
import os
import re
import select
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from .mark_filter import MarkFilter
from .message_filter import MessageFilter
from .mpirun_log import MpirunLog
from .private_files import open_log
from .standard_streams import discard, print_error, write_all
from .tagged_stream import Piece, TaggedStream
from .visible_text import visible_bytes

_STDERR = 2
_PIECE = 2**16  # bytes
# A line of a rank that looks like one of this command's own.
_LOOKS_OURS = re.compile(rb"(^|[\r\n])(?=mlxdist run: )")


class Output:
    """The copy of mpirun's two streams to those of this process.

    Args:
        run_dir: folder for the ranks' marks.
        ranks: the number of ranks.
        token: of marks on standard error; "" if marks are files.
        label: begin each line with its rank: `[rank 1]`.
        logs: a file for each rank's output; see `open_logs`.

    Attributes:
        log: the evidence of failures so far.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        ranks: int,
        token: str = "",
        label: bool = False,
        logs: dict[int, IO[bytes]] | None = None,
    ) -> None:
        self.log = MpirunLog()
        self._messages = {rank: MessageFilter(rank) for rank in (None, *range(ranks))}
        self._ranks = ranks
        self._filters: dict[int | None, MarkFilter] = {
            rank: MarkFilter(run_dir, rank=rank, token=token, log=self.log)
            for rank in range(ranks if token else 0)
        }
        self._label = label
        self._logs = logs or {}
        self._lock = threading.Lock()  # of the log files
        self._write_locks = {1: threading.Lock(), _STDERR: threading.Lock()}
        self._within_line = {1: False, _STDERR: False}
        self._is_terminal = os.isatty(1)
        self._copies: list[threading.Thread] = []
        self._timeout: float | None = None  # seconds for a paused reader to go on

    def copy(self, source: IO[bytes], target: int, mpirun: int) -> None:
        """Start a thread that copies a stream to a descriptor, and closes it.

        Args:
            mpirun: its process id.
        """
        arguments = (source, target, TaggedStream(mpirun, target))
        thread = threading.Thread(target=self._copy, args=arguments, daemon=True)
        thread.start()
        self._copies.append(thread)

    def finish(self, timeout: float) -> None:
        """Wait for the rest of the job's output, which has ended.

        A stream whose reader pauses for longer ends here, and nothing waits for it.
        """
        self._timeout = timeout
        deadline = time.monotonic() + timeout
        for thread in self._copies:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        for target, lock in self._write_locks.items():
            if lock.locked():  # by a copy, which waits for the reader
                discard(target)
                self._write_locks[target] = threading.Lock()

    def add(self, rank: int, text: str, shown: str) -> None:
        """Add text to a rank's log, and what is shown of it to standard error."""
        self._write_log(rank, text.encode(errors="replace"))
        label = b"[rank %d] " % rank if self._label else b""
        lines = shown.encode(errors="replace").splitlines(keepends=True)
        if lines:
            self.end_line()
        shown_text = b"".join(label + line for line in lines)
        self._write(_STDERR, shown_text if label else _mark_as_ranks(rank, shown_text))

    @property
    def messages(self) -> bytes:
        """The messages of Open MPI that were taken out."""
        return b"".join(each.dropped for each in self._messages.values())

    def print_messages(self) -> None:
        """Print the messages of Open MPI that were taken out."""
        self.end_line()
        self._write(_STDERR, visible_bytes(self.messages))

    def end_line(self) -> None:
        """Begin a new line on standard error, unless one begins there."""
        if self._within_line[_STDERR]:
            self._write(_STDERR, b"\n")
            self._within_line[_STDERR] = False

    def _copy(self, source: IO[bytes], target: int, stream: TaggedStream) -> None:
        # Read to the end even if nobody reads our output: mpirun must never block.
        is_live = not self._label and not _is_regular_file(target)
        with source:
            while True:
                seconds = stream.seconds_left() if is_live else None
                if (
                    seconds is not None
                    and not select.select([source], [], [], seconds)[0]
                ):
                    self._print(stream.late())
                elif data := os.read(source.fileno(), _PIECE):
                    self._print(stream.feed(data))
                else:
                    break
        self._print(stream.close())
        for rank in (None,) if target == _STDERR else range(self._ranks):
            rest = self._filters[rank].close() if rank in self._filters else b""
            rest = self._messages[rank].close() + rest
            self._write(_STDERR, self._log_and_label(Piece(rank, _STDERR, rest)))

    def _print(self, pieces: Iterable[Piece]) -> None:
        for target, texts in itertools.groupby(self.render(pieces), lambda x: x[0]):
            self._write(target, b"".join(text for _, text in texts))

    def render(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, bytes]]:
        """Log the pieces of a stream, and yield what is to be printed, and where."""
        for rank, target, text in pieces:
            if target == _STDERR:
                text = self._without_reports(rank, text)
            yield target, self._log_and_label(Piece(rank, target, text))

    def _without_reports(self, rank: int | None, text: bytes) -> bytes:
        """Return text of standard error without marks and messages of mpirun."""
        if rank in self._filters:
            text = self._filters[rank].feed(text)
        self.log.read(rank, text)
        messages = self._messages.get(rank)
        return messages.feed(text) if text and messages else text

    def _log_and_label(self, piece: Piece) -> bytes:
        """Write a piece to its rank's log, and return it with its labels."""
        rank, target, text = piece
        if not text:
            return text
        start = b""
        if rank is not None:
            self._write_log(rank, text)
        if rank is None:
            text = _mark_as_ranks(rank, visible_bytes(text))  # it may quote other hosts
        elif self._label:
            label = b"[rank %d] " % rank
            start = b"\n" * self._within_line[target] + label
            text = text[:-1].replace(b"\n", b"\n" + label) + text[-1:]
        elif target == _STDERR or self._is_terminal:  # and data in a file stays whole
            text = _mark_as_ranks(rank, text)
        self._within_line[target] = not text.endswith(b"\n")
        return start + text

    def _write(self, target: int, data: bytes) -> None:
        try:
            with self._write_locks[target]:
                write_all(target, data, self._timeout)
        except OSError as error:  # its reader is gone, or the disk is full
            discard(target)  # and the job goes on, as with mpirun
            if error.errno != errno.EPIPE:
                name = "standard error" if target == _STDERR else "standard output"
                print_error(f"mlxdist run: {name} ends here: {error.strerror}")

    def _write_log(self, rank: int, text: bytes) -> None:
        with self._lock:
            file = self._logs.get(rank)
            if file is None or file.closed:
                return
            try:
                file.write(text)
            except OSError as error:  # a full disk; the terminal's output goes on
                del self._logs[rank]
                print_error(f"mlxdist run: {file.name} ends here: {error.strerror}")


def _mark_as_ranks(rank: int | None, text: bytes) -> bytes:
    """Return text in which lines that look like this command's own have a label."""
    if b"mlxdist run: " not in text:
        return text
    label = b"[mpirun] " if rank is None else b"[rank %d] " % rank
    return _LOOKS_OURS.sub(lambda match: match[1] + label, text)


def _is_regular_file(descriptor: int) -> bool:
    """Return whether a descriptor is a file, which nobody watches as it grows."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def open_logs(folder: Path | None, ranks: int, *, append: bool) -> dict[int, IO[bytes]]:
    """Open `rank-R.log` of each rank in a folder; none without a folder.

    A link of that name, or a file of another user, is replaced.
    """
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    logs: dict[int, IO[bytes]] = {}
    for rank in range(ranks):
        descriptor = open_log(folder / f"rank-{rank}.log", append=append, mode=0o666)
        logs[rank] = os.fdopen(descriptor, "ab+" if append else "wb", buffering=0)
    for file in logs.values():
        if append and file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a rank was killed in the middle of a line
                file.write(b"\n")
    return logs
