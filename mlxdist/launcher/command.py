"""The command line that starts a job's ranks, and their environment. Starts nothing."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import openmpi, rank_main
from .hosts import Host
from .rank_main import THREAD_VARIABLES
from .spec import Job

_JOB_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMIX_NAMESPACE")
# Of a launcher around this one, and not the ranks'.
_OWN = ("MLXDIST_RUN_DIR", "MLXDIST_MARKS", "MLXDIST_TERMINAL", "MLXDIST_COLUMNS")

# A host that is switched off, or whose cable is pulled, closes no connection. mpirun
# asks after 5 s of silence and gives it up after 5 questions; by default after 8 min.
_KEEPALIVE = {
    "oob_tcp_keepalive_time": "5",
    "oob_tcp_keepalive_intvl": "1",
    "oob_tcp_keepalive_probes": "5",
}
# Fails where ssh would ask for a password or for trust in a new host, and wait.
SSH_OPTIONS = ("-x", "-oBatchMode=yes", "-oConnectTimeout=10")
_AGENT = "plm_ssh_agent"
# Where mpirun's files are named after its process id, one that was killed leaves files
# at which a later one with the same id ends: "listener thread failed to start".
_SESSION = "prte_local_tmpdir_base"
_NOTES = """\
for word; do
    case " {names} " in *" $word "*) host=$word; break ;; esac
done
"$@"
code=$?
[ $code -eq 0 ] || echo "$host $code" >>{file}
exit $code
"""


def mpirun_command(
    job: Job,
    *,
    mpirun: str,
    python: str,
    cores: int,
    as_root: bool,
    reads: bool,
    passed_on: Sequence[str] = (),
    agent: str | None = None,
    session: str = "",
) -> list[str]:
    """The command line that starts the ranks; `reads`: rank 0 gets the input.

    `passed_on` are the variables that ranks on other hosts get from here; `agent` is
    how mpirun reaches a host, None for ssh as it is; `session` is a folder for mpirun's
    own files, and empty for one of its choice.

    It names the script, for who looks at `ps`, but not the script's arguments. Those
    go through the environment, since mpirun rewrites some as if they were its own
    (`--map-by` becomes `--mapby`) and starts another program behind a lone `:`.
    """
    # Naming the host gives as many slots as there are ranks. By itself mpirun counts
    # physical cores, and would refuse ranks that hyperthreads have room for.
    hosts = job.hosts or (Host("localhost", job.ranks),)
    command = [mpirun, "-n", str(job.ranks), "--host", ",".join(map(str, hosts))]
    command += ["--bind-to", "none"]
    if not reads:  # mpirun never tells a rank that its input has ended
        command += ["--stdin", "none"]
    if as_root:
        command += ["--allow-run-as-root"]
    if session and not _has_own_session(job):
        command += ["--prtemca", _SESSION, session]
    if job.hosts:
        command += _over_hosts(job, passed_on, agent)
    elif job.ranks > cores:
        command += ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    if job.label or job.log_dir:
        command += ["--tag-output"]
    command += job.mpi_arguments
    shown = job.script
    if not job.module:
        shown = os.path.join(job.folder, job.script)
    return [*command, python, os.path.abspath(rank_main.__file__), shown]


def _over_hosts(job: Job, passed_on: Sequence[str], agent: str | None) -> list[str]:
    settings = dict(_KEEPALIVE)
    if agent is not None:
        settings[_AGENT] = agent
    elif not has_own_agent(job):
        settings["plm_ssh_args"] = " ".join(SSH_OPTIONS)
    words = ["--map-by", "slot"]  # so that hosts.place tells where each rank is
    for name, value in settings.items():
        words += ["--prtemca", name, value]
    if job.interface is not None:
        words += ["--mca", "btl_tcp_if_include", job.interface]
        words += ["--prtemca", "prte_if_include", job.interface]
    for name in passed_on:  # without the value, which mpirun has in its environment
        words += ["-x", name]
    return words


def agent(environment: Mapping[str, str]) -> list[str]:
    """The command by which mpirun reaches a host, without the host: ssh as a rule.

    By its path, since the ranks' PATH, of `--env`, is mpirun's as well.
    """
    own = environment.get(f"PRTE_MCA_{_AGENT}")
    ssh = shutil.which("ssh", path=environment.get("PATH")) or "ssh"
    return shlex.split(own) if own else [ssh, *SSH_OPTIONS]


def has_own_agent(job: Job) -> bool:
    """Whether the user has told mpirun how to reach a host."""
    return f"PRTE_MCA_{_AGENT}" in os.environ or _AGENT in job.mpi_arguments


def _has_own_session(job: Job) -> bool:
    """Whether the user has told mpirun where to put its files."""
    return any("tmpdir_base" in word for word in (*os.environ, *job.mpi_arguments))


def write_agent(job: Job, run_dir: str) -> str | None:
    """An agent that notes in `run_dir` which host it lost, and runs the real one.

    mpirun does not always say; None where a user's `--mpi-arg` names another.
    """
    if _AGENT in job.mpi_arguments or " " in run_dir:  # mpirun would split it there
        return None
    names = " ".join(host.name for host in job.hosts)
    path = Path(run_dir, "agent")
    path.write_text(_NOTES.format(names=names, file=shlex.quote(f"{run_dir}/lost")))
    return shlex.join(["/bin/sh", str(path), *agent(os.environ)])


def rank_environment(
    job: Job,
    environment: Mapping[str, str],
    *,
    cores: int,
    run_dir: str = "",
    word: str = "",
    columns: int | None = None,
) -> dict[str, str]:
    """The environment of mpirun and of the ranks on this machine.

    Args:
        run_dir, word: where the ranks leave their marks: a folder of this machine, or
            lines that begin with a secret word.
        columns: the terminal's width; None without one. The ranks can't see for
            themselves whether their output ends in a terminal: mpirun gives each a
            terminal of its own and passes on what they write.
    """
    inside_a_job = any(name in environment for name in _JOB_VARIABLES)
    # Outside of one, what begins with OMPI_ are the user's own settings.
    result = dict(openmpi.without_mpi(environment) if inside_a_job else environment)
    for name in _OWN:
        result.pop(name, None)
    if (home := os.path.expanduser("~")) != "~":  # cron and the like set none
        result.setdefault("HOME", home)
    result.update(job.variables)
    if job.threads is not None:
        result |= dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    elif not job.hosts:  # each of several shares its own cores
        result |= rank_main.thread_share(result, cores, job.ranks)
    result["PYTHONUNBUFFERED"] = "1"
    if run_dir:
        result["MLXDIST_RUN_DIR"] = run_dir
    if word:
        result["MLXDIST_MARKS"] = word
    if columns is not None:
        result |= {"MLXDIST_TERMINAL": "1", "MLXDIST_COLUMNS": str(columns)}
    if job.timeline is not None:
        result["MLXDIST_TIMELINE"] = os.path.abspath(job.timeline)
    what = {"script": job.script, "arguments": job.arguments, "module": job.module}
    return result | rank_main.job_variables({**what, "cwd": job.folder})


def passed_on(job: Job, environment: Mapping[str, str]) -> list[str]:
    """The variables that ranks on other hosts get; mpirun sees to what begins OMPI_."""
    names = {"PYTHONUNBUFFERED", *THREAD_VARIABLES, *dict(job.variables)}
    own = {name for name in environment if name.startswith("MLXDIST_")}
    return sorted(own | {name for name in names if name in environment})


def printed(command: Sequence[str], ranks_have: Mapping[str, str]) -> str:
    """The command line for a shell, with the variables that are not in it already."""
    new = {n: v for n, v in ranks_have.items() if os.environ.get(n) != v}
    words = [f"{name}={value}" for name, value in new.items()]
    return shlex.join(["env", *words, *command])
