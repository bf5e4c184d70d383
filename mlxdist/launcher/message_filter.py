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

    Attributes:
        dropped: the messages that were taken out.
    """

    def __init__(self) -> None:
        self.dropped = b""
        self._message: list[bytes] = []  # lines since a rule

    def feed(self, line: bytes) -> bytes:
        """Return what is to be printed after the next line."""
        if self.dropped and not self._message:
            line = line.lstrip(b"\0")  # which end a message
        if not (self._message or line == _RULE):
            return line
        self._message.append(line)
        if len(self._message) == 2 and not any(text in line for text in _CONSEQUENCES):
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
