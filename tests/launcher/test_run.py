"""Jobs on this machine, and every way in which they end."""

import json
import os
import signal
import socket
import sys

import pytest

from mlxdist.launcher.cores import usable_cores
from tests.support import jobs


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_run_of_a_job_that_averages_exits_with_0(run, ranks):
    source = "import mlxdist; w = mlxdist.init(); print(w.mean(w.rank), w.size)"
    done = run(source, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{(ranks - 1) / 2} {ranks}"] * ranks


def test_run_with_more_ranks_than_cores_warns(run):
    ranks = usable_cores() + 1
    done = run("print('here')", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["here"] * ranks
    assert f"{ranks} ranks share {ranks - 1} core" in done.stderr


FAIL = """
import atexit, os, sys, time
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
def inner():
    if rank == 1:
        {act}
inner()
{after}
"""
WAIT = "time.sleep(999)"  # longer than the timeout of `run`
FAILED = "rank 1 of 2 failed at script.py:6, in inner"
ENDED = "rank 0 was ended with it; exit code"


@pytest.mark.parametrize(
    ("act", "after", "code", "message"),
    [
        ("sys.exit(3)", WAIT, 3, f"{FAILED} (exit 3); {ENDED} 3."),
        ("sys.exit('why')", WAIT, 1, f"{FAILED} (exit why); {ENDED} 1."),
        (
            "raise ValueError('x')",
            WAIT,
            1,
            f"{FAILED} (ValueError: x); {ENDED} 1.",
        ),
        (
            "e = ValueError('x\\ny'); e.add_note('note'); raise e",
            WAIT,
            1,
            "rank 1 of 2 failed at script.py:6, in inner (ValueError: x); rank 0 was",
        ),
        (
            "import json; json.loads('{{')",
            WAIT,
            1,
            "rank 1 of 2 failed at script.py:6, in inner (json.decoder.JSONDecodeError",
        ),
        (
            "os.kill(os.getpid(), 9)",
            WAIT,
            137,
            f"rank 1 of 2 was killed by SIGKILL; {ENDED} 137.",
        ),
        pytest.param(
            "os.abort()",
            WAIT,
            134,
            f"rank 1 of 2 was killed by SIGABRT; {ENDED} 134.",
            marks=pytest.mark.long,
        ),
        ("os._exit(5)", WAIT, 5, f"rank 1 of 2 did not finish; {ENDED} 5."),
        ("os._exit(0)", "", 1, "rank 1 of 2 did not finish; mpirun exited with code 0"),
        (
            f"atexit.register(lambda: {WAIT}); sys.exit(3)",
            WAIT,
            3,
            "rank 1 of 2 failed",
        ),
        (
            "sys.excepthook = lambda *_: sys.exit(0); raise ValueError('x')",
            "",
            1,
            "rank 1 of 2 failed at script.py:6, in inner (ValueError: x); mpirun",
        ),
        (
            "os.fork() or sys.exit(0); os.wait(); os._exit(0)",
            "",
            1,
            "rank 1 of 2 did not finish; mpirun exited with code 0",
        ),
    ],
)
def test_run_with_a_rank_that_fails_names_it(run, act, after, code, message):
    done = run(FAIL.format(act=act, after=after), ranks=2)
    assert done.returncode == code, done.stderr
    assert last_line(done).startswith(f"mlxdist run: {message}")
    assert "prterun" not in done.stderr


def test_run_with_a_rank_that_dies_in_an_exit_handler_names_it(run):
    """Even where a child that it forked there ends as a rank would."""
    act = "atexit.register(lambda: os.fork() and (os.wait(), os._exit(0)))"
    done = run(FAIL.format(act=act, after=""), ranks=2)
    assert done.returncode == 1
    message = "mlxdist run: rank 1 of 2 did not finish; mpirun exited with code 0"
    assert last_line(done).startswith(message)


def test_run_with_ranks_that_exit_with_0_exits_with_0(run):
    source = "import os, sys\nrank = int(os.environ['OMPI_COMM_WORLD_RANK'])\n"
    source += "sys.exit(0) if rank else sys.exit()"
    done = run(source, ranks=2)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("act", "code"), [("sys.exit(3)", 3), ("os._exit(0)", 1)])
def test_run_with_a_rank_that_leaves_its_world_ends_the_others(run, act, code):
    source = "import mlxdist; world = mlxdist.init()" + FAIL
    done = run(source.format(act=act, after="world.barrier()"), ranks=2)
    assert done.returncode == code
    assert "rank 0 was ended with it" in last_line(done)


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        ("raise KeyError('x')", 1, "(KeyError: 'x'); rank 0 was ended with it"),
        (
            "os.kill(os.getpid(), 9)",
            137,
            "rank 1 of 2 was killed by SIGKILL; rank 0 was ended with it",
        ),
        pytest.param(
            "time.sleep(99)",
            1,
            "longer than timeout=2, and no rank makes progress: rank 1",
            marks=pytest.mark.long,
        ),
    ],
)
def test_run_tells_the_rank_that_failed_from_those_ended_with_it(
    act, code, message, run
):
    script = (
        "import os, time, mlxdist\n"
        "world = mlxdist.init(timeout=2)\n"
        f"if world.rank == 1:\n    time.sleep(0.5)\n    {act}\n"
        "world.barrier()\n"
    )
    done = run(script, ranks=2)
    assert done.returncode == code
    assert message in last_line(done)


@pytest.mark.parametrize("options", [(), ("--label",)])
def test_run_whose_output_nobody_reads_ends(run_command, tmp_path, options):
    (tmp_path / "script.py").write_text("for i in range(50_000): print(i)")
    process = jobs.start([*run_command, "-n", "2", *options, "script.py"], cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    try:
        assert process.wait(timeout=100) == 0
    finally:
        jobs.end_session(process.pid)
        process.stderr.close()
        process.wait()


LEAVES_A_CHILD = """
import os, subprocess
child = subprocess.Popen(["sleep", "600"])
print(os.environ["OMPI_COMM_WORLD_RANK"], child.pid)
"""
RUN_WITH_SHORT_TIMEOUT = """
import sys
from mlxdist import cli
from mlxdist.launcher import mpirun
mpirun.FINISH_TIMEOUT = 0.5
sys.exit(cli.main(sys.argv[1:]))
"""


def test_run_with_a_child_that_outlives_its_rank_exits_with_0(tmp_path):
    (tmp_path / "script.py").write_text(LEAVES_A_CHILD)
    command = [sys.executable, "-c", RUN_WITH_SHORT_TIMEOUT]
    command += ["run", "-n", "2", "--label", "script.py"]
    done = jobs.run(command, cwd=tmp_path)
    for line in done.stdout.splitlines():
        os.kill(int(line.split()[-1]), signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert "all ranks finished; a process that one of them" in done.stderr


# --report


@pytest.fixture
def report(run, tmp_path):
    """Runs a script's source on 2 ranks, and returns the report."""

    def start(source, *options):
        (tmp_path / "report.json").write_text("of an earlier job")
        done = run(source, ranks=2, options=["--report", "report.json", *options])
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "report.json",
            "script.py",
        ]
        result = json.loads((tmp_path / "report.json").read_text())
        assert result["exit_code"] == done.returncode
        if result["message"]:
            assert last_line(done) == f"mlxdist run: {result['message']}"
        return result

    return start


def states(report):
    return [rank["state"] for rank in report["ranks"]]


def test_report_of_a_job_that_finishes_has_exit_code_0(report):
    result = report("pass")
    assert result.pop("seconds") > 0
    finished = {"state": "finished", "host": socket.gethostname(), "reason": None}
    finished |= {"step": None, "location": None, "signal": None}
    assert result == {
        "exit_code": 0,
        "ranks": [{"rank": 0, **finished}, {"rank": 1, **finished}],
        "message": "",
        "timed_out": False,
        "stopped_by": None,
        "lost_hosts": [],
        "record": None,
        "restarts": 0,
    }


def test_report_of_a_job_with_a_killed_rank_names_it(report):
    result = report(FAIL.format(act="os.kill(os.getpid(), 9)", after=""))
    assert states(result) == ["finished", "killed"]
    assert result["exit_code"] == 137
    assert [rank["signal"] for rank in result["ranks"]] == [None, "SIGKILL"]


def test_report_of_a_job_with_a_rank_that_raises_has_its_location(report, tmp_path):
    result = report(FAIL.format(act="1 / 0", after=""))
    assert states(result) == ["finished", "failed"]
    assert result["ranks"][1]["reason"].startswith("ZeroDivisionError: division")
    assert result["ranks"][1]["location"] == f"{tmp_path}/script.py:6, in inner"


def test_report_of_a_restarted_job_is_of_its_last_start(report):
    result = report(FAIL.format(act="sys.exit(3)", after=""), "--max-restarts", "1")
    assert states(result) == ["finished", "failed"]
    assert result["ranks"][1]["reason"] == "exit 3"
    assert result["restarts"] == 1


def test_report_of_a_job_that_times_out_says_so(report):
    result = report("import time; time.sleep(600)", "--timeout", "1")
    assert states(result) == ["killed", "killed"]
    assert result["timed_out"]
    assert result["exit_code"] == 124
    assert result["stopped_by"] is None
