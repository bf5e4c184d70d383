"""Fault injection at the border to the system, after SQLite's tests.

An action is first run with its calls counted; then again for each of them, which fails.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

_FILES = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE)
_NAMES = (*_FILES, errno.ENAMETOOLONG)


def os_error(number, name):
    return OSError(number, os.strerror(number), name)


def no_memory(number, name):
    return MemoryError()


def no_thread(number, name):
    return RuntimeError("can't start new thread")


# What fails: its owner, its name, its errors, and how they are made.
BORDER = (
    *((os, name, _NAMES, os_error) for name in ("open", "mkdir", "rename", "replace")),
    *((os, name, _FILES, os_error) for name in ("listdir", "stat", "lstat", "fstat")),
    *((os, name, _FILES, os_error) for name in ("pwrite", "fsync", "ftruncate")),
    *((os, name, (errno.EIO,), os_error) for name in ("preadv", "unlink", "close")),
    (fcntl, "lockf", (errno.EIO,), os_error),
    (fcntl, "fcntl", (errno.EINVAL,), os_error),
    (mmap, "mmap", (0,), no_memory),
    (threading.Thread, "start", (0,), no_thread),
    (ThreadPoolExecutor, "submit", (0,), no_thread),
)


class Border:
    """Counts the calls to the system, and fails one of them if it is named.

    Attributes:
        calls: how often each function was called.
    """

    def __init__(self, name=None, index=0, error=None):
        self.calls = Counter()
        self._failing = name, index
        self._error = error

    def call(self, name, function, *arguments, **options):
        index = self.calls[name]
        self.calls[name] += 1
        if (name, index) == self._failing:
            raise self._error
        return function(*arguments, **options)

    @contextmanager
    def installed(self, monkeypatch):
        with monkeypatch.context() as patch:
            for owner, name, _, _ in BORDER:
                wrapped = partial(self.call, name, getattr(owner, name))
                if isinstance(owner, type):
                    wrapped = _as_method(wrapped)
                patch.setattr(owner, name, wrapped)
            yield self


def _as_method(function):
    def method(self, *arguments, **options):
        return function(self, *arguments, **options)

    return method


def faults(calls, every_error):
    """Yield a name, an index and an error for each counted call.

    Args:
        every_error: of each call, or one of them in turn.
    """
    for _, name, numbers, make in BORDER:
        for index in range(calls[name]):
            chosen = numbers if every_error else (numbers[index % len(numbers)],)
            for number in chosen:
                yield name, index, make(number, name)
