"""What one machine says of itself, for `mlxdist doctor`. Its output is one JSON line.

Sent to each host as text, through its Python's standard input, so that it tells what
is missing where mlxdist is not installed: nothing but the standard library here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

PACKAGES = ("mlxdist", "mlx", "mpi4py", "openmpi", "numpy")
MARK = "mlxdist-probe "  # before the JSON, since a login shell may print as well
_SESSION = re.compile(r"(?:ompi|prted)\.([1-9][0-9]{0,8})")  # and the process id
_SSH = 22  # any port would do
_PATIENCE = 3.0  # seconds to reach another host

# In processes of their own, which a broken library may end.
_ASK_MLX = """
import json
import mlx.core as mx
name = mx.device_info().get("device_name", "unnamed")
print(json.dumps({"kind": mx.default_device().type.name, "name": name}))
"""
_ASK_MPI = """
import json
from mlxdist.launcher import openmpi
from mpi4py import MPI
print(json.dumps({
    "libmpi": openmpi.find_libmpi(),
    "mpirun": openmpi.find_mpirun(),
    "version": MPI.Get_library_version().split(",")[0].strip(),
}))
"""


def collect(peers: list[str]) -> dict[str, Any]:
    """Everything; `peers` are the names of the other hosts, to be reached from here."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "macos": platform.mac_ver()[0],
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _ask(_ASK_MLX),
        "mpi": _ask(_ASK_MPI),
        "tmpdir": tempfile.gettempdir(),
        "leftovers": leftovers(tempfile.gettempdir()),
        "memory_free": _memory_free(),
        "disk_free": shutil.disk_usage(tempfile.gettempdir()).free,
        "network": network(),
        "peers": {name: _reach(name) for name in peers},
        "clock": time.time(),
    }


def _version(name: str) -> str | None:
    import importlib.metadata  # 20 ms, which a launcher has no use for

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ask(program: str) -> dict[str, Any]:
    done = _run([sys.executable, "-c", program], patience=30)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[
            -1
        ]
        return {"error": last}


def network() -> dict[str, Any]:
    """The raw text of what tells the interfaces: see interfaces.parse."""
    if platform.system() == "Darwin":
        return {
            "ifconfig": _run(["/sbin/ifconfig", "-a"]).stdout,
            "networksetup": _run(
                ["/usr/sbin/networksetup", "-listallhardwareports"]
            ).stdout,
        }
    devices = "/sys/class/net"
    names = os.listdir(devices) if os.path.isdir(devices) else []
    return {
        "ip": _run([shutil.which("ip") or "/sbin/ip", "-j", "-4", "address"]).stdout,
        "wireless": [n for n in names if os.path.exists(f"{devices}/{n}/wireless")],
    }


def leftovers(folder: str) -> list[str]:
    """Folders of Open MPI's daemons whose processes were killed; their paths.

    A later daemon with the same process id would end: "The PMIx server's listener
    thread failed to start". Only those that this user's processes made on this host:
    several hosts may share a folder.
    """
    host = socket.gethostname().partition(".")[0]
    found = []
    for entry in os.scandir(folder):
        name = _SESSION.fullmatch(entry.name)
        if not name or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
            made = {tuple(x.split(".")[:2]) for x in os.listdir(entry.path)}
        except OSError:  # gone by now, or another user's
            continue
        if own and ("pmix", host) in made and not _lives(int(name[1])):
            found.append(entry.path)
    return sorted(found)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _memory_free() -> int | None:
    """Bytes that a program could still have."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages = 0
    lines = _run(["/usr/bin/vm_stat"]).stdout.splitlines()
    for line in lines:
        name, _, number = line.partition(":")
        if name in ("Pages free", "Pages inactive", "Pages purgeable"):
            pages += int(number.strip(" ."))
    return pages * os.sysconf("SC_PAGE_SIZE") if pages else None


def _reach(name: str) -> str:
    """ "ok", or why no packet gets there and back: a refusal means that one did."""
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        return f"unknown name: {error.strerror or error}"
    try:
        socket.create_connection((address, _SSH), timeout=_PATIENCE).close()
    except ConnectionRefusedError:
        return "ok"
    except OSError as error:
        return f"{address}: {error.strerror or error}"
    return "ok"


def _run(command: list[str], patience: float = 10) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def main(peers: list[str]) -> None:
    print(MARK + json.dumps(collect(peers)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
