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

    def feed(self, line: bytes) -> bytes:
        """Return what is to be printed after the next line."""
        if self.dropped and not self._message:
            line = line.lstrip(b"\0")  # which end a message
        if not (self._message or line == _RULE):
            return line
        self._message.append(line)
        if len(self._message) == 2 and not any(x in line for x in self._first_lines):
            if line != _RULE:
                return self.close()
            self._message.pop()  # a rule may end one message, and the next begins one
            return line
        if len(self._message) > 1 and line == _RULE:
            self.dropped += self.close()
        return b""

    def close(self) -> bytes:
        """Return the lines that were held back."""
        text, self._message = b"".join(self._message), []
        return text
