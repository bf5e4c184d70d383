"""`mlxdist run` over hosts with wires: what is trained, and a host that is lost."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support import (
    jobs,
    netns,
)
from tests.support.cluster import VirtualCluster

pytestmark = pytest.mark.skipif(
    netns.problem() is not None, reason=str(netns.problem())
)
STEPS = 4
RUN = [sys.executable, "-m", "mlxdist.cli", "run"]

TRAIN = """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, mlxdist
world = mlxdist.init()
world.seed(1)
model = nn.Sequential(nn.Linear(32, 256), nn.Linear(256, 8))
optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-2), shard=True)
optimizer.init(model)
step = nn.value_and_grad(model, lambda x, y: nn.losses.mse_loss(model(x), y))
mx.random.seed(world.rank)
for _ in range(8):
    loss, gradients = step(mx.random.normal((16, 32)), mx.random.normal((16, 8)))
    optimizer.update(model, gradients)
    mx.eval(model.parameters())
    world.print(float(world.mean(loss.item())).hex())
world.print(world.identical(model))
"""

LOOP = """
import mlxdist, time
world = mlxdist.init()
print("ready", flush=True)
while True:
    world.barrier()
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the cluster's commands run
    return tmp_path


def run_on(cluster, *arguments, cwd, timeout=60.0):
    variables = {"OMP_NUM_THREADS": "1"}
    command = cluster.command([*RUN, *arguments], environment=variables)
    return jobs.run(command, cwd=cwd, timeout=timeout)


@pytest.mark.parametrize(
    "n", [4, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3))]
)
def test_hosts_train_as_one_machine_does(tmp_path, n):
    (tmp_path / "train.py").write_text(TRAIN)
    here = jobs.run([*RUN, "-n", str(n), "train.py"], cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    with VirtualCluster(n) as cluster:
        names = [host.name for host in cluster.hosts]
        (tmp_path / "hosts").write_text("\n".join(f"{x} slots=1" for x in names))
        there = run_on(cluster, "--hostfile", "hosts", "train.py", cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    assert there.stdout.splitlines()[-1] == "True"
    assert len(there.stdout.splitlines()) == 9
    assert there.stdout == here.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_main_job_trains_as_on_one_machine(tmp_path, n):
    train = [
        str(jobs.LAUNCH / "train_lm.py"),
        "--steps",
        str(STEPS),
        "--batch-size",
        "4",
    ]
    here = jobs.run([*RUN, "-n", str(n), *train], cwd=tmp_path, timeout=290)
    assert here.returncode == 0, here.stderr
    with VirtualCluster(n) as cluster:
        listed = [{"ssh": host.name, "ips": [host.address]} for host in cluster.hosts]
        (tmp_path / "hosts.json").write_text(json.dumps(listed))
        options = ["--hostfile", "hosts.json", "--env", "OMP_NUM_THREADS=1"]
        there = run_on(
            cluster, *options, *train, "--name", "there", cwd=tmp_path, timeout=290
        )
    assert there.returncode == 0, there.stderr
    losses, elsewhere = (losses_of(tmp_path, name) for name in ("lm", "there"))
    assert losses == elsewhere
    assert len(losses) == STEPS


def losses_of(folder, name):
    lines = (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    told = map(json.loads, lines)
    return [(one["loss"], one["grad_norm"]) for one in told if "loss" in one]


@pytest.mark.parametrize(("how", "seconds"), [("kill_agent", 20), ("cut", 30)])
def test_a_lost_host_ends_the_job(tmp_path, how, seconds):
    (tmp_path / "loop.py").write_text(LOOP)
    with VirtualCluster(3) as cluster:
        command = cluster.command([*RUN, "-H", "node1,node2,node3", "loop.py"])
        process = jobs.start(command, cwd=tmp_path)
        try:
            assert [process.stdout.readline() for _ in range(3)] == 3 * ["ready\n"]
            time.sleep(1)  # what is on the wire now has arrived
            begun = time.monotonic()
            getattr(cluster, how)(1)
            _, err = process.communicate(timeout=40)
            assert time.monotonic() - begun < seconds
            # The ranks beyond a cut wire end as well, by themselves.
            while left := cluster.processes(1, "python"):
                assert time.monotonic() - begun < seconds + 10, left
                time.sleep(0.1)
        finally:
            jobs.end_session(process.pid)
            process.communicate()
    assert process.returncode in (1, 137)  # mpirun's own, or what ended its ranks
    assert "mlxdist run: lost touch with node2; rank 1 on node2 of 3 did not" in err
    assert "rank 0 on node1, rank 2 on node3 were ended with it; mpirun exited" in err


DIE = """
import os, signal, sys, time, mlxdist
world = mlxdist.init()
world.barrier()
if world.rank == int(sys.argv[1]):
    os.kill(os.getpid(), int(sys.argv[2]))
while True:
    world.barrier()
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_dies_is_told_from_those_that_notice(tmp_path, victim, number):
    """Open MPI ends the others itself, and may blame one of them."""
    (tmp_path / "die.py").write_text(DIE)
    with VirtualCluster(3) as cluster:
        hosts = ["-H", "node1,node2,node3"]
        arguments = [str(victim), str(int(number))]
        ran = run_on(cluster, *hosts, "die.py", *arguments, cwd=tmp_path)
    # Which one of those who say nothing died is not always known, but never another.
    told = ran.stderr.partition("mlxdist run: ")[2]
    dead, _, ended = told.partition(" of 3 did not finish; ")
    assert f"rank {victim} on node{victim + 1}" in dead, ran.stderr
    assert f"rank {victim}" not in ended
    if number == signal.SIGTERM:
        assert dead == f"rank {victim} on node{victim + 1}"
    assert ran.returncode not in (0, 2)


def test_a_host_that_is_not_there(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    with VirtualCluster(2) as cluster:
        cluster.cut(1)
        ran = run_on(cluster, "-H", "node1,node2", "loop.py", cwd=tmp_path)
    assert ran.returncode not in (0, 2)
    assert "ssh: connect to host node2 port 22: No route to host" in ran.stderr
    assert "`mlxdist doctor -H node1:1,node2:1` finds out what is wrong" in ran.stderr


def test_the_ranks_path_is_not_mpirun_s(tmp_path):
    """The cluster's ssh is on this command's PATH alone."""
    (tmp_path / "show.py").write_text("import os; print(os.environ['PATH'])")
    options = ["--env", "PATH=/usr/bin:/bin", "-H", "node1,node2"]
    with VirtualCluster(2) as cluster:
        ran = run_on(cluster, *options, "show.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all("/usr/bin:/bin" in line for line in ran.stdout.splitlines())


def test_mpi_keeps_to_the_network_that_reaches_all_hosts(tmp_path):
    """A second network that leads nowhere, on each host, as a VPN or Wi-Fi might."""
    (tmp_path / "train.py").write_text(TRAIN)
    with VirtualCluster(2) as cluster:
        for number, host in enumerate(cluster.hosts, 1):
            pair = ("eth9", "type", "veth", "peer", "name", "end")
            host.space.run("ip", "link", "add", *pair)
            for end in ("eth9", "end"):
                host.space.run("ip", "link", "set", end, "up")
            host.space.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth9")
        shown = run_on(
            cluster, "--dry-run", "-H", "node1,node2", "train.py", cwd=tmp_path
        )
        assert "btl_tcp_if_include 10.77.0.0/24" in shown.stdout
        ran = run_on(cluster, "-H", "node1,node2", "train.py", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        command = [*RUN, "--iface", "eth9", "--dry-run", "-H", "node1,node2", "x.py"]
        shown = subprocess.run(
            cluster.command(command), capture_output=True, text=True, check=True
        )
        assert "btl_tcp_if_include 10.99.0.0/24" in shown.stdout
