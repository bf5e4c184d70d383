"""The program of each rank: run the user's script, and leave a mark at its end.

`mlxdist run` starts it by its path, for three reasons. Importing `mlxdist` would set
options of mpi4py in scripts that use mpi4py without mlxdist. The ranks' interpreter may
have no mlxdist. And no exit handler may be registered before the one below, which
has to run last.
"""

import sys
import types

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this file's folder; the script's takes its place
    # Relative imports need a package (PEP 366): one with this folder and no __init__.
    __package__ = "_mlxdist_rank"
    _package = types.ModuleType(__package__)
    _package.__path__ = [__file__.rpartition("/")[0]]
    sys.modules[__package__] = _package

import atexit
import os
import runpy
import socket
from types import TracebackType
from typing import NoReturn

from . import (
    cores,
    environment,
    gpus,
    kernel_folder,
    marks,
    rank_failure,
    rank_mpi,
)
from .standard_streams import print_error

# The globals of the script, or its error: a plain `python script.py` keeps them until
# exit handlers have run.
_references: list[object] = []


def main() -> None:
    rank = environment.rank()
    finished: list[bool] = []
    pid = os.getpid()

    def leave_done() -> None:
        if finished and os.getpid() == pid:  # and not in a fork that ends normally
            _leave_marks_of_success(rank)

    atexit.register(leave_done)  # the first to register is the last to run
    descriptor = marks.announce(rank)
    rank_mpi.find_for_mlx()
    if descriptor is None:
        _share_cores()
    rank_failure.defer_usage_errors()
    job = environment.take_job()
    try:
        _take_gpu()
        _protect_kernels()
        _enter(job["cwd"])
        _references.append(_run(job))
    except BaseException as error:
        if os.getpid() != pid:  # a fork, which ends as it would without this program
            raise
        _references.append(error)
        _leave(error, rank)
    finished.append(True)


def _leave(error: BaseException, rank: str) -> None:
    """End the process after an error; return after `sys.exit(0)`."""
    error = error.with_traceback(_script_frames(error.__traceback__))
    if not isinstance(error, SystemExit):
        rank_failure.report_error(error, rank)
        _exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    if error.code not in (None, 0):
        # Exit handlers could wait for the other ranks, which may never come.
        _exit(rank_failure.report_exit(error, rank))


def _leave_marks_of_success(rank: str) -> None:
    rank_failure.print_usage_error()
    if "mlx.core" in sys.modules and not rank_mpi.has_joined():
        marks.leave_mark("alone", rank)
    if rank_mpi.finalize():
        marks.leave_mark("done", rank)
        _exit(0)
    marks.leave_mark("done", rank)


def _share_cores() -> None:
    """Set the thread variables of a rank on another host than the launcher's."""
    usable, ranks = cores.usable_cores(), environment.local_size()
    missing = cores.thread_share(environment.snapshot(), usable, ranks)
    environment.update(missing)
    if ranks > usable and environment.local_rank() == 0:
        warning = cores.oversubscription_warning(ranks, usable, socket.gethostname())
        print_error(warning)


def _take_gpu() -> None:
    """Have MLX compute on this rank's GPU, of several; before it is imported."""
    rank, ranks = environment.local_rank(), environment.local_size()
    share = gpus.share_of(environment.get(gpus.VISIBLE), gpus.count_gpus(), rank, ranks)
    if share.visible is not None:
        environment.update({gpus.VISIBLE: share.visible})
    if share.ranks < 2:
        return
    if environment.get(environment.BACKEND) == "nccl":
        raise RuntimeError(gpus.nccl_problem(share.ranks, socket.gethostname()))
    if rank == 0:
        print_error(gpus.warning(share.ranks, socket.gethostname()))


def _protect_kernels() -> None:
    """Keep MLX from kernels of other users, also before the script calls `init`."""
    warning = kernel_folder.protect()
    if warning and environment.local_rank() == 0:
        print_error(f"mlxdist: {socket.gethostname()}: {warning}")


def _enter(folder: str) -> None:
    try:
        if os.getcwd() != folder:
            os.chdir(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"{socket.gethostname()} has no folder {folder} to run in "
            f"({error.strerror}); make it there, or name another with --cwd"
        ) from None


def _run(job: environment.RankJob) -> dict[str, object]:
    """Run the script or module as Python would, and return its globals."""
    script = job["script"]
    sys.argv = [script, *job["arguments"]]
    safe = getattr(sys.flags, "safe_path", False)  # python -P: no folder goes first
    if job["module"]:
        if not safe:
            sys.path.insert(0, os.getcwd())
        return runpy.run_module(script, run_name="__main__", alter_sys=True)
    path = os.path.abspath(script)
    if not os.path.exists(path):  # the launcher's machine may have it
        raise FileNotFoundError(f"{socket.gethostname()} has no script {path}")
    if not (safe or os.path.isdir(path)):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    return runpy.run_path(path, run_name="__main__")


def _script_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its first frames, of this file and of runpy."""
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
