"""Postmortem: the report on what the ranks of a failed job did last."""

import os
import re
import subprocess
import sys

import pytest

from mlxdist.comm.flight_recorder import Failure, RankInfo, Recorder
from mlxdist.launcher.failure import OUTCOME_FILE
from mlxdist.world import postmortem
from mlxdist.world.record_file import write_record
from tests.support import jobs
from tests.support.failures import FailingJob, check_failure, postmortem_folder


def write_records(folder, *ranks, failures=()):
    """Write the record of each rank, given the names of its collectives.

    Args:
        failures: of the first ranks.
    """
    failures = [*failures, *[None] * len(ranks)]
    for rank, names in enumerate(ranks):
        recorder = Recorder()
        with recorder.call("update", 4):
            for name in names:
                recorder.started(name, 9, "float32", 36 + rank)
        info = RankInfo(
            rank, len(ranks), "h", 1, ["a line"], "train.py:5, in step", failures[rank]
        )
        write_record(recorder, folder, info)


def failure(time, message, traceback=("Traceback",)):
    return Failure(
        time, "in update, step 4", message, "train.py:7, in load", list(traceback)
    )


def test_report_begins_with_the_rank_that_failed_first(tmp_path):
    failures = [failure(9.5, "KeyError: 1"), failure(9.0, "ValueError: x\nand y")]
    write_records(tmp_path, ["agree"], ["agree"], ["agree", "b"], failures=failures)
    assert postmortem.report(tmp_path).startswith(
        "rank 1 on h failed first, in update, step 4:\n"
        "  ValueError: x\n"
        "  and y\n"
        "  at train.py:7, in load\n"
        "rank 0 on h failed 0.5 s later: KeyError: 1\n"
        "\n"
        "rank 0 on h: failed in update, step 4; at train.py:7, in load\n"
        "rank 1 on h: failed in update, step 4; at train.py:7, in load\n"
        "rank 2 on h: in user code, after step 4, collective 2; at train.py:5, in step"
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"message": 1'])
def test_report_ignores_an_outcome_that_can_not_be_read(text, tmp_path):
    write_records(tmp_path, ["agree"], ["agree"])
    (tmp_path / OUTCOME_FILE).write_text(text)
    assert postmortem.report(tmp_path).startswith("no rank failed: ")


def test_report_of_an_error_on_all_ranks_is_printed_once(tmp_path):
    failures = [failure(time, "ValueError: x") for time in (9.5, 9.0)]
    write_records(tmp_path, ["agree"], ["agree"], failures=failures)
    report = postmortem.report(tmp_path)
    assert report.startswith("ranks 0, 1 failed with the same error, in update")
    assert report.count("ValueError: x") == 1
    assert "traceback of ranks 0, 1:\nTraceback" in report


def test_report_of_a_stuck_rank_names_those_it_waited_for(tmp_path):
    stuck = failure(9.0, "has been in update for 3 s:\n  rank 1 on h", traceback=())
    write_records(tmp_path, ["agree"], [], failures=[stuck])
    report = postmortem.report(tmp_path)
    assert report.startswith(
        "rank 0 on h ended the job: it has been in update for 3 s:\n  rank 1 on h\n"
    )
    assert "rank 1 on h: in user code, after step 4; at train.py:5, in step" in report


def test_report_without_the_failed_ranks_record_has_its_notice(tmp_path):
    """Hosts without a shared folder have the records of their own ranks only."""
    cause = failure(9.0, "ValueError: x").describe("rank 1 on b failed first")
    recorder = Recorder()
    write_record(recorder, tmp_path, RankInfo(0, 2, "a", 1, [], notice=cause))
    assert postmortem.report(tmp_path).startswith(
        "rank 1 on b failed first, in update, step 4:\n"
        "  ValueError: x\n"
        "  at train.py:7, in load\n"
        "\n"
        "rank 0 on a: in user code, after step 0\n"
        "rank 1 left no record here"
    )


def test_report_without_a_failure_says_that_the_job_was_ended_from_outside(tmp_path):
    write_records(tmp_path, ["agree"], ["agree"])
    assert postmortem.report(tmp_path).startswith("no rank failed: the job was ended")


def test_report_of_a_parent_folder_is_of_the_newest_job_and_lists_the_others(tmp_path):
    for time, job in enumerate(["b", "a", "c"]):
        write_records(tmp_path / job, [job], [job])
        for path in (tmp_path / job).iterdir():
            os.utime(path, (time, time))
    os.utime(tmp_path / "a" / "rank-1.jsonl", (9, 9))
    report = postmortem.report(tmp_path)
    assert report.startswith(f"the newest of 3 jobs: {tmp_path}/a\n")
    assert report.endswith(f"earlier jobs:\n  {tmp_path}/c\n  {tmp_path}/b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "there is no such folder"),
        ("file", "that is a file"),
        ("empty", r"it has no rank-\*\.jsonl"),
    ],
)
def test_report_of_a_folder_without_records_raises(name, message, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        postmortem.report(tmp_path / name)


def test_load_accepts_records_of_an_older_version(tmp_path):
    write_records(tmp_path, ["agree"])
    path = tmp_path / "rank-0.jsonl"
    older = path.read_text().replace('"failure": null, ', "")
    path.write_text(older.replace('"location": "train.py:5, in step", ', ""))
    (record,) = postmortem.load(tmp_path)
    assert (record.info.location, record.info.failure) == ("", None)


def test_divergence_of_equal_ranks_is_none(tmp_path):
    write_records(tmp_path, ["agree", "all_sum"], ["agree", "all_sum"])
    text = postmortem.report(tmp_path)
    assert "all ranks started the same collectives" in text
    assert "rank 1 on h: in user code, after step 4, collective 2" in text
    assert "stack of ranks 0, 1:\na line" in text


def test_divergence_names_the_first_collective_that_differs(tmp_path):
    write_records(tmp_path, ["agree", "all_sum", "x"], ["agree", "all_gather", "x"])
    assert postmortem.divergence(postmortem.load(tmp_path)) == (
        "the ranks differ at collective 2:\n"
        "  rank 0: all_sum of 9 float32 in update, step 4\n"
        "  rank 1: all_gather of 9 float32 in update, step 4"
    )


def test_divergence_names_ranks_that_fell_behind(tmp_path):
    write_records(tmp_path, ["agree", "all_sum"], ["agree"], ["agree"])
    assert postmortem.divergence(postmortem.load(tmp_path)) == (
        "ranks 1, 2 did not reach collective 2, which the others started: "
        "all_sum of 9 float32 in update, step 4"
    )


def test_divergence_ignores_what_one_rank_no_longer_has(tmp_path):
    names = [f"collective {number}" for number in range(600)]  # 512 are kept
    write_records(tmp_path, names, names[:-1])
    assert "rank 1 did not reach collective 600" in postmortem.report(tmp_path)


@pytest.mark.parametrize("text", ["{}", "", "none", '{"rank": "x"}'])
def test_load_rejects_other_files(text, tmp_path):
    write_records(tmp_path, ["agree"])
    (tmp_path / "rank-1.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"rank-1\.jsonl is not a rank's record"):
        postmortem.load(tmp_path)


# Rank 0 writes its record slowly, rank 2 waits where no handler in Python runs.
KILL_RANK_1 = """
import os, signal, time
import mlxdist
from mpi4py import MPI
from mlxdist.comm.flight_recorder import Recorder
world = mlxdist.init()
text = Recorder.text
if world.rank == 0:
    Recorder.text = lambda *arguments: time.sleep(0.06) or text(*arguments)
world.barrier()
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if world.rank == 2:
    MPI.COMM_WORLD.recv(source=1)
world.barrier()
"""


def test_report_names_a_killed_rank_by_the_records_of_the_others(tmp_path):
    """mpirun sends SIGTERM to the others, and SIGKILL once the first has exited."""
    result = jobs.mpi_job(3, KILL_RANK_1, folder=tmp_path)
    records = postmortem_folder(tmp_path)
    names = sorted(path.name for path in records.iterdir())
    assert names == ["rank-0.jsonl", "rank-2.jsonl"], result.stderr
    report = postmortem.report(records)
    assert report.startswith("rank 1 left no record here: killed, stopped")
    assert "MPI.COMM_WORLD.recv(source=1)" in report  # rank 2's stack


def test_doctor_postmortem_shows_the_exception_and_the_users_line(tmp_path):
    check_failure(tmp_path, FailingJob("raise", "forward", 3, 1))
    report = subprocess.run(
        [sys.executable, "-m", "mlxdist.cli", "doctor", "--postmortem"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    first, error, location, *_ = report.splitlines()
    assert re.match("rank 1 on .* failed first, in user code, after step 3:", first)
    assert error == "  KeyError: 'the dog ate it'"
    assert re.match(r"  at .*failing_job\.py:\d+, in fail", location)
    assert 'raise KeyError("the dog ate it")' in report
    assert "rank 1 did not reach collective" in report
    (postmortem_folder(tmp_path) / "rank-1.jsonl").unlink()
    first_lines = postmortem.report(postmortem_folder(tmp_path)).splitlines()[:3]
    assert first_lines == [first, error, location]
