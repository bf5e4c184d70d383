"""Jobs over hosts with wires of their own: training, and hosts that are lost."""

import json
import signal
import subprocess
import time

import pytest

from tests.support import jobs, netns
from tests.support.cluster import VirtualCluster

pytestmark = pytest.mark.skipif(
    netns.problem() is not None, reason=str(netns.problem())
)
STEPS = 4
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


@pytest.fixture
def run_on(run_command, tmp_path):
    """Runs `mlxdist run` on the first host of a cluster."""

    def start(cluster, *arguments, timeout=100.0):
        variables = {"OMP_NUM_THREADS": "1"}
        command = cluster.command([*run_command, *arguments], environment=variables)
        return jobs.run(command, cwd=tmp_path, timeout=timeout)

    return start


@pytest.mark.parametrize(
    "n", [4, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3))]
)
def test_run_over_hosts_trains_as_on_one_machine(run_on, run_command, tmp_path, n):
    (tmp_path / "train.py").write_text(TRAIN)
    local = jobs.run([*run_command, "-n", str(n), "train.py"], cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    with VirtualCluster(n) as cluster:
        names = [host.name for host in cluster.hosts]
        (tmp_path / "hosts").write_text("\n".join(f"{x} slots=1" for x in names))
        remote = run_on(cluster, "--hostfile", "hosts", "train.py")
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout.splitlines()[-1] == "True"
    assert len(remote.stdout.splitlines()) == 9
    assert remote.stdout == local.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_run_over_hosts_trains_the_example_as_on_one_machine(
    run_on, run_command, tmp_path, n
):
    train = [str(jobs.LAUNCH / "train_lm.py"), "--steps", str(STEPS)]
    train += ["--batch-size", "4"]
    local = jobs.run([*run_command, "-n", str(n), *train], cwd=tmp_path, timeout=290)
    assert local.returncode == 0, local.stderr
    with VirtualCluster(n) as cluster:
        entries = [{"ssh": host.name, "ips": [host.address]} for host in cluster.hosts]
        (tmp_path / "hosts.json").write_text(json.dumps(entries))
        options = ["--hostfile", "hosts.json", "--env", "OMP_NUM_THREADS=1"]
        remote = run_on(cluster, *options, *train, "--name", "remote", timeout=290)
    assert remote.returncode == 0, remote.stderr
    losses = losses_of(tmp_path, "lm")
    assert losses_of(tmp_path, "remote") == losses
    assert len(losses) == -(-STEPS // 10)


def losses_of(folder, name):
    lines = (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [
        (one["train_loss"], one["grad_norm"]) for one in records if "train_loss" in one
    ]


@pytest.mark.parametrize(
    "how", ["kill_agent", pytest.param("cut", marks=pytest.mark.long)]
)
def test_run_that_loses_a_host_ends_and_names_it(run_command, tmp_path, how):
    (tmp_path / "loop.py").write_text(LOOP)
    with VirtualCluster(3) as cluster:
        command = cluster.command([*run_command, "-H", "node1,node2,node3", "loop.py"])
        process = jobs.start(command, cwd=tmp_path)
        try:
            assert [process.stdout.readline() for _ in range(3)] == 3 * ["ready\n"]
            time.sleep(1)  # what is on the wire now has arrived
            getattr(cluster, how)(1)
            _, err = process.communicate(timeout=60)
            # The ranks beyond a cut wire end as well, by themselves.
            assert jobs.wait_until(lambda: not cluster.processes(1, "python"))
        finally:
            jobs.end_session(process.pid)
            process.communicate()
    assert process.returncode in (1, 137)  # mpirun's own, or what ended its ranks
    assert "mlxdist run: lost touch with node2; rank 1 of 3 on node2 did not" in err
    assert "rank 0 on node1, rank 2 on node3 were ended with it; " in err


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


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (0, signal.SIGTERM),
        (2, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.long),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_run_tells_the_rank_that_died_from_those_that_lost_it(
    run_on, tmp_path, victim, number
):
    """Open MPI ends the others itself, and may blame one of them."""
    (tmp_path / "die.py").write_text(DIE)
    with VirtualCluster(3) as cluster:
        hosts = ["-H", "node1,node2,node3"]
        arguments = [str(victim), str(int(number))]
        done = run_on(cluster, *hosts, "die.py", *arguments)
    # The message may name other silent ranks too, but never leaves out the dead one.
    message = done.stderr.rpartition("mlxdist run: ")[2].splitlines()[0]
    died, _, ended = message.rpartition("; ")[0].rpartition("; ")
    assert f"rank {victim} " in died, done.stderr
    assert f"on node{victim + 1}" in died
    assert f"rank {victim}" not in ended
    if number == signal.SIGTERM:
        assert died == f"rank {victim} of 3 on node{victim + 1} did not finish"
    assert done.returncode not in (0, 2)


def test_run_with_an_unreachable_host_names_it_and_doctor(run_on, tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    with VirtualCluster(2) as cluster:
        cluster.cut(1)
        done = run_on(cluster, "-H", "node1,node2", "loop.py")
    assert done.returncode == 255  # that of ssh
    assert "ssh: connect to host node2 port 22: No route to host" in done.stderr
    assert "`mlxdist doctor -H node1:1,node2:1` finds out what is wrong" in done.stderr


def test_run_with_another_path_for_the_ranks_finds_ssh(run_on, tmp_path):
    """The cluster's ssh is on the PATH of `mlxdist run` alone."""
    (tmp_path / "show.py").write_text("import os; print(os.environ['PATH'])")
    options = ["--env", "PATH=/usr/bin:/bin", "-H", "node1,node2"]
    with VirtualCluster(2) as cluster:
        done = run_on(cluster, *options, "show.py")
    assert done.returncode == 0, done.stderr
    assert ["/usr/bin:/bin" in line for line in done.stdout.splitlines()] == 2 * [True]


def test_run_over_hosts_uses_the_network_that_reaches_all(
    run_on, run_command, tmp_path
):
    """Each host has a second network that leads nowhere, as a VPN may."""
    (tmp_path / "train.py").write_text(TRAIN)
    with VirtualCluster(2) as cluster:
        for number, host in enumerate(cluster.hosts, 1):
            pair = ("eth9", "type", "veth", "peer", "name", "end")
            host.space.run("ip", "link", "add", *pair)
            for end in ("eth9", "end"):
                host.space.run("ip", "link", "set", end, "up")
            host.space.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth9")
        dry_run = run_on(cluster, "--dry-run", "-H", "node1,node2", "train.py")
        assert "btl_tcp_if_include 10.77.0.0/24" in dry_run.stdout
        done = run_on(cluster, "-H", "node1,node2", "train.py")
        assert done.returncode == 0, done.stderr
        command = [
            *run_command,
            "--iface",
            "eth9",
            "--dry-run",
            "-H",
            "node1,node2",
            "x.py",
        ]
        dry_run = subprocess.run(
            cluster.command(command), capture_output=True, text=True, check=True
        )
        assert "btl_tcp_if_include 10.99.0.0/24" in dry_run.stdout


def _add_cable(number, left, right):
    """Connect two hosts by a wire of their own, as a Thunderbolt cable does."""
    ends = (f"tb{number}l", f"tb{number}r")
    pair = ("type", "veth", "peer", "name", ends[1], "netns", str(right.space.pid))
    left.space.run("ip", "link", "add", ends[0], *pair)
    for last, (host, end) in enumerate(zip((left, right), ends, strict=True), 1):
        address = f"192.168.0.{4 * number + last}/30"
        host.space.run("ip", "addr", "add", address, "dev", end)
        host.space.run("ip", "link", "set", end, "up")


SHOW_TRAFFIC = """
lines = [line.split() for line in open("/proc/net/dev")]
sent = {x[0].strip(":"): int(x[9]) for x in lines if x[0].endswith(":")}
cables = sum(sent[name] for name in sent if name.startswith("tb"))
print(world.backend, 8 * 40_000 < cables, sent["wire"] < cables, flush=True)
"""


@pytest.mark.long
def test_run_over_a_ring_of_cables_sends_gradients_over_them(run_on, tmp_path):
    """The host file of `mlx.distributed_config --backend ring`: each host's address is
    that of its cable to the host before it. No network joins all hosts but the wire.
    """
    (tmp_path / "train.py").write_text(TRAIN + SHOW_TRAFFIC)
    with VirtualCluster(3) as cluster:
        for number, host in enumerate(cluster.hosts):
            _add_cable(number, host, cluster.hosts[(number + 1) % 3])
        entries = [
            {"ssh": host.name, "ips": [f"192.168.0.{4 * before + 2}"], "rdma": []}
            for host, before in zip(cluster.hosts, (2, 0, 1), strict=True)
        ]
        content = {"backend": "ring", "envs": [], "hosts": entries}
        (tmp_path / "hosts.json").write_text(json.dumps(content))
        dry_run = run_on(cluster, "--dry-run", "--hostfile", "hosts.json", "train.py")
        assert "btl_tcp_if_include 10.77.0.0/24" in dry_run.stdout
        done = run_on(cluster, "--hostfile", "hosts.json", "train.py")
    assert done.returncode == 0, done.stderr
    *_, identical, first, second, third = done.stdout.splitlines()
    assert identical == "True"
    assert {first, second, third} == {"ring True True"}
