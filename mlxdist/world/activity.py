"""Whether the thread that trains makes progress or is stuck, as seen from another one.

A rank that evaluates for an hour is healthy, and one that is in one call for an hour,
which waits for a rank that is gone, is not. Both may use all of the processor, since
MPI spins while it waits. But a program that works returns from its calls to Python, or
waits for a process that works.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import NamedTuple

from .children import cpu_time_of_children

_LEAST_CPU = 0.01  # processor seconds that count as progress
# Processor seconds per second of all children; those that only look for work use less.
_BUSY_CHILDREN = 0.02
_STOPPED = 2.0  # seconds without a sample in which the whole process was stopped

# Python calls what is registered once it is ready for it, so it must never be freed.
_callbacks: list[object] = []


class _ChildrenSample(NamedTuple):
    """When it was taken, and the processor seconds that all children had used."""

    time: float
    idle: float
    cpu: float


class Activity:
    """Progress of the thread that created it, from samples taken a few times a second.

    Python runs pending calls in the main thread, as soon as that returns from a call.
    For another thread, any use of the processor counts as progress. So does work of the
    processes that this one has started.

    Args:
        children_after: seconds without progress before it looks at those, which takes a
            few milliseconds.
    """

    def __init__(self, children_after: float = 10.0) -> None:
        self._children_after = children_after
        self._last_sample: _ChildrenSample | None = None
        self._sampled = self._progress = time.monotonic()
        self._thread = threading.current_thread()
        self._is_main = self._thread is threading.main_thread()
        self._is_pending = False
        self._cpu = self._cpu_time()
        self._callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._run)
        _callbacks.append(self._callback)

    def sample(self) -> float:
        """Return the seconds since the thread's last progress."""
        now = time.monotonic()
        if now - self._sampled > _STOPPED:
            self._progress = now
        self._sampled = now
        if not self._is_main:
            self._compare_cpu_time(now)
        elif not self._is_pending:
            self._is_pending = True
            ctypes.pythonapi.Py_AddPendingCall(self._callback, None)
        self._sample_children(now)
        return now - self._progress

    def _sample_children(self, now: float) -> None:
        idle = now - self._progress
        if idle < self._children_after:
            self._last_sample = None
        elif self._last_sample is None or idle > 1.2 * self._last_sample.idle:
            sample = _ChildrenSample(now, idle, cpu_time_of_children())
            if self._last_sample is not None:
                seconds = now - self._last_sample.time
                if sample.cpu - self._last_sample.cpu > _BUSY_CHILDREN * seconds:
                    self._progress = now
            self._last_sample = sample

    def _run(self, argument: int | None) -> int:
        self._is_pending = False
        self._progress = time.monotonic()
        return 0

    def _compare_cpu_time(self, now: float) -> None:
        cpu = self._cpu_time()
        if cpu - self._cpu > _LEAST_CPU:
            self._cpu, self._progress = cpu, now

    def _cpu_time(self) -> float:
        thread = self._thread
        has_clock = hasattr(time, "pthread_getcpuclockid")  # macOS has none
        if not has_clock or thread.ident is None or not thread.is_alive():
            return time.process_time()
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
