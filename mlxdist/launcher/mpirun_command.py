"""mpirun's command line, and the environment of the ranks. Starts nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import cores, data_plane, environment, rank_main, tagged_stream
from .hosts import Host
from .job_spec import Job
from .orphans import segment_folder

# Fails instead of waiting for a password or for trust in a new host.
SSH_OPTIONS = (
    "-x",
    "-oBatchMode=yes",
    "-oConnectTimeout=10",
    "-oServerAliveInterval=15",  # seconds; it ends after three without an answer
)
# A host that is switched off, or whose cable is pulled, closes no connection. mpirun
# probes it after 5 s of silence and gives up after 5 probes; its default is 8 minutes.
_KEEPALIVE = {
    "oob_tcp_keepalive_time": "5",
    "oob_tcp_keepalive_intvl": "1",
    "oob_tcp_keepalive_probes": "5",
}
_AGENT = "plm_ssh_agent"  # the program by which mpirun reaches a host
AGENT_VARIABLE = environment.PRTE_PARAMETER + _AGENT
# mpirun's files are named after its process id. A killed mpirun leaves them behind, and
# a later one with the same id then fails: "listener thread failed to start". So each
# job gets a folder of its own for them.
_SESSION_DIR = "prte_local_tmpdir_base"
_SEGMENT_FOLDER = re.compile("btl_(sm|vader)_backing_directory")
_AGENT_SCRIPT = """\
for argument; do
    case " {names} " in *" $argument "*) host=$argument; break ;; esac
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
    usable_cores: int,
    as_root: bool,
    forward_stdin: bool,
    forwarded: Sequence[str] = (),
    agent: str | None = None,
    session_dir: str = "",
    tag_output: bool = False,
) -> list[str]:
    """Return the command line that starts the ranks.

    It names the script, for `ps`, but not the script's arguments. mpirun would rewrite
    some as its own (`--map-by` becomes `--mapby`) and take a lone `:` for the start of
    another program, so they travel in the environment.

    Args:
        forward_stdin: whether rank 0 gets this process's standard input.
        forwarded: variables to pass on to ranks on other hosts.
        agent: the command by which mpirun reaches a host; None for plain ssh.
        session_dir: folder for mpirun's own files; "" leaves it to mpirun.
        tag_output: have mpirun tag each line of output, see `tagged_stream`.
    """
    # Naming the host gives it as many slots as there are ranks. Without it mpirun
    # counts physical cores, and refuses ranks that hyperthreads have room for.
    hosts = job.hosts or (Host("localhost", job.ranks),)
    command = [mpirun, "-n", str(job.ranks), "--host", ",".join(map(str, hosts))]
    command += ["--bind-to", "none"]
    if not forward_stdin:  # mpirun passes no end of input on to a rank
        command += ["--stdin", "none"]
    if as_root:
        command += ["--allow-run-as-root"]
    command += _session_options(job, session_dir)
    if job.hosts:
        command += _remote_options(job, forwarded, agent)
    elif job.ranks > usable_cores:
        command += ["--map-by", ":OVERSUBSCRIBE", "--mca", "mpi_yield_when_idle", "1"]
    if tag_output and not any("output" in word for word in job.mpi_arguments):
        command += tagged_stream.OPTION
    command += job.mpi_arguments
    script = job.script if job.module else os.path.join(job.folder, job.script)
    return [*command, python, os.path.abspath(rank_main.__file__), script]


def _remote_options(job: Job, forwarded: Sequence[str], agent: str | None) -> list[str]:
    parameters = dict(_KEEPALIVE)
    if agent is not None:
        parameters[_AGENT] = agent
    elif not has_custom_agent(job):
        parameters["plm_ssh_args"] = " ".join(SSH_OPTIONS)
    options = ["--map-by", "slot"]  # the order of ranks that hosts.assign_ranks assumes
    for name, value in parameters.items():
        options += ["--prtemca", name, value]
    if job.interface is not None:
        options += ["--mca", "btl_tcp_if_include", job.interface]
        options += ["--prtemca", "prte_if_include", job.interface]
    for name in forwarded:  # without the value, which mpirun has in its environment
        options += ["-x", name]
    return options


def ssh_command(variables: Mapping[str, str] | None = None) -> list[str]:
    """Return the command that mpirun puts before a host's name to reach it.

    It is ssh by its full path, since --env may change the PATH of mpirun too, or the
    program that PRTE_MCA_plm_ssh_agent names.

    Args:
        variables: an environment; None for that of this process.
    """
    variables = environment.snapshot() if variables is None else variables
    custom = variables.get(AGENT_VARIABLE)
    ssh = shutil.which("ssh", path=variables.get("PATH")) or "ssh"
    return shlex.split(custom) if custom else [ssh, *SSH_OPTIONS]


def has_custom_agent(job: Job) -> bool:
    """Return whether the user has set the program by which mpirun reaches hosts."""
    return environment.get(AGENT_VARIABLE) is not None or _AGENT in job.mpi_arguments


def _session_options(job: Job, session_dir: str) -> list[str]:
    names = (*environment.snapshot(), *job.mpi_arguments)
    is_set = any("tmpdir_base" in name for name in names)
    return (
        ["--prtemca", _SESSION_DIR, session_dir] if session_dir and not is_set else []
    )


def write_agent_script(job: Job, run_dir: str) -> str | None:
    """Write a script that runs the agent and records the hosts where it failed.

    mpirun does not always name the host that it could not reach; see `failed_hosts`.

    Returns:
        The command for mpirun; None where the user's `--mpi-arg` names an agent.
    """
    if _AGENT in job.mpi_arguments or " " in run_dir:  # mpirun splits it at spaces
        return None
    names = " ".join(host.name for host in job.hosts)
    path = Path(run_dir, "agent")
    file = shlex.quote(str(_failed_hosts_file(run_dir)))
    path.write_text(_AGENT_SCRIPT.format(names=names, file=file))
    return shlex.join(["/bin/sh", str(path), *ssh_command()])


def failed_hosts(run_dir: str) -> list[str]:
    """Return the hosts where the agent failed, the first one first."""
    try:
        lines = _failed_hosts_file(run_dir).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line.partition(" ")[0] for line in lines]


def _failed_hosts_file(run_dir: str) -> Path:
    return Path(run_dir, "failed-hosts")


def rank_environment(
    job: Job,
    variables: Mapping[str, str],
    *,
    usable_cores: int,
    run_dir: str = "",
    token: str = "",
    columns: int | None = None,
) -> dict[str, str]:
    """Return the environment of mpirun and of the ranks on this machine.

    Args:
        variables: the environment of this process.
        run_dir: folder for the ranks' marks, on this machine alone.
        token: begins the ranks' marks on standard error, over several hosts.
        columns: the terminal's width; None without one. The ranks can't find out
            whether their output ends in a terminal: mpirun gives each one of its own.
    """
    result = dict(variables)
    if environment.is_rank_environment(
        variables
    ):  # a job that another job's rank starts
        result = environment.without_mpi(variables)
    for name in environment.LAUNCHER_VARIABLES:
        result.pop(name, None)
    if (home := os.path.expanduser("~")) != "~":  # cron sets no HOME
        result.setdefault("HOME", home)
    result.update(job.variables)
    result |= _data_variables(job)
    if job.threads is not None:
        result |= dict.fromkeys(cores.THREAD_VARIABLES, str(job.threads))
    elif not job.hosts:  # a rank on another host shares that host's cores
        result |= cores.thread_share(result, usable_cores, job.ranks)
    result["PYTHONUNBUFFERED"] = "1"
    if run_dir:
        result[environment.RUN_DIR] = run_dir
        result |= _segment_variables(result, run_dir)
    if token:
        result[environment.MARKS] = token
    if columns is not None:
        result[environment.TERMINAL] = "1"
        result[environment.COLUMNS] = str(columns)
    if job.timeline is not None:
        result[environment.TIMELINE] = os.path.abspath(job.timeline)
    return result | environment.job_variables(_rank_job(job))


def _data_variables(job: Job) -> dict[str, str]:
    plane = data_plane.plan(job.hosts, job.ranks, job.backend)
    return data_plane.variables_of(plane)


def _segment_variables(names: Iterable[str], run_dir: str) -> dict[str, str]:
    """Return the variable for the folder of the ranks' shared memory, unless set."""
    folder = segment_folder(run_dir)
    if any(map(_SEGMENT_FOLDER.search, names)) or not _is_private(folder):
        return {}
    return {environment.MPI_PARAMETER + "btl_sm_backing_directory": folder}


def _is_private(folder: str) -> bool:
    """Return whether a folder is there, and another user can't have made it."""
    with contextlib.suppress(OSError):
        info = os.lstat(folder)
        return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
    return False


def _rank_job(job: Job) -> environment.RankJob:
    return {
        "script": job.script,
        "arguments": list(job.arguments),
        "module": job.module,
        "cwd": job.folder,
    }


def forwarded_variables(job: Job, variables: Mapping[str, str]) -> list[str]:
    """Return the names of variables that mpirun must pass on to other hosts.

    mpirun itself passes on those that begin with OMPI_.
    """
    names = {"PYTHONUNBUFFERED", *cores.THREAD_VARIABLES, *dict(job.variables)}
    return sorted(
        name
        for name in variables
        if name in names or name.startswith(environment.PREFIX)
    )


def shell_line(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """Return a command line for a shell, with the variables that a shell lacks."""
    present = environment.snapshot()
    new = [f"{n}={value}" for n, value in variables.items() if present.get(n) != value]
    return shlex.join(["env", *new, *command])
