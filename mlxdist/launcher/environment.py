"""The process environment: every variable that mlxdist reads, sets or passes on.

No other module of the package touches `os.environ`, and no other one spells a name
that begins with MLXDIST_. `rank_main` loads this file before the package exists, so it
imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

PREFIX = "MLXDIST_"
RUN_DIR = "MLXDIST_RUN_DIR"  # folder for the ranks' marks, on the launcher's machine
MARKS = "MLXDIST_MARKS"  # token of marks that are lines on standard error
TERMINAL = "MLXDIST_TERMINAL"  # "1" if the ranks' output ends in a terminal
COLUMNS = "MLXDIST_COLUMNS"  # the width of that terminal
RESTARTS = "MLXDIST_RESTARTS"  # how often the job was started again
TIMELINE = "MLXDIST_TIMELINE"  # file for the Chrome trace
POSTMORTEM = "MLXDIST_POSTMORTEM"  # folder for the records of a failed job
BACKEND = "MLXDIST_BACKEND"  # of the data plane, where `init` is given none
DATA_PLANE = "MLXDIST_DATA_PLANE"  # the ranks' addresses and RDMA devices, as JSON
KEEP_MEMORY = "MLXDIST_KEEP_MEMORY"  # "0" leaves glibc's allocator as it is
WIRED = "MLXDIST_WIRED"  # "0" leaves the memory that Metal keeps resident as it is
JOINED = "MLXDIST_JOINED"  # the process that has joined, and its rank, as JSON
FINALIZES = "MLXDIST_FINALIZES"  # the process that calls MPI_Finalize at its exit
LIBMPI = "MLX_MPI_LIBNAME"  # the library that MLX loads
JOB = "MLXDIST_JOB"  # script and arguments, as JSON; continued in MLXDIST_JOB1, ...

# A launcher sets these for its own ranks. A job inside a job must not inherit them.
LAUNCHER_VARIABLES = (RUN_DIR, MARKS, TERMINAL, COLUMNS, DATA_PLANE)
MPI_PREFIXES = ("OMPI_", "PMIX_", "PRTE_")
MPI_PARAMETER = "OMPI_MCA_"  # before the name of a parameter of the ranks' MPI
PRTE_PARAMETER = "PRTE_MCA_"  # before the name of a parameter of mpirun

RANK = "OMPI_COMM_WORLD_RANK"
SIZE = "OMPI_COMM_WORLD_SIZE"
NAMESPACE = "PMIX_NAMESPACE"  # of a job of mpirun: its host, process id and number
SERVER_PREFIX = "PMIX_SERVER_"  # how a rank reaches mpirun on its host
SERVER_FOLDER = "PMIX_SERVER_TMPDIR"  # mpirun's own folder on this host
THREAD_LEVEL = "OMPI_MPI_THREAD_LEVEL"  # that MPI_Init asks for
THREAD_MULTIPLE = 3  # MPI_THREAD_MULTIPLE: any thread may use MPI at any time
_RANK_VARIABLES = (RANK, "PMIX_RANK", NAMESPACE)
_RESERVED = ("OMPI_COMM_", "PMIX_", "PRTE_", JOB, MARKS, RUN_DIR, DATA_PLANE)
_LONGEST_VALUE = 2**16  # characters; Linux takes 128 KiB


class RankJob(TypedDict):
    """What a rank has to run: the value of MLXDIST_JOB."""

    script: str
    arguments: list[str]
    module: bool
    cwd: str


def snapshot() -> dict[str, str]:
    """Return a copy of the environment."""
    return dict(os.environ)


def get(name: str) -> str | None:
    """Return a variable's value, None if it is not set."""
    return os.environ.get(name)


def update(variables: Mapping[str, str]) -> None:
    """Set variables for this process and those that it starts."""
    os.environ.update(variables)


@contextlib.contextmanager
def temporary(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables while this is entered, for libraries that read them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# The environment of libraries in C, which `os.environ` does not show


def native_temporary_folder() -> str:
    """Return the folder for temporary files that C++ libraries of this process use."""
    import ctypes  # only ranks need it

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    values = (getenv(name) for name in (b"TMPDIR", b"TMP", b"TEMP", b"TEMPDIR"))
    return os.fsdecode(next((x for x in values if x is not None), b"/tmp"))


def set_native_temporary_folder(path: str) -> None:
    """Set TMPDIR for libraries and new processes; `os.environ` and Python keep it."""
    os.putenv("TMPDIR", path)


# The ranks' side


def restarts() -> int:
    """Return how often `mlxdist run --max-restarts` has started this job again."""
    return int(os.environ.get(RESTARTS, "0"))


def timeline_path() -> str | None:
    """Return the file for the Chrome trace, None if there is to be none."""
    return os.environ.get(TIMELINE) or None


def postmortem_folder() -> Path:
    """Return the folder for the records of jobs that failed."""
    return Path(os.environ.get(POSTMORTEM, "mlxdist-postmortem"))


def is_enabled(name: str) -> bool:
    """Return whether a variable leaves something on: False if it is "0"."""
    return os.environ.get(name) != "0"


def started_by_mpirun() -> bool:
    """Return whether Open MPI's launcher started this process."""
    return RANK in os.environ


def rank() -> str:
    """Return this process's rank, as mpirun gives it.

    Raises:
        KeyError: mpirun did not start this process.
    """
    return os.environ[RANK]


def world_size() -> int:
    """Return how many ranks mpirun has started; 1 without it."""
    return int(os.environ.get(SIZE, "1"))


def local_rank() -> int:
    """Return this process's rank among those of its host; 0 without mpirun."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))


def local_size() -> int:
    """Return how many ranks of the job share this host; 1 without mpirun."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))


def mpi_interfaces() -> list[str]:
    """Return the interfaces or networks of MPI's traffic over TCP; any if empty."""
    text = os.environ.get(f"{MPI_PARAMETER}btl_tcp_if_include", "")
    return [name.strip() for name in text.split(",") if name.strip()]


def leave_job(names: Collection[str]) -> None:
    """Remove some names and all of MPI's launcher, in a process that is no rank."""
    remaining = without_mpi(os.environ)
    for name in list(os.environ):
        if name not in remaining or name in names:
            del os.environ[name]


def hide_mpirun() -> None:
    """Remove from the environment how MPI joins mpirun's job, once it has joined.

    Children would inherit that, and one that starts MPI, as MLX and mpi4py do, would
    crash this rank. Without it MPI gives them a world of one. Rank and size stay.
    """
    for name in list(os.environ):
        if name == NAMESPACE or name.startswith(SERVER_PREFIX):
            del os.environ[name]


def take_job() -> RankJob:
    """Return what this rank has to run, and remove it from the environment.

    Raises:
        ValueError: `mlxdist run` did not start this process.
    """
    parts: list[str] = []
    while (name := f"{JOB}{len(parts) or ''}") in os.environ:
        parts.append(os.environ.pop(name))
    job: RankJob = json.loads("".join(parts))
    return job


# MPI's libraries


def has_chosen_libmpi() -> bool:
    """Return whether the user has set which libmpi mpi4py loads."""
    return "MPI4PY_LIBMPI" in os.environ


def use_libmpi(path: str, *, parameters: Mapping[str, str]) -> None:
    """Have MLX load a libmpi, and set Open MPI's parameters that the user did not set.

    The caller has the process call MPI_Finalize when it exits.

    Args:
        parameters: MCA parameters by name, without OMPI_MCA_.
    """
    os.environ[LIBMPI] = path
    os.environ[FINALIZES] = str(os.getpid())
    set_default_libmpi(path)
    for name, value in parameters.items():
        os.environ.setdefault(MPI_PARAMETER + name, value)


def finalizes_mpi(pid: int) -> bool:
    """Return whether a process has called `use_libmpi`; a child inherits the name."""
    return os.environ.get(FINALIZES) == str(pid)


def mpi_library_folders() -> list[str]:
    """Return the folders that may hold the libmpi of the mpirun that started this."""
    prefix = os.environ.get("OPAL_PREFIX")
    folders = [os.environ.get("OMPI_LIBDIR_LOC"), prefix and f"{prefix}/lib"]
    return [*filter(None, folders), f"{sys.exec_prefix}/lib"]


def set_default_libmpi(path: str) -> None:
    """Set the libmpi that MLX loads and the thread level that it asks for, unless set.

    MLX asks for none by itself, and `mlxdist.init()` needs MPI_THREAD_MULTIPLE later.
    """
    os.environ.setdefault(LIBMPI, path)
    os.environ.setdefault(THREAD_LEVEL, str(THREAD_MULTIPLE))


def launched_by_mlx() -> bool:
    """Return whether MLX's own launcher, or a script, has given this process a rank."""
    return "MLX_RANK" in os.environ


# The launcher's side


def set_restarts(number: int) -> None:
    """Set what `restarts` returns in the ranks of the jobs started next."""
    os.environ[RESTARTS] = str(number)


def is_rank_environment(environment: Mapping[str, str]) -> bool:
    """Return whether an environment is that of a rank."""
    return any(name in environment for name in _RANK_VARIABLES)


def without_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without a launcher's variables, to start a job of its own.

    Outside of a job, variables that begin with OMPI_ are settings of the user.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(MPI_PREFIXES)
        and name not in (*LAUNCHER_VARIABLES, BACKEND)
    }


def chosen_backend() -> str | None:
    """Return the backend that the user has set for data, None if none is set.

    The launcher has set that of a rank, for this job and not for one inside it.
    """
    return None if is_rank_environment(os.environ) else os.environ.get(BACKEND) or None


def is_reserved(name: str) -> bool:
    """Return whether mpirun or mlxdist sets a variable, and the user must not."""
    return name.startswith(_RESERVED)


def job_variables(job: RankJob) -> dict[str, str]:
    """Return the variables that `take_job` reads.

    The job is not on the ranks' command line, because mpirun rewrites some arguments.
    """
    text = json.dumps(job)
    starts = range(0, len(text), _LONGEST_VALUE)
    return {
        f"{JOB}{number or ''}": text[start : start + _LONGEST_VALUE]
        for number, start in enumerate(starts)
    }
