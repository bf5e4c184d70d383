"""mpirun as a child process: what ends it."""

import os
import subprocess

import pytest

from mlxdist.launcher import marks, mpirun
from mlxdist.launcher.output import Output
from mlxdist.launcher.signals import Signals


@pytest.fixture
def wait_for(tmp_path):
    """Runs a program as mpirun; returns it and its exit code, 1 if it was killed."""

    def wait(*command):
        output = Output(run_dir=str(tmp_path), ranks=2)
        with Signals() as signals:
            process = mpirun.Mpirun(
                command,
                dict(os.environ),
                run_dir=str(tmp_path),
                ranks=2,
                output=output,
                signals=signals,
            )
            code = process.wait()
        return process, code

    return wait


@pytest.fixture
def ended():
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.fixture
def mark(tmp_path):
    """Leaves marks of ranks, as `mark(rank, "joining")`."""

    def leave(rank, *names):
        for name in names:
            marks.mark_file(str(tmp_path), name, rank).write_text(name)

    return leave


@pytest.fixture
def start_ranks(tmp_path):
    """Records the process ids of the ranks."""

    def start(*pids):
        for rank, pid in enumerate(pids):
            marks.pid_file(str(tmp_path), rank).write_text(str(pid))

    return start


@pytest.mark.parametrize(("dead", "seconds", "expected"), [(1, 0.6, 0), (2, 30, 1)])
def test_mpirun_that_outlives_its_ranks_is_killed(
    dead, seconds, expected, wait_for, mark, start_ranks, ended, monkeypatch
):
    """Open MPI 5's may hang where a rank fails while another one starts MPI."""
    monkeypatch.setattr(mpirun, "GONE_TIMEOUT", 0.2)
    start_ranks(*[ended] * dead + [os.getpid()] * (2 - dead))
    mark(0, "failed")
    _, code = wait_for("sleep", str(seconds))
    assert code == expected


@pytest.mark.parametrize("sign", ["failed", "ended"])
def test_mpirun_that_goes_on_after_a_failure_is_ended(
    sign, wait_for, mark, monkeypatch
):
    """As where a host is out of reach, whose ranks can't be seen from here."""
    monkeypatch.setattr(mpirun, "FAILED_TIMEOUT", 0.2)
    mark(1, sign)
    _, code = wait_for("sleep", "30")
    assert code == 1


@pytest.mark.parametrize(
    ("limit", "signs", "seconds", "expected"),
    [
        ("0.1", ["done"], 30, 1),
        ("60.0", ["done"], 0.6, 0),
        ("0.1", [], 0.6, 0),  # its exit handlers run
    ],
)
def test_mpirun_that_outlasts_the_limit_of_mpi_finalize_is_ended(
    limit, signs, seconds, expected, wait_for, mark, tmp_path, monkeypatch
):
    """As where a daemon on another host is stopped while the job finishes."""
    monkeypatch.setattr(mpirun, "LEAVING_TIMEOUT", 0.1)
    marks.mark_file(str(tmp_path), "leaving", 1).write_text(limit)
    mark(1, *signs)
    _, code = wait_for("sleep", str(seconds))
    assert code == expected


@pytest.mark.parametrize("sign", ["done", "failed", "gone"])
def test_mpirun_with_a_rank_that_can_never_join_is_ended(
    sign, wait_for, mark, start_ranks, ended, monkeypatch, tmp_path
):
    monkeypatch.setattr(mpirun, "JOIN_TIMEOUT", 0.2)
    start_ranks(os.getpid(), ended if sign == "gone" else os.getpid())
    mark(0, "joining")
    mark(1, *([] if sign == "gone" else [sign]))
    _, code = wait_for("sleep", "30")
    assert code == 1
    assert marks.read(str(tmp_path), "failed", 0) == (
        "it waits in mlxdist.init() for rank 1, which ended without a call of it"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["joining", "joined"], ["done"]),  # it joined by itself, through MLX
        (["joining"], ["joining"]),
        (["joining", "failed"], ["done"]),  # mpirun ends the job
        ([], ["done"]),
    ],
)
def test_mpirun_whose_ranks_can_still_join_goes_on(
    first, second, wait_for, mark, start_ranks, monkeypatch
):
    monkeypatch.setattr(mpirun, "JOIN_TIMEOUT", 0.1)
    start_ranks(os.getpid(), os.getpid())
    mark(0, *first)
    mark(1, *second)
    _, code = wait_for("sleep", "0.6")
    assert code == 0


@pytest.mark.timeout(60)
def test_mpirun_that_stays_stopped_is_killed(wait_for, monkeypatch):
    monkeypatch.setattr(mpirun, "STOPPED_TIMEOUT", 0.2)
    process, code = wait_for("sh", "-c", "kill -STOP $$")
    assert (code, process.was_stopped) == (1, True)


@pytest.mark.parametrize(("signal", "limit"), [("STOP", 60.0), ("TTIN", 0.1)])
def test_mpirun_that_is_stopped_for_a_while_goes_on(
    signal, limit, wait_for, monkeypatch
):
    """A terminal stops what reads from it in the background, until `fg`."""
    monkeypatch.setattr(mpirun, "STOPPED_TIMEOUT", limit)
    stop = f"(sleep 0.5; kill -CONT $$) & kill -{signal} $$; wait"
    process, code = wait_for("sh", "-c", stop)
    assert (code, process.was_stopped) == (0, False)
