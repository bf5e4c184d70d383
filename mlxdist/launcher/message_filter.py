"""Filter of Open MPI's messages, which say less than the outcome of the job."""

from __future__ import annotations

_RULE = 74 * b"-" + b"\n"  # around a message
# In the first lines of messages on a rank that failed or died. `mlxdist run` names it.
_CONSEQUENCES = (
    b"MPI_ABORT was invoked on rank",
    b"has exited due to process rank",
    b"noticed that process rank",
    b"detected that one or more processes exited with non-zero status",
)


class MessageFilter:
    """Filter of a stream's lines: of mpirun's own, or of a rank's standard error.

    Args:
        rank: whose lines they are; None for mpirun. In a rank, Open MPI writes of that
            rank alone; the rest is the job's own, such as the output of another job.

    Attributes:
        dropped: the messages that were taken out.
    """

    def __init__(self, rank: int | None = None) -> None:
        self.dropped = b""
        abort = b"MPI_ABORT was invoked on rank %d in " % (rank or 0)
        self._first_lines = _CONSEQUENCES if rank is None else (abort,)
        self._message: list[bytes] = []  # lines since a rule
        self._pending = b""  # the beginning of a line that may belong to a message

    def feed(self, text: bytes) -> bytes:
        """Return what is to be printed after the next lines, or part of a line."""
        text, self._pending = self._pending + text, b""
        may_be_message = self._message or text.startswith(b"-") or b"\n-" in text
        if not (may_be_message or self.dropped):
            return text
        *lines, rest = text.split(b"\n")
        shown = b"".join(self._feed_line(line + b"\n") for line in lines)
        if self._message or _RULE.startswith(rest):
            self._pending = rest
            return shown
        return shown + self._feed_line(rest)

    def _feed_line(self, line: bytes) -> bytes:
        if self.dropped and not self._message:
            line = line.lstrip(b"\0")  # which end a message
        if not (self._message or line == _RULE):
            return line
        self._message.append(line)
        if len(self._message) == 2 and not any(x in line for x in self._first_lines):
            if line != _RULE:
                return self._release()
            self._message.pop()  # a rule may end one message, and the next begins one
            return line
        if len(self._message) > 1 and line == _RULE:
            self.dropped += self._release()
        return b""

    def close(self) -> bytes:
        """Return what was held back."""
        return self._release() + self._pending

    def _release(self) -> bytes:
        text, self._message = b"".join(self._message), []
        return text
