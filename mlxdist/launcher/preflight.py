"""Preflight checks: errors in a job that are found before it is started."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from . import data_plane, network
from .cores import oversubscription_warning, usable_cores
from .job_spec import Job
from .mpirun_command import has_custom_agent
from .standard_streams import print_error


def check(job: Job) -> Job:
    """Return the job with its interpreter and its network resolved.

    Raises:
        ValueError: there is no such script, module, folder or interpreter, there are
            too few slots, a file can't be written, or the hosts have no RDMA devices
            for jaccl.
        RuntimeError: other hosts can't be reached, because there is no ssh here.
    """
    if job.log_dir is not None:
        check_writable("--log-dir", job.log_dir)
    if job.timeline is not None and job.hosts:  # which may have other files
        _check_no_device("--timeline", job.timeline)
    data_plane.plan(job.hosts, job.ranks, job.backend)
    python = None
    if job.python is not None:
        python = find_python(job.python, remote=bool(job.hosts))
    if not job.hosts:
        _check_local(job)
        return replace(job, python=python)
    _check_ssh(job)
    interface = network.mpi_network(job.hosts, job.interface)
    return replace(job, python=python, interface=interface)


def _check_local(job: Job) -> None:
    """Check what only this machine must have; other hosts may have other files."""
    check_script(job)
    if job.timeline is not None:
        check_file("--timeline", job.timeline)
    cores = usable_cores()
    if job.ranks > cores:
        print_error(oversubscription_warning(job.ranks, cores))


def _check_ssh(job: Job) -> None:
    if has_custom_agent(job) or shutil.which("ssh") is not None:
        return
    local = network.local_addresses()
    remote = [host.name for host in job.hosts if not network.is_local(host, local)]
    if remote:
        raise RuntimeError(
            f"no ssh is on the PATH, by which mpirun reaches {remote[0]}; install it "
            "(apt install openssh-client), or add its folder to the PATH"
        )


def find_python(given: str, *, remote: bool) -> str:
    """Return the absolute path of the interpreter that `--python` names.

    Args:
        remote: whether the ranks run on other hosts. A path need not exist here then.

    Raises:
        ValueError: there is no such program here.
    """
    python = shutil.which(given) if os.sep not in given else given
    runs = python is not None and os.path.isfile(python) and os.access(python, os.X_OK)
    if python is None or not (remote or runs):
        raise ValueError(f"--python {given!r}: there is no such program here")
    return os.path.abspath(python)


def check_writable(option: str, folder: Path) -> None:
    """Check that files can be made in a folder, which may be a new one.

    Leaves nothing behind.

    Raises:
        ValueError: they can't.
    """
    existing = next(x for x in (folder, *folder.parents) if os.path.exists(x))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {folder}: no file can be made in {existing}: {error.strerror}; "
            "wanted a folder, which is made if it does not exist"
        ) from None


def check_file(option: str, path: Path) -> None:
    """Check that an option names a file that can be written.

    Raises:
        ValueError: it does not.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    _check_no_device(option, path)
    check_writable(option, path.parent)


def _check_no_device(option: str, path: Path) -> None:
    """Check that a path is not of a device or pipe, which a file would replace.

    Raises:
        ValueError: it is.
    """
    is_other = path.exists() and not (path.is_file() or path.is_dir())
    if is_other or os.path.realpath(path.parent) == "/dev":
        raise ValueError(f"{option} {path} is a device or a pipe; name a file")


def check_script(job: Job) -> None:
    """Check that this machine has the job's folder, and its script or module.

    Raises:
        ValueError: it does not.
    """
    if not os.path.isdir(job.folder):
        raise ValueError(f"--cwd {job.cwd!r}: there is no such folder")
    if job.module:
        _check_module(job.script, job.folder)
        return
    path = Path(job.folder, job.script)
    if not path.exists():
        raise ValueError(
            f"there is no script {job.script!r} in {job.folder}; "
            "to run a module by its name, use -m"
        )
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ValueError(f"{job.script!r} is a folder without a __main__.py")


def _check_module(name: str, folder: str) -> None:
    package = name.partition(".")[0]
    if not package.isidentifier():
        raise ValueError(f"found -m {name!r}, wanted the name of a module")
    in_folder = importlib.machinery.PathFinder.find_spec(package, [folder])
    if in_folder is None and importlib.util.find_spec(package) is None:
        raise ValueError(f"no module {package!r} in {folder} or on Python's path")
