"""cli/test: `mlxdist test` as a whole, on this machine and over hosts."""

import ipaddress
import json
import sys

import pytest

from mlxdist import cli
from mlxdist.doctor import subjob, survey
from mlxdist.doctor.subjob import JobResult
from mlxdist.launcher import interfaces, network
from tests.support import jobs, netns
from tests.support.cluster import VirtualCluster

TEST = [sys.executable, "-m", "mlxdist.cli", "test"]
ALL_PASSED = [
    ("ok", "equals one process"),
    ("ok", "sharded equals replicated"),
    ("ok", "a killed rank is noticed"),
    ("ok", "a checkpoint survives it"),
]


def table(ran):
    """Return sign and name of each line of a test that passed."""
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [(x[:6].strip(), x[7:33].strip()) for x in ran.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 3])
def test_test_on_this_machine_passes(n, tmp_path):
    ran = jobs.run([*TEST, "-n", str(n)], cwd=tmp_path)
    assert table(ran) == ALL_PASSED
    assert ran.stdout.count("bit for bit") == 3
    assert f"killed rank {n - 1}: " in ran.stdout


@pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem()))
def test_test_over_hosts_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VirtualCluster(2) as cluster:
        ran = jobs.run(cluster.command([*TEST, "-H", "node1,node2"]))
    assert table(ran) == ALL_PASSED
    assert "killed rank 1 on node2: " in ran.stdout


def test_test_over_an_unreachable_host_ends_after_the_first_job(hosts, tmp_path):
    # A folder without a space in its path, where mpirun's agent can be replaced.
    env = {**hosts, "UNREACHABLE": "h2", "TMPDIR": "/tmp"}
    ran = jobs.run([*TEST, "-H", "h1,h2"], env=env, cwd=tmp_path)
    assert ran.returncode == 1
    first, *rest = ran.stdout.splitlines()
    assert first.startswith("FAILED a job starts ")
    assert "lost touch with h2; " in first
    assert list(filter(None, rest)) == [
        "No job starts over h1,h2; nothing else was tried.",
        "`mlxdist doctor -H h1,h2` may find the cause.",
    ]


@pytest.mark.parametrize(
    ("command", "machines_option"),
    [("test", "--hostfile {path}"), ("doctor", "-H mac1:1,mac2:1")],
)
def test_check_jobs_use_addresses_and_variables_of_the_host_file(
    command, machines_option, tmp_path, monkeypatch, capsys
):
    """They are lost in the `-H` of doctor's own `mlxdist run`."""
    local = [
        interfaces.Interface(name, "wired", ipaddress.IPv4Interface(address))
        for name, address in [("eth0", "10.0.0.1/24"), ("bridge0", "10.1.0.1/24")]
    ]
    machines = [{"ssh": f"mac{i}", "ips": [f"10.1.0.{i}"]} for i in (1, 2)]
    host_file = {"hosts": machines, "envs": ["MLX_METAL_FAST_SYNCH=1"]}
    (tmp_path / "hosts.json").write_text(json.dumps(host_file))
    jobs_started = []

    def run(options, *arguments, timeout):
        jobs_started.append(options)
        return JobResult(1, "not tried", 0.0)

    monkeypatch.setattr(network, "local_interfaces", lambda: local)
    monkeypatch.setattr(subjob, "run", run)
    monkeypatch.setattr(survey, "ask_hosts", lambda *_: [])
    assert cli.main([command, "--hostfile", str(tmp_path / "hosts.json")]) == 1
    assert "not tried" in capsys.readouterr().out
    options = " ".join(jobs_started[0])
    assert "--iface 10.1.0.0/24 --env MLX_METAL_FAST_SYNCH=1" in options
    assert machines_option.format(path=tmp_path / "hosts.json") in options
