"""Filter that takes the ranks' marks out of a job's standard error."""

from __future__ import annotations

import re

from . import marks
from .mpirun_log import MpirunLog

TAG = re.compile(rb"\[\d+,(\d{1,9})\]<std(?:out|err)>: ?")  # of mpirun --tag-output
_FIRST_BYTE = marks.LINE_START[:1].encode()


class MarkFilter:
    """Filter of standard error, piece by piece: marks become files, the rest output.

    Args:
        run_dir: folder for the marks' files, see `marks.mark_file`.
        ranks: the number of ranks.
        token: the random token of this job's marks.

    Attributes:
        log: the evidence of failures in what was read so far.
    """

    def __init__(self, run_dir: str, *, ranks: int, token: str) -> None:
        self.log = MpirunLog()
        self._run_dir, self._ranks = run_dir, ranks
        self._start = f"{marks.LINE_START} {token} ".encode()
        self._pending = b""  # the beginning of a line that may become a mark

    def feed(self, data: bytes) -> bytes:
        """Return the output in the next piece, without marks and without their tags."""
        data = self._pending + data
        self._pending = output = b""
        while (start := data.find(_FIRST_BYTE)) >= 0:
            self.log.read(data[:start])
            before, line = data[:start], data[start:]
            mark_may_follow = self._start.startswith(line[: len(self._start)])
            line, end, rest = line.partition(b"\n")
            if mark_may_follow and not end:
                self._pending = line
                return output + _without_last_tag(before)
            if mark_may_follow and self._save(line[len(self._start) :]):
                output, data = output + _without_last_tag(before), rest
            else:  # a control byte of the job, or a mark with another rank's text in it
                output, data = output + data[: start + 1], data[start + 1 :]
        self.log.read(data)
        return output + data

    def close(self) -> bytes:
        """Return the output that is left at the end."""
        rest, self._pending = self._pending, b""
        return rest

    def _save(self, text: bytes) -> bool:
        """Write a mark's file, and return whether the text was a mark."""
        mark, _, rest = text.decode(errors="replace").partition(" ")
        rank, _, reason = rest.partition(" ")
        if mark not in marks.MARKS or not rank.isdecimal():
            return False
        if int(rank) < self._ranks:
            self.log.read_mark(mark, int(rank))
            path = marks.mark_file(self._run_dir, mark, int(rank))
            if not path.exists():
                path.write_text(reason, errors="replace")
        return True


def _without_last_tag(text: bytes) -> bytes:
    """Return the text before a mark, without the tag of the mark's own line."""
    tags = list(TAG.finditer(text))
    return text[: tags[-1].start()] if tags and tags[-1].end() == len(text) else text
