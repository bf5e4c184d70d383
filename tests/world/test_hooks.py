"""Hooks of the process: the user's are called, kept and restored."""

import asyncio
import faulthandler
import io
import os
import select
import signal
import sys

import pytest

from mlxdist.world import hooks
from tests.support.jobs import mpi_job

# Saves and leaves when asked to, as before a preemption. Lightning#1455.
PREEMPTION = """
import asyncio, os, signal, sys
import mlxdist
asked = []
world = mlxdist.init(timeout=20)
world.barrier()
{wait}
assert asked, "the handler did not run"
assert world.mean(1.0) == 1.0
print("saved", world.rank, flush=True)
sys.exit(0)
"""
HANDLER = """
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
os.kill(os.getpid(), signal.SIGTERM)
"""
LOOP = """
async def wait():
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(event.wait(), 10)
    asked.append(1)
asyncio.run(wait())
"""


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def excepthook():
    """Restore `sys.excepthook` after the test."""
    before = sys.excepthook
    yield before
    sys.excepthook = before


def has_data(descriptor):
    return bool(select.select([descriptor], [], [], 0)[0])


def fail():
    error = KeyError("the dog ate it")
    sys.excepthook(KeyError, error, None)
    return error


def test_exception_hook_calls_the_users_hook_first(excepthook):
    calls = []
    sys.excepthook = lambda kind, error, trace: calls.append(error)
    hook = hooks.ExceptionHook(lambda error, shown: calls.append((error, shown)))
    error = fail()
    assert calls == [error, (error, True)]
    hook.remove()
    assert fail() is calls[-1]


def test_exception_hook_reports_an_error_in_the_users_hook(excepthook, capsys):
    ended = []
    sys.excepthook = lambda *_: 1 / 0
    hooks.ExceptionHook(lambda error, shown: ended.append(error))
    assert ended == [fail()]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_exception_hook_without_one_of_the_user_leaves_the_report_open(excepthook):
    calls = []
    sys.excepthook = sys.__excepthook__
    hooks.ExceptionHook(lambda error, shown: calls.append(shown))
    fail()
    assert calls == [False]


def test_exception_hook_gives_way_to_a_later_one(excepthook, monkeypatch):
    calls = []
    hook = hooks.ExceptionHook(lambda error, shown: calls.append("ours"))
    assert hook.missed_error() is None
    sys.excepthook = later = lambda *_: calls.append("theirs")
    error = fail()
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    assert hook.missed_error() is error
    hook.remove()
    assert (calls, sys.excepthook) == (["theirs"], later)


@pytest.fixture
def default_sigterm():
    """SIGTERM without a handler: other tests of this process may have left one."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_hook_writes_to_the_pipe_and_restores_the_default(pipe):
    calls = []
    hook = hooks.SigtermHook(lambda: calls.append(1), pipe[1])
    assert hook.is_current
    os.kill(os.getpid(), signal.SIGTERM)
    assert (calls, has_data(pipe[0])) == ([1], True)
    assert signal.set_wakeup_fd(-1) == -1  # asyncio's, if anyone's
    hook.remove()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_hook_leaves_the_users_handler(when, pipe):
    calls = []

    def handle(number, frame):
        calls.append("theirs")

    if when == "before":
        signal.signal(signal.SIGTERM, handle)
    hook = hooks.SigtermHook(lambda: calls.append("ours"), pipe[1])
    signal.signal(signal.SIGTERM, handle)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (calls, has_data(pipe[0]), hook.is_current) == (["theirs"], False, False)
    hook.remove()
    assert signal.getsignal(signal.SIGTERM) is handle
    os.kill(os.getpid(), signal.SIGTERM)
    assert calls == ["theirs", "theirs"]


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_hook_keeps_a_signal_that_is_ignored_since(pipe):
    hook = hooks.SigtermHook(lambda: None, pipe[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hook.remove()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_enable_faulthandler_keeps_the_users_file(tmp_path, pipe):
    """It is process-wide and can't be read back, so a process of its own crashes."""
    faults = tmp_path / "faults"
    if os.fork() == 0:
        faulthandler.disable()
        faulthandler.enable(faults.open("w"))
        hooks.enable_faulthandler()
        os.kill(os.getpid(), signal.SIGABRT)
    os.wait()
    assert "Fatal Python error: Aborted" in faults.read_text()


@pytest.mark.parametrize("stream", [None, io.StringIO(), object()], ids=type)
def test_enable_faulthandler_and_log_without_a_descriptor_do_not_fail(
    stream, monkeypatch
):
    """Loggers, notebooks and daemons replace standard error. ipykernel#91."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    hooks.enable_faulthandler()
    hooks.log("text\n")
    hooks.flush_output()


def test_log_writes_past_a_string_that_ends_with_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    hooks.log("the job ends\n")
    assert sys.__stderr__ is not None
    assert capsys.readouterr().err == "the job ends\n"


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(HANDLER, id="handler"),
        pytest.param(LOOP, id="asyncio", marks=pytest.mark.long),
    ],
)
def test_sigterm_of_all_ranks_runs_the_users_handler(wait, tmp_path):
    result = mpi_job(2, PREEMPTION.format(wait=wait), folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("saved") == 2


def test_sigterm_handler_that_calls_the_previous_one_ends_the_job(tmp_path):
    """As accelerate's and submitit's do, once they have saved."""
    script = """
import os, signal, time
import mlxdist
world = mlxdist.init(timeout=20)
previous = signal.getsignal(signal.SIGTERM)
def save(*arguments):
    print("saved", flush=True)
    previous(*arguments)
signal.signal(signal.SIGTERM, save)
world.barrier()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
print("goes on", flush=True)
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stdout.split() == ["saved", "saved"]


def test_sigterm_handlers_of_a_loop_that_runs_stay_alive():
    """asyncio learns of signals through Python's one wake-up descriptor."""

    async def main():
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, event.set)
        reader, writer = os.pipe()
        hook = hooks.SigtermHook(event.clear, writer)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(event.wait(), 60)
        hook.remove()
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


USERS_HOOK = """
import sys
import mlxdist
def hook(kind, error, trace):
    print("hook", world.rank, error, flush=True)
{before}
world = mlxdist.init(timeout=20)
{after}
if world.rank == 1:
    raise KeyError("the dog ate it")
world.barrier()
"""


@pytest.mark.parametrize(
    "when", [pytest.param("before", marks=pytest.mark.long), "after"]
)
def test_excepthook_of_the_user_is_called_and_the_job_ends(when, tmp_path):
    places = {"before": "", "after": "", when: "sys.excepthook = hook"}
    result = mpi_job(2, USERS_HOOK.format(**places), folder=tmp_path)
    assert result.returncode == 1
    assert result.stdout == "hook 1 'the dog ate it'\n"
    assert "failed in user code, after step 0; the job ends:\nKeyError" in result.stderr
