"""Parse mpirun's standard error to find the rank that failed first.

A killed rank leaves no mark, and Open MPI ends the ranks that were connected to it
without a mark either. Which one was first shows in the messages of mpirun and Open MPI,
and in their order.
"""

from __future__ import annotations

import re

from . import metal_errors

_LOST_HOST = re.compile(rb"Remote daemon\s*: \[[^\]]*\] on node (\S+)")
# The rank that a signal ended, or the first one to exit with another code than 0.
_KILLED = re.compile(
    rb"noticed that process rank (\d+)[^-]{0,200}? exited\s+on\s+signal\s+(\d+)\D|"
    rb"The first process to do so was:\s+Process name: \[[^\]]{1,80},(\d+)\]"
)
_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+)\s")
# Open MPI prints these in a rank whose connection to another one broke. It ends then.
_MPI_ERROR = b"*** An error occurred"
_DISCONNECTED = re.compile(
    rb"error occurred in Socket closed\n[^\n]{1,200}by process \[\d+,(\d+)\]"
)
_PEER_HOST = re.compile(rb"unexpectedly disconnected\.[^*]{0,900}?Peer host:\s+(\S+)\n")
_METAL_ERROR = metal_errors.PREFIX.encode()
_LONGEST_MESSAGE = 2000  # bytes


class MpirunLog:
    """Evidence of failures, from a job's standard error.

    Attributes:
        lost_hosts: hosts to which mpirun lost its connection.
        peer_hosts: hosts to whose ranks other ranks lost their connection, in order.
        disconnected: ranks that lost a connection to another one, and then ended.
        aborted: ranks that called MPI_Abort.
        gpu_errors: errors of Metal that ranks printed before they were ended, by rank.
    """

    def __init__(self) -> None:
        self.lost_hosts: list[str] = []
        self.peer_hosts: list[str] = []
        self.disconnected: list[int] = []
        self.aborted: list[int] = []
        self.gpu_errors: dict[int, str] = {}
        self._killed: dict[int, int | None] = {}  # rank: signal, as mpirun reports
        self._ended_first: list[int] = []  # ranks that ended before any failure
        self._failure_seen = False
        self._tail = b""
        self._rank_tails: dict[int, bytes] = {}

    @property
    def killed(self) -> dict[int, int | None]:
        """Ranks that died, with the signal; None for one that exited with a code.

        A rank that gets SIGTERM leaves the mark "ended". If exactly one rank does so
        before any failure, the signal did not come from mpirun, which would have sent
        it to all.
        """
        if self._killed or len(self._ended_first) != 1:
            return self._killed
        return dict.fromkeys(self._ended_first)

    def read(self, rank: int | None, data: bytes) -> None:
        """Read the next line of a rank without its marks, or of mpirun (None)."""
        if rank is None:
            self._read_mpirun(data)
        else:
            self._read_rank(rank, data)

    def _read_mpirun(self, data: bytes) -> None:
        text = self._tail + data
        self._tail = text[-_LONGEST_MESSAGE:]
        for hosts, pattern in (
            (self.lost_hosts, _LOST_HOST),
            (self.peer_hosts, _PEER_HOST),
        ):
            names = (name.decode(errors="replace") for name in pattern.findall(text))
            hosts += [name for name in dict.fromkeys(names) if name not in hosts]
        for signalled, number, first in _KILLED.findall(text):
            signal = int(number) if number else None
            self._killed.setdefault(int(signalled or first), signal)
        _add_new(self.aborted, _ABORTED, text)

    def _read_rank(self, rank: int, data: bytes) -> None:
        """Read text that Open MPI may have written; what names another rank is no such.

        A rank may print the output of a job that it has started itself.
        """
        if rank in map(int, _ABORTED.findall(data)) and rank not in self.aborted:
            self.aborted.append(rank)
        if _METAL_ERROR in data:
            self.gpu_errors.setdefault(rank, data.decode(errors="replace"))
        if b"***" not in data:
            return
        text = self._rank_tails.get(rank, b"") + data
        self._rank_tails[rank] = text[-_LONGEST_MESSAGE:]
        ranks: list[int] = []
        _add_new(ranks, _DISCONNECTED, text)
        if rank in ranks and rank not in self.disconnected:
            self.disconnected.append(rank)
        self._failure_seen = self._failure_seen or _MPI_ERROR in text

    def read_mark(self, mark: str, rank: int) -> None:
        """Read a rank's mark, one of marks.MARKS, at its position in the text."""
        self._failure_seen = self._failure_seen or mark == "failed"
        if not self._failure_seen and mark == "ended" and rank not in self._ended_first:
            self._ended_first.append(rank)


def _add_new(ranks: list[int], pattern: re.Pattern[bytes], text: bytes) -> None:
    names = dict.fromkeys(map(int, pattern.findall(text)))
    ranks += [rank for rank in names if rank not in ranks]
