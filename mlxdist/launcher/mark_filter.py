"""Filter that takes a rank's marks out of its standard error."""

from __future__ import annotations

from . import marks
from .mpirun_log import MpirunLog

_FIRST_BYTE = marks.LINE_START[:1].encode()


class MarkFilter:
    """Filter of standard error, piece by piece: marks become files, the rest output.

    Args:
        run_dir: folder for the marks' files, see `marks.mark_file`.
        rank: the rank that writes to it.
        token: the random token of this job's marks.
        log: records each mark.
    """

    def __init__(self, run_dir: str, *, rank: int, token: str, log: MpirunLog) -> None:
        self._run_dir, self._rank, self._log = run_dir, rank, log
        self._start = f"{marks.LINE_START} {token} ".encode()
        self._pending = b""  # the beginning of a line that may become a mark
        self._chunks: dict[str, dict[int, str]] = {}  # of marks that are incomplete

    def feed(self, data: bytes) -> bytes:
        """Return the output in the next piece, without marks."""
        data = self._pending + data
        self._pending = output = b""
        while (start := data.find(_FIRST_BYTE)) >= 0:
            before, line = data[:start], data[start:]
            mark_may_follow = self._start.startswith(line[: len(self._start)])
            line, end, rest = line.partition(b"\n")
            if mark_may_follow and not end:
                self._pending = line
                return output + before
            if mark_may_follow and self._read(line[len(self._start) :]):
                output, data = output + before, rest
            else:  # a control byte of the job, or a mark with other text in it
                output, data = output + data[: start + 1], data[start + 1 :]
        return output + data

    def close(self) -> bytes:
        """Return the output that is left at the end."""
        rest, self._pending = self._pending, b""
        return rest

    def _read(self, line: bytes) -> bool:
        """Read a line of a mark, and return whether it is one."""
        chunk = marks.parse_line(line.decode(errors="replace"))
        if chunk is None:
            return False
        if chunk.rank == self._rank:
            chunks = self._chunks.setdefault(chunk.mark, {})
            chunks.setdefault(chunk.part, chunk.text)
            if len(chunks) == chunk.parts:
                self._save(chunk.mark, marks.join_chunks(chunks))
        return True

    def _save(self, mark: str, text: str) -> None:
        self._log.read_mark(mark, self._rank)
        path = marks.mark_file(self._run_dir, mark, self._rank)
        if not path.exists():
            path.write_text(text, errors="replace")
