"""Which rank died first, by what mpirun and Open MPI say and in which order.

Over several hosts a rank that is killed can't say so, and those whose connections to
it broke are ended by Open MPI without a word of their own. Pure text; asks nothing.
"""

from __future__ import annotations

import re

_LOST = re.compile(rb"Remote daemon\s*: \[[^\]]*\] on node (\S+)")
# Of the rank that a signal ended, or that was the first to end with another code.
_KILLED = re.compile(
    rb"noticed that process rank (\d+)[^-]{0,200}? exited\s+on\s+signal|"
    rb"The first process to do so was:\s+Process name: \[[^\]]{1,80},(\d+)\]"
)
# What Open MPI says in another rank, whose connection to it broke and which ends then.
_ENDS = b"*** An error occurred"
_NOTICED = re.compile(
    rb"error occurred in Socket closed\n[^\n]{1,200}by process \[\d+,(\d+)\]"
)
_PEER = re.compile(rb"unexpectedly disconnected\.[^*]{0,900}?Peer host:\s+(\S+)\n")
_TAIL = 2000  # bytes in which such a message is whole


class Clues:
    """What is read of a job's standard error, piece by piece.

    Attributes:
        lost: hosts that mpirun says it lost.
        left: hosts to whose ranks others' connections broke, the first one first.
        noticed: ranks whose connection to another one broke, and which then ended.
    """

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.left: list[str] = []
        self.noticed: list[int] = []
        self._killed: list[int] = []  # as mpirun says
        self._asked: list[int] = []  # ranks that say so, while all is well elsewhere
        self._calm = True
        self._tail = b""

    @property
    def killed(self) -> list[int]:
        """Ranks that a signal ended, or the first one to end otherwise.

        A rank that is asked to end (SIGTERM) says so. If one does before anybody fails,
        it was not mpirun that asked, since mpirun would have asked them all.
        """
        return self._killed or (self._asked if len(self._asked) == 1 else [])

    def read(self, data: bytes) -> None:
        """The next piece of text, without the ranks' marks."""
        text = self._tail + data
        self._tail = text[-_TAIL:]
        for names, pattern in ((self.lost, _LOST), (self.left, _PEER)):
            new = (name.decode(errors="replace") for name in pattern.findall(text))
            names += [name for name in new if name not in names]
        killed = (signalled or first for signalled, first in _KILLED.findall(text))
        for ranks, said in (
            (self._killed, killed),
            (self.noticed, _NOTICED.findall(text)),
        ):
            ranks += [rank for rank in map(int, said) if rank not in ranks]
        self._calm = self._calm and _ENDS not in text

    def marked(self, mark: str, rank: int) -> None:
        """A rank's own word, one of rank_main.MARKS, at this place of the text."""
        self._calm = self._calm and mark != "failed"
        if self._calm and mark == "ended" and rank not in self._asked:
            self._asked.append(rank)
