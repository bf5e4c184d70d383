"""What the ranks of a hanging job are doing: the innermost frames of their threads.

A signal makes a rank write its stacks to a file. The handler is in C and does not need
Python's lock, so that a rank which hangs in a library answers, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Processes that have no handler ignore it.
SIGNAL = signal.SIGWINCH
PATIENCE = 5.0  # seconds until a rank has answered, on busy cores
MAIN_FRAMES, OTHER_FRAMES = 10, 3
THREAD = re.compile(r"(?:Current thread|Thread) 0x(?P<ident>[0-9a-f]+)")
FRAME = re.compile(r'\s+File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
# Frames of every test, and of every thread that waits or reports.
COMMON = re.compile(
    r"/(_?pytest|pluggy|xdist|execnet)/|/threading\.py$|/support/(hangs|stacks)\.py$|^<"
)
ROOT = f"{Path(__file__).parents[2]}{os.sep}"


class Process(NamedTuple):
    """A process that answers: its id, that of its main thread, its file of stacks."""

    pid: int
    main_thread: int
    path: str


def answer(path: Path) -> Process:
    """Have this process write its stacks to a file whenever it gets the signal."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)
    return Process(os.getpid(), threading.main_thread().ident or 0, str(path))


def stacks(processes: Sequence[Process]) -> list[str]:
    """Ask the processes, and return what each of them is doing, in a few lines."""
    starts = [os.path.getsize(process.path) for process in processes]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, SIGNAL)
    deadline = time.monotonic() + PATIENCE
    answers = [""] * len(processes)
    while not all(answers) and time.monotonic() < deadline:
        time.sleep(0.1)
        for index, (process, start) in enumerate(zip(processes, starts, strict=True)):
            text = Path(process.path).read_text(errors="replace")[start:]
            answers[index] = summary(text, process.main_thread)
    return [answer or "  no answer: it has ended, or is stopped" for answer in answers]


def summary(text: str, main_thread: int) -> str:
    """Return the innermost frames in faulthandler's report, "" if it lacks the main.

    The main thread's come first, one in a line; each other thread has one line.
    """
    threads: dict[int, list[str]] = {}
    frames: list[str] = []
    for line in text.splitlines():
        if match := THREAD.match(line):
            frames = threads.setdefault(int(match["ident"], 16), [])
        elif (match := FRAME.match(line)) and not COMMON.search(match["file"]):
            file = match["file"].removeprefix(ROOT)
            frames.append(f"{file}:{match['line']} {match['function']}")
    main = threads.pop(main_thread, [])
    lines = [f"  {frame}" for frame in main[:MAIN_FRAMES]]
    for frames in filter(None, threads.values()):
        lines.append(f"  thread: {' < '.join(frames[:OTHER_FRAMES])}")
    return "\n".join(lines) if main else ""
