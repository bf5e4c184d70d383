"""How a job ended, in words: by its ranks' own, and by what mpirun says of them."""

import pytest

from mlxdist.launcher import marks
from mlxdist.launcher.mark_filter import MarkFilter
from mlxdist.launcher.mpirun_log import MpirunLog
from mlxdist.launcher.outcome import describe, read_ranks


@pytest.mark.parametrize(
    ("missing", "reasons", "text"),
    [
        ([], {}, "all ranks of 4 finished"),
        ([2], {}, "rank 2 of 4 did not finish"),
        (
            [0, 1, 3],
            {1: "exit 3"},
            "rank 1 failed (exit 3); ranks 0 and 3 of 4 did not",
        ),
        ([0, 1, 3], {}, "ranks 0, 1 and 3 of 4 did not finish"),
    ],
)
def test_the_outcome_in_words(missing, reasons, text, tmp_path):
    for rank in {0, 1, 2, 3} - set(missing):
        marks.mark_file(tmp_path, "done", rank).touch()
    for rank, reason in reasons.items():
        marks.mark_file(tmp_path, "failed", rank).write_text(reason)
    assert describe(read_ranks(tmp_path, 4, log=MpirunLog())).startswith(text)


KILLED = b"""\
prterun noticed that process rank 2 with PID 66 on node node3 exited on
signal 9 (Killed).
"""
FIRST = b"""\
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-node1-10907@1,2]
   Exit code:    143
"""
PEER = b"""\
An MPI communication peer process has unexpectedly disconnected.  This
usually indicates a failure in the peer process.

  Local PID:  6931
  Peer host:  node3
"""
NOTICED = b"""\
[node1:00000] *** An error occurred in Socket closed
[node1:00000] *** reported by process [1415708673,0]
"""
WORD = b"\x1emlxdist w "


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "rank 0 on node1, rank 1 on node2, rank 2 on node3 of 3 did not"),
        (KILLED, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (FIRST, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (PEER, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (NOTICED, "rank 1 on node2, rank 2 on node3 of 3 did not finish; rank 0 on"),
        (NOTICED + KILLED, "rank 2 on node3 of 3 did not finish; rank 0 on node1,"),
        # Asked to end before anybody failed, and not by mpirun, which asks all.
        (WORD + b"ended 2 \n" + NOTICED, "rank 2 on node3 of 3 did not finish; rank 0"),
        (NOTICED + WORD + b"ended 1 \n", "rank 2 on node3 of 3 did not finish; rank 0"),
        (WORD + b"failed 1 why\n" + PEER + KILLED, "rank 1 on node2 failed (why); "),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 10**6])
@pytest.mark.parametrize("more", [b"", 9000 * b"x"])
def test_who_died_by_what_mpirun_says(said, text, cut, more, tmp_path):
    mark_filter = MarkFilter(str(tmp_path), ranks=3, token="w")
    said += more
    for start in range(0, len(said), cut):
        mark_filter.feed(said[start : start + cut])
    hosts = ["node1", "node2", "node3"]
    ranks = read_ranks(str(tmp_path), 3, hosts, log=mark_filter.log)
    assert describe(ranks).startswith(text)
