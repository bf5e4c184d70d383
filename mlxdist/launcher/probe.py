"""A host's report about itself, for `mlxdist doctor`.

`mlxdist doctor` sends `source()` through ssh to the standard input of each host's
Python, where mlxdist may not be installed. So this file imports the standard library,
and of mlxdist only the file that `source` sends along.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .environment import snapshot
from .gpus import count_gpus
from .interface_output import interface_output, run_program

PACKAGES = ("mlxdist", "mlx", "mpi4py", "openmpi", "numpy")
CUDA_BACKENDS = ("mlx-cuda-12", "mlx-cuda-13")  # of MLX
# Of macOS, by the name under which the report has what they print.
_MAC_PROGRAMS = {
    "pmset": ["pmset", "-g"],
    "therm": ["pmset", "-g", "therm"],
    "rdma_ctl": ["rdma_ctl", "status"],
    "ibv_devices": ["ibv_devices"],
}
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "MLX_METAL_FAST_SYNCH")  # that checks look at
MARK = "mlxdist-probe "  # before a line of JSON, since a login shell may print as well
_SESSION = re.compile(r"(?:ompi|prted)\.([1-9][0-9]{0,8})")  # mpirun's folder, by pid
_SSH_PORT = 22  # any port shows that packets arrive
_CONNECT_TIMEOUT = 3.0  # seconds
_QUERY_TIMEOUT = 30.0  # seconds

# Python looks for modules of a program without a file in the working folder first,
# where another user may have put some.
_LEAVE_FOLDER = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
"""
# Run in processes of their own, because a broken library may crash them.
_QUERY_MLX = """
import json
import mlx.core as mx
name = mx.device_info().get("device_name", "unnamed")
print(json.dumps({"kind": mx.default_device().type.name, "name": name}))
"""
_QUERY_MPI = """
import json
try:
    from mlxdist.launcher import openmpi
    from mpi4py import MPI
    print(json.dumps({
        "libmpi": openmpi.find_libmpi(),
        "mpirun": openmpi.find_mpirun(),
        "version": MPI.Get_library_version().split(",")[0].strip(),
    }))
except ModuleNotFoundError as error:
    print(json.dumps({"error": str(error), "missing_module": error.name}))
"""


def source() -> str:
    """Return this program with the code that it imports, as one text for Python."""
    folder = Path(__file__).parent
    lines = ["from __future__ import annotations\n", _LEAVE_FOLDER]
    for name in ("environment.py", "gpus.py", "interface_output.py", "probe.py"):
        for line in folder.joinpath(name).read_text().splitlines(keepends=True):
            if not line.startswith(("from __future__ ", "from .")):
                lines.append(line)
    return "".join(lines)


def collect(peers: list[str]) -> dict[str, Any]:
    """Return the whole report.

    Args:
        peers: names of the other hosts, to be reached from here.
    """
    folder = tempfile.gettempdir()
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "macos": platform.mac_ver()[0],
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES + CUDA_BACKENDS},
        "variables": {k: v for k, v in snapshot().items() if k in _VARIABLES},
        "device": _query(_QUERY_MLX),
        "gpus": count_gpus(),
        "mac": _mac_output(),
        "mpi": _query(_QUERY_MPI),
        "tmpdir": folder,
        "leftovers": leftovers(folder),
        "memory_free": _free_memory(),
        "disk_free": shutil.disk_usage(folder).free,
        "network": interface_output(),
        "peers": {name: _reach(name) for name in peers},
        "clock": time.time(),
    }


def _mac_output() -> dict[str, str]:
    """Return what macOS's programs print; nothing on other systems."""
    if platform.system() != "Darwin":
        return {}
    return {name: run_program(x).stdout for name, x in _MAC_PROGRAMS.items()}


def _version(name: str) -> str | None:
    import importlib.metadata  # 20 ms

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _query(program: str) -> dict[str, Any]:
    """Return the JSON that a Python program prints, or {"error": its last line}."""
    done = run_program([sys.executable, "-c", _LEAVE_FOLDER + program], _QUERY_TIMEOUT)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1]}


def leftovers(folder: str) -> list[str]:
    """Return folders that Open MPI's daemons left behind when they were killed.

    A later daemon with the same process id would fail: "The PMIx server's listener
    thread failed to start". Only this user's folders of this host are returned, since
    several hosts may share `folder`.
    """
    host = socket.gethostname().partition(".")[0]
    paths = []
    for entry in os.scandir(folder):
        name = _SESSION.fullmatch(entry.name)
        if not name or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            is_ours = entry.stat(follow_symlinks=False).st_uid == os.getuid()
            files = {tuple(x.split(".")[:2]) for x in os.listdir(entry.path)}
        except OSError:  # gone by now, or another user's
            continue
        if is_ours and ("pmix", host) in files and not _is_running(int(name[1])):
            paths.append(entry.path)
    return sorted(paths)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _free_memory() -> int | None:
    """Return the bytes that a program could still allocate, None if unknown."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages = 0
    for line in run_program(["/usr/bin/vm_stat"]).stdout.splitlines():
        name, _, number = line.partition(":")
        if name in ("Pages free", "Pages inactive", "Pages purgeable"):
            pages += int(number.strip(" ."))
    return pages * os.sysconf("SC_PAGE_SIZE") if pages else None


def _reach(name: str) -> dict[str, Any]:
    """Return {} if packets get to a host and back, else the error.

    A refused connection shows that they do. `resolved` is whether the name has an
    address.
    """
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        message = f"unknown name: {error.strerror or error}"
        return {"error": message, "resolved": False}
    try:
        connection = socket.create_connection(
            (address, _SSH_PORT), timeout=_CONNECT_TIMEOUT
        )
        connection.close()
    except ConnectionRefusedError:
        return {}
    except OSError as error:
        message = f"{address}: {error.strerror or error}"
        return {"error": message, "resolved": True}
    return {}


def main(peers: list[str]) -> None:
    print(MARK + json.dumps(collect(peers)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
