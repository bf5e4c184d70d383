"""Tests of signals hold however the suite was started: support/signal_state.py."""

import signal
import subprocess
import sys

import pytest

from tests.support.jobs import clean_environment

IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)
SHOW = """
import signal
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD):
    print(signal.getsignal(number))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
# As the tests are started: by `nohup`, in the background, by a supervisor.
START = f"""
import os, signal, subprocess, sys
for number in {[int(number) for number in IGNORED]}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if "restore" in sys.argv:
    from tests.support import signal_state
    signal_state.restore()
    os.kill(os.getpid(), signal.SIGHUP)  # nohup's program goes on
subprocess.run([sys.executable, "-c", {SHOW!r}], check=True)
"""
DEFAULTS = [signal.default_int_handler, *3 * [signal.SIG_DFL]]


@pytest.mark.parametrize(
    ("arguments", "handlers", "blocked"),
    [([], 4 * [signal.SIG_IGN], {signal.SIGTERM}), (["restore"], DEFAULTS, set())],
)
def test_signal_state_of_programs_that_tests_start_is_the_default(
    arguments, handlers, blocked
):
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, mask = done.stdout.splitlines()
    assert [line.split(" at ")[0] for line in lines] == [
        str(handler).split(" at ")[0] for handler in handlers
    ]
    assert mask == str(blocked)
