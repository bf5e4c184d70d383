"""Outcomes of ranks, from their marks and from mpirun's messages."""

import json

import pytest

from mlxdist.launcher import marks
from mlxdist.launcher.mark_filter import MarkFilter
from mlxdist.launcher.mpirun_log import MpirunLog
from mlxdist.launcher.outcome import Outcome, RankOutcome, describe, read_ranks

HOSTS = ["node1", "node2", "node3"]


@pytest.mark.parametrize(
    ("unfinished", "reasons", "text"),
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
def test_describe_names_ranks_by_their_marks(unfinished, reasons, text, tmp_path):
    for rank in {0, 1, 2, 3} - set(unfinished):
        marks.mark_file(tmp_path, "done", rank).touch()
    for rank, reason in reasons.items():
        marks.mark_file(tmp_path, "failed", rank).write_text(reason)
    assert describe(read_ranks(tmp_path, 4, log=MpirunLog())).startswith(text)


# What mpirun and Open MPI print
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
DISCONNECTED = b"""\
[node1:00000] *** An error occurred in Socket closed
[node1:00000] *** reported by process [1415708673,0]
"""
MARK = b"\x1emlxdist w "


@pytest.mark.parametrize(
    ("stderr", "text"),
    [
        (b"", "rank 0 on node1, rank 1 on node2, rank 2 on node3 of 3 did not"),
        (KILLED, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (FIRST, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (PEER, "rank 2 on node3 of 3 did not finish; rank 0 on node1, rank 1 on"),
        (
            DISCONNECTED,
            "rank 1 on node2, rank 2 on node3 of 3 did not finish; rank 0 on",
        ),
        (
            DISCONNECTED + KILLED,
            "rank 2 on node3 of 3 did not finish; rank 0 on node1,",
        ),
        # It ended before any failure. mpirun would have ended all.
        (
            MARK + b"ended 2 \n" + DISCONNECTED,
            "rank 2 on node3 of 3 did not finish; rank 0",
        ),
        (
            DISCONNECTED + MARK + b"ended 1 \n",
            "rank 2 on node3 of 3 did not finish; rank 0",
        ),
        (MARK + b"failed 1 why\n" + PEER + KILLED, "rank 1 on node2 failed (why); "),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("more", [b"", 9000 * b"x"])
def test_describe_names_the_rank_that_died_first(stderr, text, size, more, tmp_path):
    mark_filter = MarkFilter(str(tmp_path), ranks=3, token="w")
    stderr += more
    for start in range(0, len(stderr), size):
        mark_filter.feed(stderr[start : start + size])
    ranks = read_ranks(str(tmp_path), 3, HOSTS, log=mark_filter.log)
    assert describe(ranks).startswith(text)


def test_read_ranks_has_the_signal_of_a_killed_rank(tmp_path):
    log = MpirunLog()
    log.read(KILLED)
    ranks = read_ranks(str(tmp_path), 3, HOSTS, log=log)
    assert [rank.state for rank in ranks] == ["ended", "ended", "killed"]
    assert [rank.signal for rank in ranks] == [None, None, "SIGKILL"]


def test_read_ranks_of_a_lost_host_has_them_killed(tmp_path):
    ranks = read_ranks(str(tmp_path), 3, HOSTS, log=MpirunLog(), lost_hosts=["node2"])
    assert [rank.state for rank in ranks] == ["ended", "killed", "ended"]
    assert describe(ranks, ["node2"]).startswith("lost touch with node2; rank 1 on")


def test_read_ranks_of_a_job_that_the_user_ended_blames_none(tmp_path):
    log = MpirunLog()
    log.read(KILLED)
    ranks = read_ranks(str(tmp_path), 3, HOSTS, log=log, stopped=True)
    assert [rank.state for rank in ranks] == 3 * ["killed"]


def test_write_replaces_a_report_as_a_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("x" * 10_000)
    rank = RankOutcome(0, "failed", "node1", reason="exit 3")
    Outcome(3, (rank,), message="rank 0 failed (exit 3)").write(path)
    report = json.loads(path.read_text())
    assert report["exit_code"] == 3
    assert report["ranks"][0]["reason"] == "exit 3"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
