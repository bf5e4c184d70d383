"""Signals that `mlxdist run` ignores or counts, without a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mlxdist.launcher.mpirun import Mpirun
from mlxdist.launcher.output import Output
from mlxdist.launcher.signals import Signals
from tests.support import jobs


@pytest.fixture
def set_handler():
    """Sets a signal's handler until the test ends."""
    before = {}

    def set_one(number, handler):
        before.setdefault(number, signal.signal(number, handler))

    yield set_one
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path):
    """Starts a command in the place of mpirun."""

    def start_mpirun(command, signals, **options):
        return Mpirun(
            command,
            dict(os.environ),
            run_dir=str(tmp_path),
            ranks=1,
            output=Output(run_dir=str(tmp_path), ranks=1),
            signals=signals,
            **options,
        )

    return start_mpirun


def test_hangup_that_is_ignored_stays_ignored(set_handler):
    set_handler(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signals.received, signals.repeated) == (signal.SIGTERM, False)


def do_nothing(number, frame):
    pass


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_signal_that_ends_a_job_is_received(name, set_handler):
    number = signal.Signals[name]
    set_handler(number, do_nothing)
    with Signals() as signals:
        os.kill(os.getpid(), number)
    assert signals.received == number
    assert signal.getsignal(number) is do_nothing


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGURG", "SIGCONT"])
def test_signal_for_the_ranks_is_kept_until_mpirun_can_take_it(name, set_handler):
    number = signal.Signals[name]
    set_handler(number, do_nothing)
    sent = []
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received is None
        signals.forward_to(sent.append)
        os.kill(os.getpid(), number)
    assert sent == [number, number]


@pytest.mark.parametrize("ignored", [False, True])
def test_mpirun_is_out_of_reach_of_a_hangup_that_is_ignored(
    ignored, set_handler, start, capfd
):
    """It ends its job on SIGHUP even where that was ignored when it started."""
    set_handler(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    code = "import os; print(os.getpgrp())"
    with Signals() as signals:
        assert start([sys.executable, "-c", code], signals).wait() == 0
    assert (int(capfd.readouterr().out) != os.getpgrp()) == ignored


def test_signal_that_comes_twice_is_repeated():
    signals = Signals()
    signals.end(signal.SIGINT)
    assert not signals.repeated
    signals.end(signal.SIGTERM)
    assert (signals.received, signals.repeated) == (signal.SIGINT, True)


def test_suspended_seconds_are_those_of_the_stop(monkeypatch):
    def stop(pid, number):
        assert (pid, number) == (os.getpid(), signal.SIGSTOP)
        time.sleep(0.05)

    sent = []
    signals, began = Signals(), time.monotonic()
    with signals:
        os.kill(os.getpid(), signal.SIGTSTP)
        monkeypatch.setattr(os, "kill", stop)
        signals.forward_to(sent.append)
    assert sent == [signal.SIGTSTP]
    assert 0.04 < signals.suspended <= time.monotonic() - began


@pytest.mark.parametrize(
    ("suspended", "seconds", "timed_out"), [(0.0, 30, True), (100.0, 0.4, False)]
)
def test_time_limit_does_not_count_a_suspended_job(
    suspended, seconds, timed_out, start
):
    with Signals() as signals:
        signals.suspended = suspended
        mpirun = start(["sleep", str(seconds)], signals, timeout=0.15)
        assert mpirun.wait() == (-signal.SIGTERM if timed_out else 0)
    assert mpirun.timed_out == timed_out


@pytest.mark.long
def test_run_under_nohup_outlives_its_terminal(run_command, tmp_path):
    (tmp_path / "script.py").write_text(
        "import time; print('up', flush=True); time.sleep(2); print('done')"
    )
    job = jobs.start(["nohup", *run_command, "-n", "2", "script.py"], cwd=tmp_path)
    try:
        assert [job.stdout.readline() for _ in range(2)] == 2 * ["up\n"]
        os.killpg(job.pid, signal.SIGHUP)
        out, _ = job.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        jobs.end_session(job.pid)
        raise
    assert (job.returncode, out.split()) == (0, ["done", "done"])
