"""Starts N ranks of a script on this machine with mpirun, and tells how it ended."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from . import rank_main, runtime
from .mpirun import Mpirun, kill_survivors, unfinished

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_JOB_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMIX_NAMESPACE")


@dataclass(frozen=True)
class Job:
    """What to run: `script` is a path, or a module's name where `module` is true."""

    ranks: int
    script: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    label: bool = False
    threads: int | None = None


class Stopped(int):
    """The exit code of a job that its user ended."""


class Outcome(NamedTuple):
    """How the ranks ended, by what they said themselves."""

    ranks: int
    missing: list[int]  # those that did not say that they finished
    reasons: dict[int, str]  # of those of them that said why
    ended: tuple[int, ...] = ()  # those of them that another one's failure ended

    @classmethod
    def read(cls, run_dir: str, ranks: int) -> Outcome:
        missing = unfinished(run_dir, ranks)
        files = {rank: rank_main.failed_file(run_dir, rank) for rank in missing}
        reasons = {
            rank: file.read_text(errors="replace")
            for rank, file in files.items()
            if file.exists()
        }
        ended = tuple(
            rank
            for rank in missing
            if rank not in reasons and rank_main.ended_file(run_dir, rank).exists()
        )
        return cls(ranks, missing, reasons, ended)

    def __str__(self) -> str:
        if not self.missing:
            return f"all ranks of {self.ranks} finished"
        alike: dict[str, list[int]] = {}
        for rank, why in self.reasons.items():
            alike.setdefault(why, []).append(rank)
        parts = [f"{_named(who)} failed ({why})" for why, who in alike.items()]
        known = {*self.reasons, *self.ended}
        silent = [rank for rank in self.missing if rank not in known]
        if silent:
            parts.append(f"{_named(silent)} of {self.ranks} did not finish")
        if self.ended:
            verb = "was" if len(self.ended) == 1 else "were"
            parts.append(f"{_named(self.ended)} {verb} ended with it")
        return "; ".join(parts)


def _named(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def launch(job: Job) -> int:
    """Runs the job and returns its exit code: 0 only where every rank said it finished.

    Otherwise it is mpirun's own, 1 where mpirun claims success, or 128 + the signal
    that ended the job (130 after Ctrl-C).

    Raises:
        ValueError: there is no such script or module.
        RuntimeError: there is no Open MPI, with the remedy.
    """
    check_script(job)
    cores = usable_cores()
    command = mpirun_command(
        job,
        mpirun=runtime.find_mpirun(),
        python=sys.executable,
        cores=cores,
        as_root=os.geteuid() == 0,
        reads=sys.stdin is not None and sys.stdin.isatty(),
    )
    if job.ranks > cores:
        _say(
            f"{job.ranks} ranks share {cores} core{'s' * (cores > 1)}: "
            "they take turns, and their timings say little."
        )
    with tempfile.TemporaryDirectory(prefix="mlxdist-run-") as run_dir:
        environment = rank_environment(
            job, os.environ, cores=cores, run_dir=run_dir, columns=_columns(job)
        )
        Path(run_dir, "job.json").write_text(json.dumps(asdict(job)))
        mpirun = Mpirun(
            command, environment, run_dir=run_dir, ranks=job.ranks, label=job.label
        )
        code = mpirun.wait()
        outcome = Outcome.read(run_dir, job.ranks)
        kill_survivors(run_dir, outcome.missing)
    return _verdict(code, mpirun.received, outcome)


def check_script(job: Job) -> None:
    """Raises ValueError where there is nothing to run, before anything is started."""
    if job.module:
        _check_module(job.script)
        return
    path = Path(job.script)
    if not path.exists():
        raise ValueError(
            f"there is no script {job.script!r} in {os.getcwd()}; "
            "to run a module by its name, use -m"
        )
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ValueError(f"{job.script!r} is a folder without a __main__.py")


def _check_module(name: str) -> None:
    top = name.partition(".")[0]
    if not top.isidentifier():
        raise ValueError(f"found -m {name!r}, wanted the name of a module")
    here = importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
    if here is None and importlib.util.find_spec(top) is None:
        raise ValueError(f"no module {top!r} in {os.getcwd()} or on Python's path")


def usable_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def mpirun_command(
    job: Job, *, mpirun: str, python: str, cores: int, as_root: bool, reads: bool
) -> list[str]:
    """The command line that starts the ranks; `reads`: rank 0 gets the input.

    It names the script, for who looks at `ps`, but not the script's arguments. Those
    go through a file, since mpirun rewrites some as if they were its own (`--map-by`
    becomes `--mapby`) and starts another program behind a lone `:`.
    """
    # Naming the host gives as many slots as there are ranks. By itself mpirun counts
    # physical cores, and would refuse ranks that hyperthreads have room for.
    command = [mpirun, "-n", str(job.ranks), "--host", f"localhost:{job.ranks}"]
    command += ["--bind-to", "none"]
    if not reads:  # mpirun never tells a rank that its input has ended
        command += ["--stdin", "none"]
    if as_root:
        command += ["--allow-run-as-root"]
    if job.ranks > cores:
        command += ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    if job.label:
        command += ["--tag-output"]
    shown = job.script if job.module else os.path.abspath(job.script)
    return [*command, python, os.path.abspath(rank_main.__file__), shown]


def rank_environment(
    job: Job,
    environment: Mapping[str, str],
    *,
    cores: int,
    run_dir: str,
    columns: int | None,
) -> dict[str, str]:
    """The ranks' environment. `columns` is the terminal's width; None without one.

    The ranks can't see for themselves whether their output ends in a terminal: mpirun
    gives each a terminal of its own and passes on what they write.
    """
    inside_a_job = any(name in environment for name in _JOB_VARIABLES)
    # Outside of one, what begins with OMPI_ are the user's own settings.
    result = dict(runtime.without_mpi(environment) if inside_a_job else environment)
    share = result.get("OMP_NUM_THREADS", str(max(1, cores // job.ranks)))
    for name in THREAD_VARIABLES:
        if job.threads is not None:
            result[name] = str(job.threads)
        else:
            result.setdefault(name, share)
    result["PYTHONUNBUFFERED"] = "1"
    result["MLXDIST_RUN_DIR"] = run_dir
    result.pop("MLXDIST_TERMINAL", None)
    result.pop("MLXDIST_COLUMNS", None)
    if columns is not None:
        result |= {"MLXDIST_TERMINAL": "1", "MLXDIST_COLUMNS": str(columns)}
    return result


def _columns(job: Job) -> int | None:
    # A live display redraws its lines, which can't be if each begins with a label.
    if job.label or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _verdict(code: int, received: int | None, outcome: Outcome) -> int:
    how = f"mpirun exited with code {code}"
    if code > 128 and code - 128 in {number.value for number in signal.Signals}:
        how += f" ({signal.Signals(code - 128).name})"
    if code < 0:
        how, code = f"mpirun was ended by {signal.Signals(-code).name}", 128 - code
    if received is not None:
        _say(f"ended by {signal.Signals(received).name}; {outcome}.")
        return Stopped(128 + received)
    if outcome.missing or code:
        _say(f"{outcome}; {how}.")
    return code or int(bool(outcome.missing))


def _say(message: str) -> None:
    print(f"mlxdist run: {message}", file=sys.stderr, flush=True)
