"""What `mlxdist run` starts on each rank: the script, and a word when it finished.

mpirun exits with 0 in cases where ranks have died, so a rank that ends normally says
so: it leaves the file `rank-<r>.done` in the launcher's folder as the last thing that
its Python does. A script that raises, exits with another code than 0, or is killed
leaves none.

Started by its path and not as a module of the package: nothing may register an exit
handler before this file does, and importing `mlxdist` imports MLX.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this file's own folder: the script's takes its place

import atexit
import fcntl
import json
import os
import runpy
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

# What lives as long as the process: the script's globals, which a plain `python
# script.py` keeps until its exit handlers have run, and the lock of this rank.
_kept: list[object] = []


def done_file(run_dir: str, rank: int | str) -> Path:
    """The mark of a rank that finished."""
    return Path(run_dir, f"rank-{rank}.done")


def pid_file(run_dir: str, rank: int | str) -> Path:
    """Holds a rank's process id, and is locked for as long as the process lives."""
    return Path(run_dir, f"rank-{rank}.pid")


def failed_file(run_dir: str, rank: int | str) -> Path:
    """Holds one line on why a rank failed, where it could still say so."""
    return Path(run_dir, f"rank-{rank}.failed")


def ended_file(run_dir: str, rank: int | str) -> Path:
    """The mark of a rank that was ended with the job, for another one's failure."""
    return Path(run_dir, f"rank-{rank}.ended")


def main() -> None:
    run_dir = os.environ["MLXDIST_RUN_DIR"]
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    failed = failed_file(run_dir, rank)
    finished: list[bool] = []
    pid = os.getpid()

    def say_done() -> None:
        if finished and os.getpid() == pid:  # and not a fork that ends like us
            done_file(run_dir, rank).touch()

    atexit.register(say_done)  # the first to register is the last to run
    _kept.append(_announce(pid_file(run_dir, rank), pid))
    job = json.loads(Path(run_dir, "job.json").read_text())
    try:
        _kept.append(_run(job["script"], job["arguments"], module=job["module"]))
    except SystemExit as leaving:
        _kept.append(leaving)
        if leaving.code not in (None, 0):
            _leave(leaving.code, failed)
    except BaseException as error:
        _fail(error, failed)
    finished.append(True)


def _announce(path: Path, pid: int) -> IO[str]:
    file = path.open("w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    file.write(str(pid))
    file.flush()
    return file


def _run(script: str, arguments: list[str], *, module: bool) -> dict[str, Any]:
    sys.argv = [script, *arguments]
    safe = getattr(sys.flags, "safe_path", False)  # python -P: no folder goes first
    if module:
        if not safe:
            sys.path.insert(0, os.getcwd())
        return runpy.run_module(script, run_name="__main__", alter_sys=True)
    path = os.path.abspath(script)
    if not (safe or os.path.isdir(path)):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    return runpy.run_path(path, run_name="__main__")


def _leave(code: object, failed: Path) -> NoReturn:
    # At once, as after an exception: exit handlers would wait for the other ranks,
    # and those may never come.
    _note(failed, f"exit {code}")
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    _exit(code & 0xFF or 1)


def _fail(error: BaseException, failed: Path) -> NoReturn:
    _note(failed, traceback.format_exception_only(type(error), error)[-1])
    error = error.with_traceback(_beyond_this_file(error.__traceback__))
    sys.excepthook(type(error), error, error.__traceback__)
    _exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _beyond_this_file(trace: TracebackType | None) -> TracebackType | None:
    # The frames of this file and of runpy say nothing about the script.
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and "runpy" not in name:
            break
        trace = trace.tb_next
    return trace


def _note(failed: Path, reason: str) -> None:
    failed.write_text(reason.partition("\n")[0], errors="replace")


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or its reader is gone
            continue
    os._exit(code)


if __name__ == "__main__":
    main()
