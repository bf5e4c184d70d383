"""Virtual cluster on one Linux machine: hosts with names and network links.

    with VirtualCluster(2, rate="1gbit") as cluster:
        subprocess.run(cluster.mpirun(2, [sys.executable, "train.py"]))

Each host is a set of namespaces: network, host name, mounts. Hosts share files and
cores, but not `/dev/shm`. They reach one another only through a switch, over links with
a limited rate in both directions. Not modelled: latency, packet loss (but see `Wire`),
and the memory and cores of more machines.

The PATH of the hosts starts with an `ssh` that enters the namespaces. Open MPI starts
its daemons with it as on real hosts, in the environment of a new login.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import netns
from tests.support.wire import Wire, bits_per_second

_SUBNET = "10.77.0"  # seen inside the namespaces only
_MOST_HOSTS = 200
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
# The default of Linux and macOS, whatever this machine is configured to use.
_CONGESTION_CONTROL = "cubic"

# All hosts share the cores, so a rank must not spin on one or be bound to one.
_SHARED_CORES = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

_SSH = """\
#!/bin/sh
# Stands in for ssh: [OPTION ...] HOST COMMAND ... in a virtual host.
while :; do
    case $1 in
        -[BbcDEeFIiJLlmOopQRSWw]) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
bin=$(dirname -- "$0") home=${HOME:-/}
host=${1#*@}
shift
if [ ! -e "$bin/../hosts/$host/net" ]; then
    echo "ssh: connect to host $host port 22: No route to host" >&2
    exit 255
fi
cd / && exec nsenter --net="$bin/../hosts/$host/net" --uts="$bin/../hosts/$host/uts" \\
    --mount="$bin/../hosts/$host/mnt" env -i -C "$home" HOME="$home" USER=root \\
    PATH="$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \\
    sh -c "$*"
"""


@dataclass(frozen=True)
class Host:
    """A host of the cluster."""

    name: str
    address: str
    port: str  # of the switch
    space: netns.Namespace
    wire: Wire


class VirtualCluster:
    """Hosts that exist until `close`, or until this process ends, even if killed.

    Args:
        hosts: their number, or their names. Hosts with equal names are allowed, for
            tests of that case, and are known by their addresses.
        rate: of each host's link in either direction, in tc's notation.

    Raises:
        RuntimeError: this machine can't make one; the message says what it needs.
        ValueError: the hosts or the rate are invalid.
    """

    def __init__(self, hosts: int | Sequence[str] = 2, *, rate: str = "1gbit"):
        names = _names(hosts)
        self.rate = rate
        self.bits_per_second = bits_per_second(rate)
        problem = netns.problem()
        if problem:
            raise RuntimeError(f"a virtual cluster can't be made: {problem}")
        self.folder = Path(tempfile.mkdtemp(prefix="mlxdist-cluster-"))
        self._keeper = netns.Keeper(self.folder)
        self.hosts: list[Host] = []
        try:
            self._build(names)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VirtualCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process in the cluster, and remove it."""
        self._keeper.close()

    @property
    def hostfile(self) -> Path:
        """The hosts with one slot each; mpirun's default in the cluster."""
        return self.folder / "hostfile"

    def command(
        self,
        command: Sequence[str],
        *,
        host: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return a command line that runs a command on a host, in this folder.

        The command gets the environment of the caller, and the variables with which
        mpirun finds the other hosts.

        Args:
            environment: more variables.
        """
        path = f"{self.folder}/bin:{os.environ.get('PATH', os.defpath)}"
        cluster = {"PRTE_MCA_prte_default_hostfile": str(self.hostfile), "PATH": path}
        for side in ("local", "remote"):  # files of killed daemons go with the cluster
            cluster[f"PRTE_MCA_prte_{side}_tmpdir_base"] = str(self.folder)
        variables = {**_SHARED_CORES, **_AS_ROOT, **cluster, **(environment or {})}
        settings = [f"{name}={value}" for name, value in variables.items()]
        target = str(self.hosts[host].space.pid)
        enter = ["nsenter", "-t", target, "--net", "--uts", "--mount"]
        return [*enter, "env", "-C", os.getcwd(), *settings, *command]

    def mpirun(
        self,
        ranks: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> list[str]:
        """Return a command line that runs a command on ranks spread over all hosts.

        Args:
            ranks: their number; rank r runs on host r // (ranks per host).
            environment: variables of all ranks.
            arguments: more arguments of mpirun.
        """
        slots = -(-ranks // len(self.hosts))
        at = ",".join(f"{self._known_as(host)}:{slots}" for host in self.hosts)
        start = [find_mpirun(), "-n", str(ranks), "--host", at, "--stdin", "none"]
        for name, value in (environment or {}).items():
            start += ["-x", f"{name}={value}"]
        return self.command([*start, *arguments, *command])

    def cut(self, host: int) -> None:
        """Cut the link of a host: it loses all packets, and ssh can't reach it."""
        self._switch.run("ip", "link", "set", self.hosts[host].port, "down")
        shutil.rmtree(self._entrance(self.hosts[host]), ignore_errors=True)

    def mend(self, host: int) -> None:
        """Restore the link of a host that was cut."""
        self._switch.run("ip", "link", "set", self.hosts[host].port, "up")
        self._let_in(self.hosts[host])

    def processes(self, host: int, program: str | None = None) -> list[int]:
        """Return the process ids on a host, or those of one program."""
        space = self.hosts[host].space
        pids = [pid for pid in netns.processes([space.net]) if pid != space.pid]
        return [pid for pid in pids if program is None or _program(pid) == program]

    def kill_agent(self, host: int) -> list[int]:
        """Kill Open MPI's daemons on a host, and return their process ids.

        The first host has none, because mpirun itself runs there.
        """
        daemons = self.processes(host, "prted")
        for pid in daemons:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return daemons

    def _build(self, names: Sequence[str]) -> None:
        (self.folder / "bin").mkdir()
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(_SSH)
        ssh.chmod(0o755)
        self._switch = self._keeper.make()
        self._switch.run("ip", "link", "add", "switch", "type", "bridge")
        self._switch.run("ip", "link", "set", "switch", "up")
        for index, name in enumerate(names, 1):
            address, port = f"{_SUBNET}.{index}", f"port{index}"
            space = self._keeper.make()
            wire = Wire([(self._switch, port), (space, "wire")], self.rate)
            self.hosts.append(Host(name, address, port, space, wire))
        table = ["127.0.0.1 localhost", *(f"{h.address} {h.name}" for h in self.hosts)]
        (self.folder / "hosts.txt").write_text("\n".join(table) + "\n")
        lines = [f"{self._known_as(host)} slots=1" for host in self.hosts]
        self.hostfile.write_text("\n".join(lines) + "\n")
        for host in self.hosts:
            self._connect(host)
            self._let_in(host)

    def _connect(self, host: Host) -> None:
        space, switch = host.space, self._switch.run
        other_end = ("type", "veth", "peer", "name", "wire", "netns", str(space.pid))
        switch("ip", "link", "add", host.port, *other_end)
        switch("ip", "link", "set", host.port, "master", "switch")
        switch("ip", "link", "set", host.port, "addrgenmode", "none", "up")
        space.run("hostname", host.name)
        space.run("mount", "-t", "tmpfs", "shm", "/dev/shm")
        space.run("mount", "--bind", str(self.folder / "hosts.txt"), "/etc/hosts")
        space.run("ip", "link", "set", "lo", "up")
        space.run("ip", "link", "set", "wire", "addrgenmode", "none", "up")
        space.run("ip", "addr", "add", f"{host.address}/24", "dev", "wire")
        route = ("ip", "route", "change", f"{_SUBNET}.0/24", "dev", "wire")
        space.run(*route, "congctl", _CONGESTION_CONTROL)
        host.wire.restore()

    def _let_in(self, host: Host) -> None:
        entrance = self._entrance(host)
        entrance.mkdir(parents=True)
        for kind in ("net", "uts", "mnt"):
            (entrance / kind).symlink_to(f"/proc/{host.space.pid}/ns/{kind}")

    def _entrance(self, host: Host) -> Path:
        return self.folder / "hosts" / self._known_as(host)

    def _known_as(self, host: Host) -> str:
        names = [other.name for other in self.hosts]
        return host.name if names.count(host.name) == 1 else host.address


def find_mpirun() -> str:
    """Return the mpirun in the folder of this Python, else the first on the PATH."""
    folder = os.path.dirname(sys.executable)
    path = shutil.which("mpirun", path=f"{folder}:{os.environ.get('PATH', '')}")
    if path is None:
        raise RuntimeError("there is no mpirun: launch/setup installs one in .venv")
    return path


def _names(hosts: int | Sequence[str]) -> list[str]:
    names = (
        [f"node{i}" for i in range(1, hosts + 1)]
        if isinstance(hosts, int)
        else list(hosts)
    )
    if not 1 <= len(names) <= _MOST_HOSTS:
        raise ValueError(f"found {len(names)} hosts; wanted 1 to {_MOST_HOSTS}")
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > 63:
            raise ValueError(f"{name!r} can't be a host's name")
    return names


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
