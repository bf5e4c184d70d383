"""The job's output: copied to the terminal, labelled, and logged for each rank."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import IO

from .mark_filter import TAG, MarkFilter
from .mpirun_log import MpirunLog

_STDERR = 2
_PIECE = 2**16  # bytes


class Output:
    """The copy of mpirun's two streams to those of this process.

    Args:
        label: turn mpirun's tags into `[rank 1]`.
        logs: a file for each rank's output; see `open_logs`.
        mark_filter: takes marks out of standard error; None if marks are files.
    """

    def __init__(
        self,
        *,
        label: bool,
        logs: dict[int, IO[bytes]],
        mark_filter: MarkFilter | None,
    ) -> None:
        self._label, self._logs, self._filter = label, logs, mark_filter
        self._lock = threading.Lock()

    @property
    def log(self) -> MpirunLog:
        """The evidence of failures so far; empty if standard error is not read."""
        return self._filter.log if self._filter else MpirunLog()

    @property
    def tagged(self) -> bool:
        """True if mpirun must tag each line with its rank."""
        return self._label or bool(self._logs)

    @property
    def piped(self) -> tuple[bool, bool]:
        """For standard output and standard error: True if it must be copied here."""
        return self.tagged, self.tagged or self._filter is not None

    def copy(self, source: IO[bytes], target: int) -> threading.Thread:
        """Start a thread that copies a stream to a file descriptor, to its end."""
        thread = threading.Thread(target=self._copy, args=(source, target), daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        for file in self._logs.values():
            file.close()

    def _copy(self, source: IO[bytes], target: int) -> None:
        mark_filter = self._filter if target == _STDERR else None
        reader_left = False
        # Read to the end even if nobody reads our output: mpirun must never block.
        while data := self._read(source):
            data = mark_filter.feed(data) if mark_filter else data
            try:
                text = self._log_and_label(data) if self.tagged else data
                if not reader_left:
                    _write(target, text)
            except (OSError, ValueError):  # ValueError: the log files are closed
                reader_left = True
        if mark_filter and not reader_left:
            _write(target, mark_filter.close())

    def _read(self, source: IO[bytes]) -> bytes:
        # Whole lines only if they are labelled: a progress bar never ends its line.
        return source.readline() if self.tagged else os.read(source.fileno(), _PIECE)

    def _log_and_label(self, line: bytes) -> bytes:
        """Write the parts of a tagged line to the ranks' logs; return the output."""
        parts = TAG.split(line)  # text, rank, text, rank, text
        for rank, text in zip(parts[1::2], parts[2::2], strict=True):
            self._write_log(int(rank), text)
        return labelled(line) if self._label else b"".join(parts[::2])

    def _write_log(self, rank: int, text: bytes) -> None:
        with self._lock:
            file = self._logs.get(rank)
            if file is None or file.closed:
                return
            try:
                file.write(text)
            except OSError as error:  # a full disk; the terminal's output goes on
                del self._logs[rank]
                message = f"mlxdist run: {file.name} ends here: {error.strerror}\n"
                with contextlib.suppress(OSError):
                    _write(_STDERR, message.encode(errors="replace"))


def open_logs(folder: Path | None, ranks: int, *, append: bool) -> dict[int, IO[bytes]]:
    """Open `rank-R.log` of each rank in a folder; none without a folder."""
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    mode = "ab" if append else "wb"
    return {
        rank: (folder / f"rank-{rank}.log").open(mode, buffering=0)
        for rank in range(ranks)
    }


def labelled(line: bytes) -> bytes:
    """Return a line with mpirun's tags as `[rank 1] `, each on a line of its own."""
    return TAG.sub(
        lambda tag: (b"\n" if tag.start() else b"") + b"[rank %s] " % tag[1], line
    )


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
