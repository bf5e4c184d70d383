"""`metrics.jsonl`: a line of JSON for each report."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import cast

from ..checkpoint.durable import make_folders, write_atomically
from ..optim.user_warning import warn_user

Entry = dict[str, object]


class JsonLines:
    """A file of JSON lines, which a resumed run continues.

    Each line is written by one call, and a reader never sees half of one: where the
    disk is full, what was written of a line is taken back. The line is kept, a warning
    is given once, and each later report tries again. Training goes on.

    Args:
        path: of the file. Its folder is made.
        done: steps that the run has taken. Lines of later steps are dropped, and so is
            half a line that a killed job has left. 0 begins a new file, and moves what
            an earlier run has left to `PATH.old`, or PATH.old2 and so on.

    Attributes:
        earlier: the lines that were kept.

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, done: int = 0):
        self.path = path
        make_folders(path.parent)
        self.earlier = _lines_up_to(path, done)
        if done:
            write_atomically(path, _text(self.earlier))
        elif path.exists() and path.stat().st_size:
            path.replace(_free_name(path))
        # Not through a link, which another user may have put there.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o666)
        self._unwritten = b""
        self._has_warned = False

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Append a line, with what could not be written before."""
        self._unwritten += _text([{"step": step, **values}])
        try:
            self._write()
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warn_user(
                    f"{self.path} can't be written: {error.strerror}. Training goes "
                    "on, and the lines are kept in memory until they can be written"
                )

    def finish(self) -> None:
        """Close the file. Does nothing the second time."""
        if self._file < 0:
            return
        lines = self._unwritten.count(b"\n")
        if lines:
            warn_user(f"{self.path} lacks its last {lines} lines")
        os.close(self._file)
        self._file = -1

    def _write(self) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, self._unwritten)
            if written < len(self._unwritten):  # the rest says why it can't be written
                os.write(self._file, self._unwritten[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        self._unwritten = b""


def _free_name(path: Path) -> Path:
    """Return a path for an earlier file that no other one has."""
    names = (f"{path.name}.old{number if number > 1 else ''}" for number in count(1))
    return next(x for x in map(path.with_name, names) if not os.path.lexists(x))


def _lines_up_to(path: Path, done: int) -> list[Entry]:
    """Return the entries of steps up to `done`; what is no entry is left out."""
    if not done or not path.exists():
        return []
    entries = map(_entry, path.read_text(errors="replace").splitlines())
    return [e for e in entries if e is not None and cast("int", e["step"]) <= done]


def _entry(line: str) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_entry = isinstance(entry, dict) and isinstance(entry.get("step"), int)
    return cast("Entry", entry) if is_entry else None


def _text(entries: Iterable[Mapping[str, object]]) -> bytes:
    lines = (json.dumps({k: _json(v) for k, v in e.items()}) for e in entries)
    return "".join(f"{line}\n" for line in lines).encode()


def _json(value: object) -> object:
    """JSON has no nan and no infinity: null stands for them."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite else None
