"""Outcomes of ranks, from their marks and from mpirun's messages."""

import json

import pytest

from mlxdist.launcher.mpirun_log import MpirunLog
from mlxdist.launcher.outcome import Outcome, RankOutcome, read_ranks
from mlxdist.launcher.output import Output
from mlxdist.launcher.summary import describe
from mlxdist.launcher.tagged_stream import TaggedStream

HOSTS = ["node1", "node2", "node3"]


def named(ranks, lost_hosts=()):
    return describe(ranks, lost_hosts, name_hosts=True)


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
PEER_2 = PEER.replace(b"node3", b"node2")  # ended with it
TAG = b"[prterun-node1-77@1,%d]<stderr>: "
DISCONNECTED = TAG % 0 + b"[node1:00000] *** An error occurred in Socket closed\n"
DISCONNECTED += TAG % 0 + b"[node1:00000] *** reported by process [1415708673,0]\n"
ABORTED = 74 * b"-" + b"\nMPI_ABORT was invoked on rank 2 in communicator WORLD\n"
OTHER = "rank 0 on node1, rank 1 on node2 were ended with it"


def mark(rank, kind, text=""):
    return TAG % rank + b'\x1emlxdist w %s %d 0 1 "%s"\n' % (kind, rank, text.encode())


@pytest.mark.parametrize(
    ("stderr", "text"),
    [
        (b"", "rank 0 of 3 on node1, rank 1 on node2, rank 2 on node3 did not finish"),
        (KILLED, f"rank 2 of 3 on node3 was killed by SIGKILL; {OTHER}"),
        (FIRST, f"rank 2 of 3 on node3 did not finish; {OTHER}"),
        (PEER, f"rank 2 of 3 on node3 did not finish; {OTHER}"),
        (PEER + PEER_2, f"rank 2 of 3 on node3 did not finish; {OTHER}"),
        (DISCONNECTED, "rank 1 of 3 on node2, rank 2 on node3 did not finish; rank 0"),
        (DISCONNECTED + KILLED, "rank 2 of 3 on node3 was killed by SIGKILL; rank 0 "),
        # It ended before any failure. mpirun would have ended all.
        (
            mark(2, b"ended") + DISCONNECTED,
            "rank 2 of 3 on node3 did not finish; rank 0",
        ),
        # mpirun has ended both.
        (
            mark(1, b"ended") + mark(2, b"ended"),
            "rank 0 of 3 on node1 did not finish; rank 1 on node2, rank 2 on",
        ),
        (
            DISCONNECTED + mark(1, b"ended"),
            "rank 2 of 3 on node3 did not finish; rank 0",
        ),
        (
            mark(1, b"failed", "why") + PEER + KILLED,
            "rank 1 of 3 on node2 failed (why)",
        ),
        (
            ABORTED.replace(b"MPI_ABORT", TAG % 2 + b"MPI_ABORT"),
            f"rank 2 of 3 on node3 failed (it called MPI_Abort); {OTHER}",
        ),
        # Of a job that rank 0 has started itself.
        (
            b"".join(TAG % 0 + line for line in KILLED.splitlines(keepends=True))
            + TAG % 0
            + b"MPI_ABORT was invoked on rank 2 in communicator WORLD\n",
            "rank 0 of 3 on node1, rank 1 on node2, rank 2 on node3 did not finish",
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("more", [b"", 9000 * b"x"])
def test_describe_names_the_rank_that_died_first(stderr, text, size, more, tmp_path):
    output = Output(run_dir=str(tmp_path), ranks=3, token="w")
    of_ranks, of_mpirun = TaggedStream(77, 1), TaggedStream(77, 2)
    for line in (stderr + more).splitlines(keepends=True):
        stream = of_ranks if line.startswith(b"[prterun") else of_mpirun
        for start in range(0, len(line), size):
            list(output.render(stream.feed(line[start : start + size])))
    ranks = read_ranks(str(tmp_path), HOSTS, log=output.log)
    assert named(ranks).startswith(text)


def test_read_ranks_has_the_signal_of_a_killed_rank(tmp_path):
    log = MpirunLog()
    log.read(None, KILLED)
    ranks = read_ranks(str(tmp_path), HOSTS, log=log)
    assert [rank.state for rank in ranks] == ["ended", "ended", "killed"]
    assert [rank.signal for rank in ranks] == [None, None, "SIGKILL"]


def test_read_ranks_of_a_lost_host_has_them_killed(tmp_path):
    ranks = read_ranks(str(tmp_path), HOSTS, log=MpirunLog(), lost_hosts=["node2"])
    assert [rank.state for rank in ranks] == ["ended", "killed", "ended"]
    assert named(ranks, ["node2"]).startswith("lost touch with node2; rank 1 of 3 on")


def test_read_ranks_of_a_job_that_the_user_ended_blames_none(tmp_path):
    log = MpirunLog()
    log.read(None, KILLED)
    ranks = read_ranks(str(tmp_path), HOSTS, log=log, stopped=True)
    assert [(rank.state, rank.signal) for rank in ranks] == 3 * [("killed", None)]


def test_write_replaces_a_report_as_a_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("x" * 10_000)
    rank = RankOutcome(0, "failed", "node1", reason="exit 3")
    Outcome(3, (rank,), message="rank 0 failed (exit 3)").write(path)
    report = json.loads(path.read_text())
    assert report["exit_code"] == 3
    assert report["ranks"][0]["reason"] == "exit 3"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_write_makes_the_folder(tmp_path):
    Outcome(0, ()).write(tmp_path / "runs" / "a" / "failure.json")
    assert json.loads((tmp_path / "runs/a/failure.json").read_text())["ranks"] == []
