"""`mlxdist test`: passes where all is well, and fails where something is broken."""

import ipaddress
import json
import subprocess
import sys

import pytest

from mlxdist import cli
from mlxdist.doctor import selftest as trial
from mlxdist.doctor import subjob as small_job
from mlxdist.doctor import survey as examine
from mlxdist.launcher import interfaces, network, probe
from tests.support import (
    jobs,
    netns,
)
from tests.support.cluster import VirtualCluster
from tests.support.fake_hosts import hosts  # noqa: F401

TEST = [sys.executable, "-m", "mlxdist.cli", "test"]
NAMES = [
    "equals one process",
    "sharded equals replicated",
    "a killed rank is noticed",
    "a checkpoint survives it",
]


def lines(ran):
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [(x[:6].strip(), x[7:33].strip()) for x in ran.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 3])
def test_this_machine(n, tmp_path):
    ran = jobs.run([*TEST, "-n", str(n)], cwd=tmp_path)
    assert lines(ran) == [("ok", name) for name in NAMES]
    assert ran.stdout.count("every bit") == 3
    assert f"rank {n - 1} was killed, exit code " in ran.stdout


@pytest.mark.skipif(netns.problem() is not None, reason=str(netns.problem()))
def test_hosts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VirtualCluster(2) as cluster:
        ran = jobs.run(cluster.command([*TEST, "-H", "node1,node2"]))
    assert lines(ran) == [("ok", name) for name in NAMES]
    assert "rank 1 on node2 was killed, exit code " in ran.stdout


def test_unknown_hosts_are_tried_once(hosts, tmp_path):  # noqa: F811
    env = {**hosts, "UNREACHABLE": "h2"}
    ran = jobs.run([*TEST, "-H", "h1,h2"], env=env, cwd=tmp_path)
    assert ran.returncode == 1
    first, *rest = ran.stdout.splitlines()
    assert first.startswith("FAILED a job comes up ")
    assert "lost touch with h2; " in first
    assert list(filter(None, rest)) == [
        "No job comes up over h1,h2; nothing else was tried.",
        "`mlxdist doctor -H h1,h2` may tell why.",
    ]


# What jobs may say, and what follows from it


def ended(code=0, said="", **told):
    return small_job.Ended(code, told, said, 1.0)


EQUAL = {"one process": 0.0, "sharded": 0.0, "identical": True, "device": "cpu"}


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True]),
        ({"one process": 1e-8}, [True, True]),
        ({"one process": 1e-3}, [False, True]),
        ({"sharded": 0.1}, [True, False]),
        ({"sharded": float("nan")}, [True, False]),
        ({"identical": False}, [False, False]),
    ],
)
def test_equality(changes, passed):
    found = trial._equal(ended(**{**EQUAL, **changes}))
    assert [one.passed for one in found] == passed


def test_a_job_that_fails_fails_its_trials():
    for one in trial._equal(ended(3, "why", **EQUAL)):
        assert (one.passed, one.found) == (False, "why")
    assert not trial._survived(ended(1, "why")).passed
    assert not trial._survived(ended(0, "why")).passed
    assert not trial._survived(ended(0, checkpoint=1.0)).passed


@pytest.mark.parametrize(
    ("code", "said", "passed"),
    [
        (
            137,
            "mlxdist run: rank 1 of 2 did not finish; rank 0 was ended with it",
            True,
        ),
        (137, "mlxdist run: ranks 0 and 1 of 2 did not finish", True),
        (0, "", False),
        (1, "mlxdist run: rank 0 failed (x)", False),
    ],
)
def test_a_killed_rank(code, said, passed):
    assert trial._noticed(ended(code, said, saved=True), 1).passed == passed
    assert not trial._noticed(ended(code, said), 1).passed


def test_a_job_without_mpirun(monkeypatch):
    def broken(*_args, **_options):
        return subprocess.CompletedProcess([], 2, "", "mlxdist: error: no Open MPI\n")

    monkeypatch.setattr(subprocess, "run", broken)
    (found,) = trial.trials(2, ["-n", "2"])
    assert found[:3] == ("a job comes up", False, "mlxdist: error: no Open MPI")


def test_a_job_that_comes_up_and_fails_is_not_the_last(monkeypatch):
    up = f'{probe.MARK}{{"up": true}}\n'

    def failing(*_args, **_options):
        return subprocess.CompletedProcess([], 1, up, "mlxdist run: rank 1 failed\n")

    monkeypatch.setattr(subprocess, "run", failing)
    found = list(trial.trials(2, ["-n", "2"]))
    assert [one.name for one in found] == NAMES
    assert not any(one.passed for one in found)
    assert all("rank 1 failed" in one.found for one in found)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("\0\0 mlxdist run: rank 0 failed.\nhint\n----\n", "rank 0 failed."),
        ("one\ntwo\n \n-----\n", "two"),
        ("", "exit code 3"),
    ],
)
def test_the_last_word_of_a_job(said, wanted, monkeypatch):
    done = subprocess.CompletedProcess([], 3, f"x\n{probe.MARK}{{}}\n", said)
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: done)
    job = small_job.run([], "mlxdist.doctor.link_job", patience=1)
    assert (job.code, job.said) == (3, wanted)
    command = "mlxdist run --iface eth0 -n 2 -m mlxdist.doctor.link_job"
    found = examine.try_links([], ["--iface", "eth0"])
    assert found == {"error": wanted, "command": command}


@pytest.mark.parametrize("command", ["test", "doctor"])
def test_small_jobs_take_the_way_that_a_user_s_job_takes(
    command, tmp_path, monkeypatch, capsys
):
    """By a host file's addresses and variables, which `-H` does not tell."""
    networks = [("eth0", "10.0.0.1/24"), ("bridge0", "10.1.0.1/24")]
    own = [
        interfaces.Interface(name, "wired", ipaddress.IPv4Interface(address))
        for name, address in networks
    ]
    listed = [{"ssh": f"mac{i}", "ips": [f"10.1.0.{i}"]} for i in (1, 2)]
    told = {"hosts": listed, "envs": ["MLX_METAL_FAST_SYNCH=1"]}
    (tmp_path / "hosts.json").write_text(json.dumps(told))
    started = []

    def run(options, *arguments, patience):
        started.append(options)
        return small_job.Ended(1, {}, "not tried", 0.0)

    monkeypatch.setattr(network, "local_interfaces", lambda: own)
    monkeypatch.setattr(small_job, "run", run)
    monkeypatch.setattr(examine, "examine", lambda *_: {})
    assert cli.main([command, "--hostfile", str(tmp_path / "hosts.json")]) == 1
    assert "not tried" in capsys.readouterr().out
    text = " ".join(started[0])
    assert "--iface 10.1.0.0/24 --env MLX_METAL_FAST_SYNCH=1" in text
    assert "-H mac1:1,mac2:1" in text
