"""Signals end the whole job, and a terminal's input reaches rank 0."""

import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlxdist.launcher.signals import Signals
from tests.support import jobs

SLEEP = """
import os, signal, sys, time
if "ignore" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
# It kills an mpirun that does not end, but later than a test waits for it.
PATIENT_RUN = """
import sys
from mlxdist import cli
from mlxdist.launcher import mpirun
mpirun.STOP_TIMEOUT = 100.0
sys.exit(cli.main(["run", *sys.argv[1:]]))
"""


def left_in(folder):
    """Return the files there, without MLX's compiled kernels: the next job has them."""
    return [path for path in folder.iterdir() if path.name != "mlx"]


@pytest.fixture
def sleeping(tmp_path):
    """Starts 2 ranks that sleep; returns the launcher and its ranks' process ids."""
    processes = []

    def start(*arguments):
        (tmp_path / "script.py").write_text(SLEEP)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        process = jobs.start(
            [sys.executable, "-c", PATIENT_RUN, "-n", "2", "script.py", *arguments],
            cwd=tmp_path,
            env={"TMPDIR": str(tmp_path / "tmp")},
        )
        processes.append(process)
        return process, [int(process.stdout.readline()) for _ in range(2)]

    yield start
    for process in processes:
        jobs.end_session(process.pid)
        process.communicate()


def assert_ends(process, code, message):
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.startswith(f"mlxdist run: {message}")  # with no text of mpirun before it
    assert len(err.splitlines()) == 1
    assert jobs.wait_until(lambda: jobs.processes(process.pid) == [])


@pytest.mark.parametrize("arguments", [(), ("ignore",)])
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
        (signal.SIGQUIT, 131),
    ],
)
def test_run_after_a_signal_ends_the_job(sleeping, number, code, arguments):
    process, _ = sleeping(*arguments)
    process.send_signal(number)
    assert_ends(
        process, code, f"ended by {number.name}; ranks 0 and 1 of 2 did not finish."
    )


def test_run_after_ctrl_c_of_a_terminal_ends_the_job(sleeping):
    process, _ = sleeping()
    os.killpg(process.pid, signal.SIGINT)
    assert_ends(process, 130, "ended by SIGINT")


def test_run_after_a_second_signal_kills_mpirun(sleeping):
    process, ranks = sleeping("ignore")
    mpirun_pid = parent_of(ranks[0])
    os.kill(mpirun_pid, signal.SIGSTOP)  # it can't end the job itself
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    if not jobs.wait_until(lambda: process.poll() is not None, seconds=5):
        process.send_signal(signal.SIGINT)  # it has taken the two for one
    assert_ends(process, 130, "ended by SIGINT")


def test_run_whose_mpirun_is_killed_kills_the_ranks(sleeping, tmp_path):
    process, ranks = sleeping("ignore")
    os.kill(parent_of(ranks[0]), signal.SIGKILL)
    assert_ends(
        process, 137, "ranks 0 and 1 of 2 did not finish; mpirun was ended by SIGKILL"
    )
    left = [p.name for p in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if name.startswith("mlxdist-run-")]


def test_run_that_is_killed_leaves_no_process_and_no_file(sleeping, tmp_path):
    process, ranks = sleeping("ignore")
    pids = [*ranks, parent_of(ranks[0])]
    process.kill()
    process.wait()
    assert jobs.wait_until(lambda: not any(map(jobs.is_alive, pids)))
    assert jobs.wait_until(lambda: left_in(tmp_path / "tmp") == [])


def test_run_that_is_killed_with_its_mpirun_leaves_no_rank(sleeping, tmp_path):
    process, ranks = sleeping("ignore")
    os.killpg(process.pid, signal.SIGKILL)  # the ranks have groups of their own
    process.wait()
    assert jobs.wait_until(lambda: not any(map(jobs.is_alive, ranks)))
    assert jobs.wait_until(lambda: left_in(tmp_path / "tmp") == [])


@pytest.mark.parametrize(
    "delay", [0.3, *(pytest.param(x, marks=pytest.mark.long) for x in (0.15, 0.5))]
)
def test_run_that_is_killed_while_it_starts_leaves_nothing(
    run_command, tmp_path, delay
):
    (tmp_path / "script.py").write_text(SLEEP)
    (tmp_path / "tmp").mkdir()
    process = jobs.start(
        [*run_command, "-n", "2", "script.py"],
        cwd=tmp_path,
        env={"TMPDIR": str(tmp_path / "tmp")},
    )
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert jobs.wait_until(lambda: jobs.processes(process.pid) == [])
    assert jobs.wait_until(lambda: left_in(tmp_path / "tmp") == [])


def parent_of(pid):
    ps = ["ps", "-o", "ppid=", "-p", str(pid)]
    return int(subprocess.check_output(ps, text=True))


# Signals that go to the ranks (pytorch#154849)

NAME_SIGNALS = """
import os, signal, time
seen = []
def name(number, _frame):
    seen.append(number)
    print(signal.Signals(number).name, flush=True)
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT):
    signal.signal(number, name)
print(os.getpid(), flush=True)
while signal.SIGUSR2 not in seen:
    time.sleep(0.02)
"""


@pytest.fixture
def naming(tmp_path, run_command):
    """Starts 2 ranks that print the signals they get, until SIGUSR2.

    Returns the launcher and its ranks' process ids.
    """
    (tmp_path / "script.py").write_text(NAME_SIGNALS)
    options = ["-n", "2", "--timeout", "90"]
    process = jobs.start([*run_command, *options, "script.py"], cwd=tmp_path)
    yield process, [int(process.stdout.readline()) for _ in range(2)]
    jobs.end_session(process.pid)
    process.communicate()


def test_run_forwards_signals_as_mpirun_does(naming):
    process, _ = naming
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGUSR2):
        process.send_signal(number)
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines == 2 * [f"{number.name}\n"]
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    "send",
    [os.killpg, pytest.param(os.kill, marks=pytest.mark.long)],  # as a terminal does
)
def test_run_that_is_stopped_stops_its_ranks_until_it_continues(naming, send):
    process, ranks = naming
    pids = [process.pid, *ranks]
    send(process.pid, signal.SIGTSTP)
    assert jobs.wait_until(lambda: set(map(jobs.state_of, pids)) == {"T"})
    send(process.pid, signal.SIGCONT)
    assert jobs.wait_until(lambda: "T" not in map(jobs.state_of, pids))
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate()
    assert out.count("SIGUSR2\n") == 2
    assert out.count("SIGCONT\n") >= 2  # mpirun may send it more than once
    assert set(out.split()) == {"SIGCONT", "SIGUSR2"}
    assert (process.returncode, err) == (0, "")


def test_signals_that_are_ignored_stay_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signals.forward_to(None)
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGHUP)
            sent = []
            signals.forward_to(sent.append)
        assert sent == [signal.SIGUSR2]
        assert signals.received == signal.SIGHUP
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_in_a_thread_change_no_handler():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers_while_entered).result() == signal.SIG_DFL


def handlers_while_entered():
    with Signals():
        return signal.getsignal(signal.SIGUSR2)


# A terminal


def test_run_in_a_terminal_tells_the_ranks_and_passes_input_on(tmp_path, run_command):
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
        os.execve(sys.executable, [*run_command, "-n", "2", "script.py"], env)
    output = ""
    try:
        output = read_until(master, "'91']")
        os.write(master, b"typed\n")
        output += read_until(master, "read typed")
    finally:
        code = wait_or_kill(child)
        os.close(master)
    assert "['1', '91']" in output
    assert "read typed" in output, output
    assert code == 0


def read_until(master, text, timeout=50):
    output, deadline = "", time.monotonic() + timeout
    while text not in output and time.monotonic() < deadline:
        if select.select([master], [], [], 0.5)[0]:
            try:
                output += os.read(master, 4096).decode()
            except OSError as error:
                if error.errno != errno.EIO:  # Linux: the other end is closed
                    raise
                break
    return output


def wait_or_kill(pid, timeout=50):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    jobs.end_session(pid)
    os.waitpid(pid, 0)
    return None
