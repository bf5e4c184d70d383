"""Progress of the main thread, seen from another thread."""

import queue
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mlxdist.world.activity import Activity
from tests.support.attempts import any_of

SECONDS = 0.3
stop = threading.Event()
sampling = threading.Lock()  # is held until the last sample


def run_python():
    while not stop.is_set():
        sum(range(100))


def run_one_line():
    """Always seen at this line, and it uses all of the processor, as MPI may."""
    a = np.ones((200, 200))
    while not stop.is_set():
        a @ a


def wait_in_one_call():
    sampling.acquire()
    sampling.release()


def idle_after(work, *, in_main_thread, children_after=10.0):
    """Return the idle seconds that another thread sees after some work."""
    stop.clear()
    idle: list[float] = []
    ready = threading.Event()

    def sample(activity):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            idle.append(activity.sample())
            time.sleep(0.02)
        idle.append(activity.sample())
        stop.set()
        sampling.release()

    def start():
        sampling.acquire()
        sampler = threading.Thread(target=sample, args=[Activity(children_after)])
        sampler.start()
        work()
        sampler.join()
        ready.set()

    if in_main_thread:
        start()
    else:
        threading.Thread(target=start).start()
        assert ready.wait(60)
    return idle[-1]


def has_progress(work, **options):
    """Return whether some work is progress. It has none while others use its core."""
    return any_of(8, lambda: idle_after(work, **options) < SECONDS / 2)


def has_no_progress(work, **options):
    """Return whether some work is none. It begins late where others use its core."""
    return any_of(8, lambda: idle_after(work, **options) > 0.7 * SECONDS)


@pytest.mark.parametrize("work", [run_python, run_one_line])
def test_activity_of_a_thread_that_works_is_progress(work):
    assert has_progress(work, in_main_thread=True)


def test_activity_of_another_thread_than_the_main_one_is_progress():
    assert has_progress(run_python, in_main_thread=False)


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_activity_in_one_call_is_no_progress(in_main_thread):
    assert has_no_progress(wait_in_one_call, in_main_thread=in_main_thread)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("command", "works"), [("while :; do :; done", True), ("exec sleep 600", False)]
)
def test_activity_of_a_program_that_it_waits_for_is_progress(command, works):
    """As of an evaluation or an upload that rank 0 starts."""

    def wait_for_child():
        with subprocess.Popen(["sh", "-c", command]) as child:
            wait_in_one_call()
            child.kill()

    check = has_progress if works else has_no_progress
    assert check(wait_for_child, in_main_thread=True, children_after=0.05)


def test_activity_forgives_time_without_samples(monkeypatch):
    """The whole process was stopped then, as by Ctrl-Z."""
    made, done = queue.Queue(), threading.Event()
    thread = threading.Thread(target=lambda: (made.put(Activity()), done.wait()))
    thread.start()  # not the main one, which makes progress as it is asked
    activity = made.get()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    idle = activity.sample()
    monkeypatch.undo()
    done.set()
    thread.join()
    assert idle == 0.0
