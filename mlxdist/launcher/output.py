"""What mpirun writes, on its way to the terminal: labels, log files, the ranks' marks.

Over several hosts a rank's word that it finished comes as a line of its standard
error, and is taken out here.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import IO

from . import rank_main
from .mpirun_log import Clues

_TAG = re.compile(rb"\[\d+,(\d{1,9})\]<std(?:out|err)>: ?")
_MARK = rank_main.MARK.encode()


class Output:
    """Copies mpirun's two streams to this process's own.

    Args:
        run_dir: where marks that come as lines are left, as files.
        word: the launcher's secret word in such lines; "" where marks are files.
        label: turn mpirun's tags into `[rank 1]`.
        log_dir: a folder for `rank-1.log` and so on.
        again: whether the job was started again; its logs go on.

    Attributes:
        clues: to which rank died first.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        ranks: int,
        word: str,
        label: bool,
        log_dir: Path | None,
        again: bool = False,
    ) -> None:
        self.clues = Clues()
        self._run_dir, self._ranks, self._label = run_dir, ranks, label
        self._begin = f"{rank_main.MARK} {word} ".encode() if word else None
        self._lock = threading.Lock()
        self._logs: dict[int, IO[bytes]] = {}
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
            for rank in range(ranks):
                path = log_dir / f"rank-{rank}.log"
                self._logs[rank] = path.open("ab" if again else "wb", buffering=0)

    @property
    def tagged(self) -> bool:
        """Whether mpirun must say which rank each line is of."""
        return self._label or bool(self._logs)

    @property
    def piped(self) -> tuple[bool, bool]:
        """Whether standard output and standard error must come through here."""
        return self.tagged, self.tagged or self._begin is not None

    def copy(self, source: IO[bytes], target: int) -> threading.Thread:
        """A thread that copies one stream to its end."""
        thread = threading.Thread(target=self._copy, args=(source, target), daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        for file in self._logs.values():
            file.close()

    def _copy(self, source: IO[bytes], target: int) -> None:
        reader_left = False
        held = b""
        # To its end in any case: mpirun must never wait for us.
        while data := self._next(source):
            data, held = self._without_marks(held + data, target)
            try:
                text = self._sorted(data) if self.tagged else data
                if not reader_left:
                    _write(target, text)
            except (OSError, ValueError):  # ValueError: the log files are closed
                reader_left = True
        if held and not reader_left:
            _write(target, held)

    def _next(self, source: IO[bytes]) -> bytes:
        # Whole lines only where they are labelled: a progress bar has none.
        return source.readline() if self.tagged else os.read(source.fileno(), 2**16)

    def _without_marks(self, data: bytes, target: int) -> tuple[bytes, bytes]:
        """What is to be shown now, and what is held until its line is whole."""
        if target != 2 or self._begin is None:
            return data, b""
        shown = b""
        while (start := data.find(_MARK[:1])) >= 0:
            self.clues.read(data[:start])
            before, line = data[:start], data[start:]
            if not self._begin.startswith(line[: len(self._begin)]):
                # Somebody else's control byte.
                shown, data = shown + data[: start + 1], data[start + 1 :]
                continue
            line, end, rest = line.partition(b"\n")
            if not end:
                return shown + _untagged_end(before), line
            if not self._leave(line[len(self._begin) :]):
                shown += data[: start + 1]  # another rank's text came between
                data = data[start + 1 :]
                continue
            shown, data = shown + _untagged_end(before), rest
        self.clues.read(data)
        return shown + data, b""

    def _leave(self, line: bytes) -> bool:
        mark, _, rest = line.decode(errors="replace").partition(" ")
        rank, _, text = rest.partition(" ")
        if mark not in rank_main.MARKS or not rank.isdecimal():
            return False
        if int(rank) < self._ranks:
            self.clues.marked(mark, int(rank))
            path = rank_main.mark_file(self._run_dir, mark, int(rank))
            if not path.exists():
                path.write_text(text, errors="replace")
        return True

    def _sorted(self, line: bytes) -> bytes:
        """A line for the terminal, after its parts went to their ranks' files."""
        pieces = _TAG.split(line)  # text, rank, text, rank, text
        for rank, text in zip(pieces[1::2], pieces[2::2], strict=True):
            self._log(int(rank), text)
        return labelled(line) if self._label else b"".join(pieces[::2])

    def _log(self, rank: int, text: bytes) -> None:
        with self._lock:
            file = self._logs.get(rank)
            if file is None or file.closed:
                return
            try:
                file.write(text)
            except OSError as error:  # a full disk; the terminal goes on
                del self._logs[rank]
                told = f"mlxdist run: {file.name} ends here: {error.strerror}\n"
                with contextlib.suppress(OSError):
                    _write(2, told.encode(errors="replace"))


def labelled(line: bytes) -> bytes:
    """Open MPI's tags as `[rank 1] `, each at the beginning of a line."""
    return _TAG.sub(
        lambda tag: (b"\n" if tag.start() else b"") + b"[rank %s] " % tag[1], line
    )


def _untagged_end(text: bytes) -> bytes:
    """Without the tag of a mark that began a line."""
    tags = list(_TAG.finditer(text))
    return text[: tags[-1].start()] if tags and tags[-1].end() == len(text) else text


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
