"""The virtual cluster: its hosts and wires, and that nothing of it remains."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import jobs, netns
from tests.support.attempts import any_of
from tests.support.cluster import VirtualCluster
from tests.support.wire import bits_per_second

PROBLEM = netns.problem()
needs_hosts = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

# Each host sends to the next one and receives from the previous one at once.
TRAFFIC = """
import socket, sys, threading, time
own, peer, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
server = socket.create_server((own, 5000))
def receive():
    connection, _ = server.accept()
    left = size
    while left:
        left -= len(connection.recv(min(left, 1 << 20)))
    connection.sendall(b"!")
thread = threading.Thread(target=receive)
thread.start()
print("ready", flush=True)
sys.stdin.readline()
client = socket.create_connection((peer, 5000))
began = time.perf_counter()
client.sendall(bytes(size))
client.recv(1)
print(8 * size / (time.perf_counter() - began))
thread.join()
"""

ALL_SUM = """
import mlx.core as mx
import mlxdist
world = mlxdist.init()
x = mx.arange(2**20) + world.rank
total = mx.distributed.all_sum(x, group=world.group)
wanted = world.size * mx.arange(2**20) + sum(range(world.size))
print(world.rank, world.host, mx.array_equal(total, wanted).item())
"""

MAKE_CLUSTER = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from tests.support.cluster import VirtualCluster
cluster = VirtualCluster(2)
ranks = subprocess.Popen(cluster.mpirun(2, ["sleep", "600"]))
while not all(cluster.processes(host, "sleep") for host in (0, 1)):
    pass
print(cluster.folder, *(space.net for space in cluster._keeper.namespaces), flush=True)
ranks.wait()
"""


def run(command, timeout=100):
    return jobs.run(command, timeout=timeout)


def run_again(command, attempts=3):
    """Run a command that starts Open MPI's mpirun, which may hang while it starts."""
    for _ in range(attempts - 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return run(command, timeout=30)
    return run(command, timeout=30)


def links():
    return sorted(os.listdir("/sys/class/net"))


def sent_bytes(cluster, host):
    """Return the bytes that a host has sent over its wire so far."""
    result = run(cluster.command(["cat", "/proc/net/dev"], host=host))
    (wire,) = (line for line in result.stdout.splitlines() if "wire:" in line)
    return int(wire.split()[9])


@pytest.mark.alone
@needs_hosts
@pytest.mark.parametrize("hosts", [2, pytest.param(3, marks=pytest.mark.long), 4])
def test_cluster_wires_carry_their_rate_in_both_directions_at_once(hosts):
    """At 100 Mbit/s, less 4.4% for headers and a little for TCP's slow start.

    It would be half of that in one direction after the other.
    """

    def are_carried():
        rates = measured_rates(hosts)
        assert max(rates) < 1.0
        return min(rates) > 0.65

    assert any_of(6, are_carried)


def measured_rates(hosts):
    """Return the rates of all wires in parts of 100 Mbit/s; each one is full."""
    with (
        VirtualCluster(hosts, rate="100mbit") as cluster,
        contextlib.ExitStack() as end,
    ):
        running = []
        for index, host in enumerate(cluster.hosts):
            peer = cluster.hosts[(index + 1) % hosts].address
            command = [sys.executable, "-c", TRAFFIC, host.address, peer, str(4 << 20)]
            pipe = subprocess.PIPE
            process = end.enter_context(
                subprocess.Popen(
                    cluster.command(command, host=index), stdin=pipe, stdout=pipe
                )
            )
            running.append(process)
        for process in running:
            assert process.stdout.readline() == b"ready\n"
        for process in running:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        return [float(process.stdout.readline()) / 1e8 for process in running]


@needs_hosts
@pytest.mark.parametrize("hosts", [pytest.param(2, marks=pytest.mark.long), 4])
def test_cluster_all_reduce_over_all_hosts_uses_the_wires(hosts, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(ALL_SUM)
    with VirtualCluster(hosts) as cluster:
        before = [sent_bytes(cluster, host) for host in range(hosts)]
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(jobs.ROOT)}
        command = [sys.executable, str(script)]
        result = run(cluster.mpirun(hosts, command, environment=variables))
        after = [sent_bytes(cluster, host) for host in range(hosts)]
    assert result.returncode == 0, result.stderr
    wanted = [f"{rank} node{rank + 1} True" for rank in range(hosts)]
    assert sorted(result.stdout.splitlines()) == wanted
    # An all-reduce sends 2(N-1)/N of its 4 MiB; shared memory would send nothing.
    least = 2 * (hosts - 1) / hosts * 4 * 2**20
    assert all(b - a > least for a, b in zip(before, after, strict=True))


@needs_hosts
def test_cluster_ssh_enters_a_host_with_a_login_environment():
    """Names resolve, and the environment is that of a login, not the caller's."""
    with VirtualCluster(["alpha", "beta"]) as cluster:
        shown = [
            "sh",
            "-c",
            "hostname; ssh -x -o BatchMode=yes root@beta 'hostname; env'",
        ]
        result = run(cluster.command(shown, environment={"SECRET": "1"}))
        first = run(
            cluster.command(["sh", "-c", "echo $SECRET"], environment={"SECRET": "1"})
        )
        nowhere = run(cluster.command(["ssh", "gamma", "true"]))
        looked_up = run(cluster.command(["getent", "hosts", "alpha"], host=1))
    assert result.stdout.splitlines()[:2] == ["alpha", "beta"]
    assert "SECRET" not in result.stdout
    assert first.stdout == "1\n"
    assert nowhere.returncode == 255
    assert "No route to host" in nowhere.stderr
    assert looked_up.stdout.split() == ["10.77.0.1", "alpha"]


@needs_hosts
def test_cluster_hosts_of_equal_names_are_reached_by_address():
    with VirtualCluster(["same", "same"]) as cluster:
        result = run(
            cluster.mpirun(2, ["sh", "-c", "hostname; readlink /proc/self/ns/net"])
        )
        nets = {host.space.net for host in cluster.hosts}
    assert result.stdout.splitlines().count("same") == 2
    assert nets < set(result.stdout.splitlines())


@needs_hosts
def test_cluster_cut_wire_carries_nothing_until_it_is_mended():
    ask = ["timeout", "1", "bash", "-c", "echo >/dev/tcp/10.77.0.2/5000"]
    listen = "import socket, time; s = socket.create_server(('', 5000)); time.sleep(60)"
    with VirtualCluster(2) as cluster, contextlib.ExitStack() as end:
        server = cluster.command([sys.executable, "-c", listen], host=1)
        listening = end.enter_context(subprocess.Popen(server))
        end.callback(listening.kill)
        assert jobs.wait_until(lambda: run(cluster.command(ask)).returncode == 0)
        cluster.cut(1)
        assert run(cluster.command(ask)).returncode == 124
        assert run(cluster.command(["ssh", "node2", "true"])).returncode == 255
        cluster.mend(1)
        assert jobs.wait_until(lambda: run(cluster.command(ask)).returncode == 0)
        assert run(cluster.command(["ssh", "node2", "true"])).returncode == 0


@needs_hosts
def test_cluster_killed_daemon_ends_mpirun():
    with VirtualCluster(2) as cluster:
        assert not cluster.kill_agent(1)
        with jobs.start(cluster.mpirun(2, ["sleep", "600"])) as mpirun:
            assert jobs.wait_until(lambda: cluster.processes(1, "sleep"))
            assert cluster.kill_agent(1)
            mpirun.wait(timeout=100)


@needs_hosts
@pytest.mark.parametrize("by", ["SIGKILL", "SIGINT"])
def test_cluster_leaves_nothing_if_its_process_is_killed(by):
    seen = links()
    with subprocess.Popen(
        [sys.executable, "-c", MAKE_CLUSTER, str(jobs.ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=jobs.clean_environment(),
        text=True,
    ) as maker:
        folder, *nets = maker.stdout.readline().split()
        assert len(netns.processes(nets)) >= 7  # keepers, mpirun, prted, two ranks
        assert links() == seen, "the links are visible outside"
        maker.send_signal(signal.Signals[by])
    assert jobs.wait_until(lambda: not netns.processes(nets))
    assert jobs.wait_until(lambda: not Path(folder).exists())
    assert links() == seen


@needs_hosts
def test_cluster_leaves_nothing_if_it_cannot_be_built(monkeypatch):
    made = []

    def fail(cluster, host):
        made.append(cluster)
        raise RuntimeError("no more links")

    monkeypatch.setattr(VirtualCluster, "_connect", fail)
    with pytest.raises(RuntimeError, match="no more links"):
        VirtualCluster(2)
    assert not made[0].folder.exists()
    assert not netns.processes([host.space.net for host in made[0].hosts])


@needs_hosts
def test_virtual_cluster_command_runs_on_the_first_host_and_returns_its_exit_code():
    tool = str(jobs.ROOT / "tests" / "support" / "virtual_cluster")
    result = run_again(
        [tool, "-n", "3", "--", "sh", "-c", "hostname; mpirun hostname; exit 7"]
    )
    assert result.returncode == 7
    names = result.stdout.splitlines()
    assert names[0] == "node1"
    assert sorted(names[1:]) == ["node1", "node2", "node3"]
    with jobs.start([tool, "--", "sleep", "600"]) as process:
        try:
            assert jobs.wait_until(lambda: "sleep" in programs_of(process.pid))
            process.terminate()
            assert process.wait(timeout=100) == 128 + signal.SIGTERM
        finally:
            jobs.end_session(process.pid)


def programs_of(leader):
    found = []
    for pid in jobs.processes(leader):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


@pytest.mark.parametrize("hosts", [0, 201, ["a b"], ["-n"], ["x" * 64], [""]])
def test_cluster_invalid_hosts_raise(hosts):
    with pytest.raises(ValueError, match="host"):
        VirtualCluster(hosts)


@pytest.mark.parametrize("rate", ["", "fast", "0gbit", "1gbit burst 1", "-1mbit"])
def test_cluster_invalid_rate_raises(rate):
    with pytest.raises(ValueError, match="wanted such as 1gbit"):
        VirtualCluster(2, rate=rate)


def test_bits_per_second_reads_rates_of_tc():
    assert bits_per_second("1.5gbit") == 1.5e9
    assert bits_per_second("100mbit") == 1e8


def test_cluster_without_its_requirements_raises(monkeypatch):
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="only root"):
        VirtualCluster(2)
    monkeypatch.setattr(netns.os, "geteuid", lambda: 0)
    monkeypatch.setattr(netns.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt install iproute2"):
        VirtualCluster(2)
    monkeypatch.setattr(netns.sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="need Linux, and this is darwin"):
        VirtualCluster(2)
