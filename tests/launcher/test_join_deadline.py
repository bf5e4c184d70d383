"""Deadline of `init()`: a process that can't run Python is ended, with the reason."""

import os
import signal
import subprocess
import sys

import pytest

from mlxdist.launcher.join_deadline import reason
from tests.support import jobs

# It holds Python's lock, as MLX does in MPI_Init.
WAITS = """
import ctypes
from mlxdist.launcher import join_deadline
join_deadline.LEAST_TIMEOUT = {limit}
deadline = join_deadline.JoinDeadline(0.1, title="mlxdist: rank 1 on mac1"{options})
{act}
ctypes.PyDLL(None).{wait}
"""
MESSAGE = (
    "waited 0.3 s in mlxdist.init() for other ranks. All ranks must call it; "
    "init(timeout=...) allows them more time"
)


def waiting(*, options="", act="", limit=0.3, seconds=300):
    """Return the source of a process that waits for so long in a call."""
    call = f"usleep({int(seconds * 1e6)})"
    return WAITS.format(options=options, act=act, limit=limit, wait=call)


def wait(folder, **options):
    return jobs.run([sys.executable, "-c", waiting(**options)], cwd=folder)


def test_join_deadline_prints_the_reason_and_kills_the_process(tmp_path):
    done = wait(tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == f"mlxdist: rank 1 on mac1 {MESSAGE}.\n"


def test_join_deadline_with_a_mark_file_writes_the_reason_there(tmp_path):
    done = wait(tmp_path, options=", mark_file='failed'")
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert (tmp_path / "failed").read_text() == f"it {MESSAGE}"


def test_join_deadline_with_mark_lines_writes_them_to_the_stream(tmp_path):
    done = wait(tmp_path, options=", mark_lines='mark\\n', stream=1")
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert done.stdout == "mark\n"


@pytest.mark.parametrize(
    "close",
    ["import os; os.close(2)", "import os; os.dup2(os.open('/dev/full', 1), 2)"],
)
def test_join_deadline_without_standard_error_kills_the_process(close, tmp_path):
    source = f"import os; {close}" + waiting()
    done = jobs.run([sys.executable, "-c", source], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL


def test_join_deadline_whose_reader_is_paused_kills_the_process(tmp_path):
    fill = "import os; os.set_blocking(2, False)\nwhile 1:\n  try: os.write(2, b'x')\n"
    fill += "  except BlockingIOError: break\nos.set_blocking(2, True)"
    source = fill + waiting()
    process = jobs.start([sys.executable, "-c", source], cwd=tmp_path)
    try:
        assert process.wait(timeout=100) == -signal.SIGKILL
    finally:
        jobs.end_session(process.pid)
        process.communicate()


def test_join_deadline_that_is_stopped_ends_nothing(tmp_path):
    done = wait(tmp_path, act="deadline.stop()", limit=0.8, seconds=1.1)
    assert (done.returncode, done.stderr) == (0, "")


def test_join_deadline_ends_with_its_process(tmp_path):
    act = "import os; print(deadline._process.pid, flush=True); os._exit(0)"
    done = wait(tmp_path, act=act)
    assert jobs.wait_until(lambda: not jobs.is_alive(int(done.stdout)))


@pytest.fixture
def claims(tmp_path):
    """Files of two ranks: one is this process, one is stopped."""
    files = [tmp_path / "0", tmp_path / "1"]
    with subprocess.Popen(["sleep", "600"]) as child:
        os.kill(child.pid, signal.SIGSTOP)
        assert jobs.wait_until(lambda: jobs.state_of(child.pid) == "T")
        for file, pid in zip(files, (os.getpid(), child.pid), strict=True):
            file.write_text(str(pid))
        yield list(map(str, files))
        child.kill()


def test_reason_names_the_ranks_that_are_absent_or_else_stopped(claims):
    missing = [f"{claims[0]}-2", f"{claims[0]}-3"]
    assert " for rank 1, stopped (SIGSTOP). " in reason(5, claims)
    assert " for ranks 2, 3, which never called it. " in reason(5, claims + missing)
    assert " for other ranks. " in reason(5, claims[:1])


def test_reason_of_a_claim_that_a_full_disk_left_empty_blames_nobody(tmp_path):
    (tmp_path / "0").touch()
    assert " for other ranks. " in reason(5, [str(tmp_path / "0")])


# Waits until the helper process is ready, which then ignores SIGINT.
READY = """
import os, re, signal, time
helper = deadline._process.pid
status = open(f"/proc/{helper}/status")
while not int(re.search("SigIgn:\\s*(\\w+)", status.read())[1], 16) & 2:
    status.seek(0)
"""
NEEDS_PROC = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="no /proc"
)


@NEEDS_PROC
def test_join_deadline_of_a_job_that_was_suspended_goes_on(tmp_path):
    """It is in the process group of the rank, as it was when SIGSTOP stopped both."""
    act = f"""{READY}
os.kill(helper, signal.SIGSTOP)
time.sleep(1.1)
os.kill(helper, signal.SIGCONT)
time.sleep(0.1)
print("goes on", flush=True)
"""
    done = wait(tmp_path, act=act, limit=0.9)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "goes on\n")


@NEEDS_PROC
def test_join_deadline_is_not_ended_by_the_interrupt_of_a_terminal(tmp_path):
    act = f"{READY}\nos.kill(helper, signal.SIGINT)\nprint('sent', flush=True)"
    done = wait(tmp_path, act=act)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "sent\n")
    assert done.stderr == f"mlxdist: rank 1 on mac1 {MESSAGE}.\n"


def test_join_deadline_whose_process_left_a_fork_leaves_no_mark(tmp_path):
    act = "import os, time\nif os.fork(): os._exit(0)\ntime.sleep(1.1); os._exit(0)"
    done = wait(tmp_path, options=", mark_file='failed'", act=act, limit=0.8)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "failed").exists()
