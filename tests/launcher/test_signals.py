"""`mlxdist run`: signals end the whole job, and a terminal reaches rank 0."""

import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.support import jobs

RUN = [sys.executable, "-m", "mlxdist.cli", "run"]

SLEEP = """
import os, signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeping(tmp_path):
    """Starts 2 ranks that sleep; gives the launcher and its ranks' process ids."""
    started = []

    def start(*arguments):
        (tmp_path / "script.py").write_text(SLEEP)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        process = jobs.start(
            [*RUN, "-n", "2", "script.py", *arguments],
            cwd=tmp_path,
            env={"TMPDIR": str(tmp_path / "tmp")},
        )
        started.append(process)
        return process, [int(process.stdout.readline()) for _ in range(2)]

    yield start
    for process in started:
        jobs.end_session(process.pid)
        process.communicate()


def ends(process, code, said):
    begun = time.monotonic()
    _, err = process.communicate(timeout=30)
    # Well before mpirun's time is up and it is killed.
    assert time.monotonic() - begun < 8
    assert process.returncode == code, err
    assert err.startswith(f"mlxdist run: {said}")  # and nothing of mpirun's before it
    assert len(err.splitlines()) == 1
    deadline = time.monotonic() + 5
    while jobs.processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert jobs.processes(process.pid) == []


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_job(sleeping, number, code, arguments):
    process, _ = sleeping(*arguments)
    process.send_signal(number)
    ends(process, code, f"ended by {number.name}; ranks 0 and 1 of 2 did not finish.")


def test_ctrl_c_reaches_launcher_and_mpirun_together(sleeping):
    process, _ = sleeping()
    os.killpg(process.pid, signal.SIGINT)
    ends(process, 130, "ended by SIGINT")


def test_a_second_signal_insists(sleeping):
    process, ranks = sleeping("deaf")
    mpirun_pid = parent(ranks[0])
    os.kill(mpirun_pid, signal.SIGSTOP)  # it can't end the job itself
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    ends(process, 130, "ended by SIGINT")


def test_ranks_do_not_outlive_a_killed_mpirun(sleeping, tmp_path):
    process, ranks = sleeping("deaf")
    os.kill(parent(ranks[0]), signal.SIGKILL)
    ends(process, 137, "ranks 0 and 1 of 2 did not finish; mpirun was ended by SIGKILL")
    left = [p.name for p in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if name.startswith("mlxdist-run-")]


def parent(pid):
    shown = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(shown.stdout)


# A terminal


def test_in_a_terminal_the_ranks_know_it_and_can_read_from_it(tmp_path):
    (tmp_path / "script.py").write_text("""
import os
if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    names = ("MLXDIST_TERMINAL", "MLXDIST_COLUMNS")
    print([os.environ[name] for name in names], flush=True)
    print("read", input(), flush=True)
""")
    child, master = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        env = jobs.clean_environment({"COLUMNS": "91"})
        os.execve(sys.executable, [*RUN, "-n", "2", "script.py"], env)
    shown = ""
    try:
        shown = read_until(master, "'91']")
        os.write(master, b"typed\n")
        shown += read_until(master, "read typed")
    finally:
        code = wait_or_kill(child)
        os.close(master)
    assert "['1', '91']" in shown
    assert "read typed" in shown, shown
    assert code == 0


def read_until(master, text, timeout=30):
    shown, deadline = "", time.monotonic() + timeout
    while text not in shown and time.monotonic() < deadline:
        if select.select([master], [], [], 0.5)[0]:
            try:
                shown += os.read(master, 4096).decode()
            except OSError as error:
                if error.errno != errno.EIO:  # Linux: the other end is closed
                    raise
                break
    return shown


def wait_or_kill(pid, timeout=10):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    jobs.end_session(pid)
    os.waitpid(pid, 0)
    return None
