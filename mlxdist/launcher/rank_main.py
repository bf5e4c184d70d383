"""What `mlxdist run` starts on each rank: the script, and a word when it finished.

mpirun exits with 0 in cases where ranks have died, so a rank that ends normally says
so, as the last thing that its Python does. A script that raises, exits with another
code than 0, or is killed does not. On the launcher's own machine the word is a file,
`rank-<r>.done`, in the launcher's folder. On several hosts, which share no folder, it
is a line to standard error, which mpirun carries to the launcher.

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
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# What a rank may say of itself: "failed" with why, where it could still say so;
# "ended" where another one's failure ended it.
MARKS = ("done", "failed", "ended")
MARK = "\x1emlxdist"  # begins such a line, with the launcher's secret word
_CHUNK = 2**16  # characters of the job in a variable; Linux takes 128 KiB

# What lives as long as the process: the script's globals, which a plain `python
# script.py` keeps until its exit handlers have run, and the lock of this rank.
_kept: list[object] = []


def mark_file(run_dir: str, mark: str, rank: int | str) -> Path:
    """The file by which a rank leaves one of MARKS; "failed" holds one line on why."""
    return Path(run_dir, f"rank-{rank}.{mark}")


def pid_file(run_dir: str, rank: int | str) -> Path:
    """Holds a rank's process id, and is locked for as long as the process lives."""
    return Path(run_dir, f"rank-{rank}.pid")


def leave_mark(mark: str, rank: int | str, text: str = "") -> None:
    """Leaves the launcher one of MARKS, where a launcher started this process.

    The first "failed" is the one that counts.
    """
    run_dir = os.environ.get("MLXDIST_RUN_DIR")
    word, _, owner = os.environ.get("MLXDIST_MARKS", "").rpartition(":")
    text = text.partition("\n")[0]
    if run_dir:
        path = mark_file(run_dir, mark, rank)
        if not path.exists():
            path.write_text(text, errors="replace")
    elif word and owner.partition("/")[0] == str(os.getpid()):
        line = f"{MARK} {word} {mark} {rank} {text[:100]}\n"
        # Twice: mpirun may cut one in two, where it reads much at once, and another
        # rank's text come between.
        os.write(int(owner.partition("/")[2]), 2 * line.encode(errors="replace"))


def usable_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def thread_share(
    environment: Mapping[str, str], cores: int, ranks: int
) -> dict[str, str]:
    """What the thread variables lack, so that `ranks` on a machine share its cores."""
    share = environment.get("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    return {name: share for name in THREAD_VARIABLES if name not in environment}


def job_variables(job: Mapping[str, Any]) -> dict[str, str]:
    """A job as environment variables: mpirun rewrites some command-line arguments."""
    text = json.dumps(job)
    starts = range(0, len(text), _CHUNK)
    return {f"MLXDIST_JOB{i or ''}": text[s : s + _CHUNK] for i, s in enumerate(starts)}


def _take_job() -> dict[str, Any]:
    parts: list[str] = []
    while (name := f"MLXDIST_JOB{len(parts) or ''}") in os.environ:
        parts.append(os.environ.pop(name))
    return dict(json.loads("".join(parts)))


def main() -> None:
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    finished: list[bool] = []
    pid = os.getpid()

    def say_done() -> None:
        if finished and os.getpid() == pid:  # and not a fork that ends like us
            leave_mark("done", rank)

    atexit.register(say_done)  # the first to register is the last to run
    _announce(pid)
    job = _take_job()
    try:
        _enter(job["cwd"])
        _kept.append(_run(job["script"], job["arguments"], module=job["module"]))
    except SystemExit as leaving:
        _kept.append(leaving)
        if leaving.code not in (None, 0):
            _leave(leaving.code, rank)
    except BaseException as error:
        _fail(error, rank)
    finished.append(True)


def _announce(pid: int) -> None:
    """Readies what the marks need: a locked file on one machine, a line elsewhere."""
    run_dir = os.environ.get("MLXDIST_RUN_DIR")
    if run_dir:
        file = pid_file(run_dir, os.environ["OMPI_COMM_WORLD_RANK"]).open("w")
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(str(pid))
        file.flush()
        _kept.append(file)
    elif "MLXDIST_MARKS" in os.environ:
        # A copy of standard error, in case the script points that elsewhere; whose
        # it is, so that no child of this process takes another file for it.
        os.environ["MLXDIST_MARKS"] += f":{pid}/{os.dup(2)}"
        _share_cores()


def _share_cores() -> None:
    """Each host shares its own cores, which the launcher doesn't know."""
    cores = usable_cores()
    ranks = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    os.environ.update(thread_share(os.environ, cores, ranks))
    if ranks > cores and os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") == "0":
        print(too_many(ranks, cores, socket.gethostname()), file=sys.stderr)


def too_many(ranks: int, cores: int, host: str = "") -> str:
    """A warning, where ranks outnumber cores."""
    return (
        f"mlxdist run: {ranks} ranks share {cores} core{'s' * (cores > 1)}"
        f"{host and f' on {host}'}: they take turns, and their timings say little."
    )


def _enter(folder: str) -> None:
    try:
        if os.getcwd() != folder:
            os.chdir(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"{socket.gethostname()} has no folder {folder} to run in "
            f"({error.strerror}); make it there, or name another with --cwd"
        ) from None


def _run(script: str, arguments: list[str], *, module: bool) -> dict[str, Any]:
    sys.argv = [script, *arguments]
    safe = getattr(sys.flags, "safe_path", False)  # python -P: no folder goes first
    if module:
        if not safe:
            sys.path.insert(0, os.getcwd())
        return runpy.run_module(script, run_name="__main__", alter_sys=True)
    path = os.path.abspath(script)
    if not os.path.exists(path):  # on the launcher's machine there was one
        raise FileNotFoundError(f"{socket.gethostname()} has no script {path}")
    if not (safe or os.path.isdir(path)):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    return runpy.run_path(path, run_name="__main__")


def _leave(code: object, rank: str) -> NoReturn:
    # At once, as after an exception: exit handlers would wait for the other ranks,
    # and those may never come.
    leave_mark("failed", rank, f"exit {code}")
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    _exit(code & 0xFF or 1)


def _fail(error: BaseException, rank: str) -> NoReturn:
    leave_mark("failed", rank, traceback.format_exception_only(type(error), error)[-1])
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


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or its reader is gone
            continue
    os._exit(code)


if __name__ == "__main__":
    main()
