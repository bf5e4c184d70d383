"""`mlxdist doctor` on hosts with wires: each of what can be wrong is caught."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from mlxdist.launcher import openmpi
from tests.support import (
    jobs,
    netns,
)
from tests.support.cluster import VirtualCluster

pytestmark = pytest.mark.skipif(
    netns.problem() is not None, reason=str(netns.problem())
)
DOCTOR = [sys.executable, "-m", "mlxdist.cli", "doctor"]


def see(cluster, *arguments):
    """The exit code, and what is wrong by check and host."""
    command = cluster.command([*DOCTOR, "--json", *arguments])
    ran = jobs.run(command, timeout=100)
    told = json.loads(ran.stdout)
    wrong = [one for one in told["findings"] if one["level"] == "failure"]
    assert told["ok"] == (not wrong) == (ran.returncode == 0)
    return {(one["check"], one["host"]): one for one in wrong}, told["findings"]


def put_over(cluster, host, path, source):
    """One host sees another file there; mounts are each host's own."""
    cluster.hosts[host].space.run("mount", "--bind", str(source), str(path))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_hosts_that_are_well():
    with VirtualCluster(3) as cluster:
        wrong, found = see(cluster, "-H", "node1,node2,node3")
    assert wrong == {}
    told = {one["check"]: one["found"] for one in found}
    assert told["host names"] == "node1, node2, node3"
    assert told["shared network"] == "10.77.0.0/24 (wired)"
    assert told["exact sum"] == "on 3 ranks, by MLX and by MPI"
    pairs = [one["found"] for one in found if one["check"] == "link"]
    assert sorted(x.partition(":")[0] for x in pairs) == [
        *("node1 - node2", "node1 - node3", "node2 - node3")
    ]
    for pair in pairs:  # of 125 MB/s; half of it where Open MPI sends in turns
        assert 20 < float(re.search(r"([\d,]+) MB/s", pair)[1]) < 125


def test_a_slow_wire_is_no_failure():
    """Less travels over it: 16 MiB, eleven times, would take minutes."""
    began = time.monotonic()
    with VirtualCluster(2, rate="10mbit") as cluster:
        wrong, found = see(cluster, "-H", "node1,node2")
    assert wrong == {}
    (link,) = [one["found"] for one in found if one["check"] == "link"]
    assert " 1 MB/s each way" in link
    assert time.monotonic() - began < 40


def test_equal_host_names_are_caught():
    with VirtualCluster(["mac", "mac"]) as cluster:
        wrong, found = see(cluster, "-H", "10.77.0.1,10.77.0.2")
    assert set(wrong) == {("host names", "")}
    assert "exact sum" not in {one["check"] for one in found}  # no job was started


def test_an_unreachable_host_is_caught():
    with VirtualCluster(2) as cluster:
        cluster.cut(1)
        wrong, _ = see(cluster, "-H", "node1,node2")
    one = wrong["reached", "node2"]
    assert one["found"] == "ssh: connect to host node2 port 22: No route to host"
    assert "ping -c 3 node2" in one["mend"]
    assert "node2: 10.77.0.2: " in wrong["reaches others", "node1"]["found"]


def test_a_wrong_libmpi_is_caught(tmp_path):
    library = Path(openmpi.find_libmpi())
    text = library.read_bytes()
    own, other = b"Open MPI v%d.%d.%d", b"Open MPI v%d.%d.0\0"
    assert own in text
    (tmp_path / "libmpi").write_bytes(text.replace(own, other))
    with VirtualCluster(2) as cluster:
        put_over(cluster, 1, library, tmp_path / "libmpi")
        wrong, _ = see(cluster, "-H", "node1,node2")
    assert set(wrong) == {("libmpi", "node2")}
    one = wrong["libmpi", "node2"]
    found, wanted = re.findall(r"Open MPI v([\d.]+)", one["found"])
    assert found == wanted.rpartition(".")[0] + ".0"
    assert one["mend"].startswith("ssh node2 ")
    assert one["mend"].endswith(f"--force-reinstall openmpi=={wanted}")


def test_another_python_is_caught(tmp_path):
    (tmp_path / "other.py").write_text(
        "import platform, sys\n"
        "platform.python_version = lambda: '3.9.1'\n"
        "del sys.argv[0]\n"
        "exec(sys.stdin.read())\n"
    )
    (tmp_path / "python").write_text(
        "#!/bin/sh\n"
        f"[ $(hostname) = node1 ] && exec {sys.executable} $@\n"
        f"exec {sys.executable} {tmp_path}/other.py $@\n"
    )
    (tmp_path / "python").chmod(0o755)
    with VirtualCluster(2) as cluster:
        python = str(tmp_path / "python")
        wrong, _ = see(cluster, "--python", python, "-H", "node1,node2")
        absent, _ = see(cluster, "--python", "/no/python", "-H", "node1,node2")
    assert set(wrong) == {("Python", "node2")}
    one = wrong["Python", "node2"]
    assert one["found"] == f"3.9.1 at {sys.executable}"
    assert one["mend"].startswith(f"install Python {sys.version.split()[0]} there")
    mend = absent["reached", "node2"]["mend"]
    assert mend.endswith("on node2, at /no/python, or give --python another path")


def test_an_empty_wheel_is_caught(tmp_path):
    from importlib import metadata

    about = next(
        path.locate() for path in metadata.files("openmpi") if path.name == "METADATA"
    )
    text = Path(about).read_text()
    version = metadata.version("openmpi")
    (tmp_path / "METADATA").write_text(
        text.replace(f"\nVersion: {version}", "\nVersion: 0.0.0")
    )
    with VirtualCluster(2) as cluster:
        put_over(cluster, 1, about, tmp_path / "METADATA")
        wrong, _ = see(cluster, "-H", "node1,node2")
    assert set(wrong) == {("openmpi", "node2")}
    assert "an empty wheel" in wrong["openmpi", "node2"]["found"]


def test_an_mlx_that_cannot_compute_is_caught(tmp_path):
    """As pip leaves it on Linux where it is asked for `mlx` alone."""
    import mlx.core as mx

    backend = Path(mx.__file__).parent / "lib" / "libmlx.so"
    (tmp_path / "nothing").touch()
    with VirtualCluster(2) as cluster:
        put_over(cluster, 1, backend, tmp_path / "nothing")
        wrong, _ = see(cluster, "-H", "node1,node2")
    assert set(wrong) == {("device", "node2")}
    one = wrong["device", "node2"]
    assert "ImportError" in one["found"]
    assert "mlx[cpu]" in one["mend"]
