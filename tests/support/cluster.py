"""A cluster on one Linux machine: hosts of their own names, a wire of its own to each.

    with VirtualCluster(2, rate="1gbit") as cluster:
        subprocess.run(cluster.mpirun(2, [sys.executable, "train.py"]))

Each host is a set of namespaces: network, host name, mounts. They share the files and
the cores, but not `/dev/shm`, and they reach each other through a switch alone, by
wires that are shaped both ways. What is not there: latency of cables, loss, a second
machine's memory and cores.

An `ssh` that enters the namespaces is first on the PATH of the hosts, so that Open MPI
starts its daemons as it does on real ones, with the environment of a fresh login.
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
from types import TracebackType

from tests.support import netns

_SUBNET = "10.77.0"  # seen inside the namespaces only
_MOST_HOSTS = 200
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
# The queue before a wire is long enough that hardly anything is dropped, as on a good
# switch. A burst takes the largest packet that the kernel hands down in one piece.
_QUEUE, _BURST = "4mb", "128kb"
# TCP's own: what Linux and macOS take by default, whatever this machine was told.
_CONGESTION_CONTROL = "cubic"

# All hosts share the cores, so that a rank must not spin on one or be tied to one.
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
bin=$(dirname -- "$0")
host=${1#*@}
shift
if [ ! -e "$bin/../hosts/$host/net" ]; then
    echo "ssh: connect to host $host port 22: No route to host" >&2
    exit 255
fi
cd / && exec nsenter --net="$bin/../hosts/$host/net" --uts="$bin/../hosts/$host/uts" \\
    --mount="$bin/../hosts/$host/mnt" env -i -C "$HOME" HOME="$HOME" USER=root \\
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


def bits_per_second(rate: str) -> float:
    """What tc calls "1gbit" or "100mbit", as a number.

    Raises:
        ValueError: it is nothing like that.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", rate)
    if not found or not float(found[1]):
        raise ValueError(f"the rate is {rate!r}; wanted such as 1gbit or 100mbit")
    return float(found[1]) * _UNITS[found[2]]


class VirtualCluster:
    """Hosts that are up until `close`, or until this process ends, however it ends.

    Args:
        hosts: how many, or their names. Names may be equal, as a test of what
            happens then; such hosts are told apart by their addresses.
        rate: of each host's wire, in either direction, as tc writes it.

    Raises:
        RuntimeError: this machine can't; with what it needs.
        ValueError: hosts or rate are none.
    """

    def __init__(self, hosts: int | Sequence[str] = 2, *, rate: str = "1gbit"):
        names = _names(hosts)
        self.rate = rate
        self.bits_per_second = bits_per_second(rate)
        why = netns.problem()
        if why:
            raise RuntimeError(f"a virtual cluster can't be made: {why}")
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process in the cluster, and the cluster."""
        self._keeper.close()

    @property
    def hostfile(self) -> Path:
        """The hosts for mpirun, one slot each; used where mpirun is given none."""
        return self.folder / "hostfile"

    def command(
        self,
        command: Sequence[str],
        *,
        host: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """A command line that runs a command on a host, in this folder.

        It sees the environment of whoever runs it, as if that one had logged in there,
        and what mpirun needs to find the other hosts.

        Args:
            environment: variables on top.
        """
        path = f"{self.folder}/bin:{os.environ.get('PATH', os.defpath)}"
        own = {"PRTE_MCA_prte_default_hostfile": str(self.hostfile), "PATH": path}
        for where in ("local", "remote"):  # no files of killed ones stay behind
            own[f"PRTE_MCA_prte_{where}_tmpdir_base"] = str(self.folder)
        variables = {**_SHARED_CORES, **_AS_ROOT, **own, **(environment or {})}
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
        """A command line that runs a command on ranks over all hosts, evenly.

        Args:
            ranks: rank r runs on host r // (ranks on a host).
            environment: variables of all ranks.
            arguments: mpirun's own.
        """
        slots = -(-ranks // len(self.hosts))
        at = ",".join(f"{self._known_as(host)}:{slots}" for host in self.hosts)
        start = [find_mpirun(), "-n", str(ranks), "--host", at, "--stdin", "none"]
        for name, value in (environment or {}).items():
            start += ["-x", f"{name}={value}"]
        return self.command([*start, *arguments, *command])

    def cut(self, host: int) -> None:
        """Cuts a host's wire: packets are lost from now on, and no ssh gets there."""
        self._switch.run("ip", "link", "set", self.hosts[host].port, "down")
        shutil.rmtree(self._entrance(self.hosts[host]), ignore_errors=True)

    def mend(self, host: int) -> None:
        """Puts a wire back that was cut."""
        self._switch.run("ip", "link", "set", self.hosts[host].port, "up")
        self._let_in(self.hosts[host])

    def processes(self, host: int, program: str | None = None) -> list[int]:
        """The processes on a host, or those that run a program of this name."""
        space = self.hosts[host].space
        found = [p for p in netns.processes([space.net]) if p != space.pid]
        return [p for p in found if program is None or _program(p) == program]

    def kill_agent(self, host: int) -> list[int]:
        """Kills Open MPI's daemons on a host, and tells their process ids.

        The first host has none: there mpirun does the work.
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
            self.hosts.append(Host(name, address, port, self._keeper.make()))
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
        self._shape(self._switch, host.port)
        space.run("hostname", host.name)
        space.run("mount", "-t", "tmpfs", "shm", "/dev/shm")
        space.run("mount", "--bind", str(self.folder / "hosts.txt"), "/etc/hosts")
        space.run("ip", "link", "set", "lo", "up")
        space.run("ip", "link", "set", "wire", "addrgenmode", "none", "up")
        space.run("ip", "addr", "add", f"{host.address}/24", "dev", "wire")
        route = ("ip", "route", "change", f"{_SUBNET}.0/24", "dev", "wire")
        space.run(*route, "congctl", _CONGESTION_CONTROL)
        self._shape(space, "wire")

    def _shape(self, space: netns.Namespace, link: str) -> None:
        shaper = ("tbf", "rate", self.rate, "burst", _BURST, "limit", _QUEUE)
        space.run("tc", "qdisc", "add", "dev", link, "root", *shaper)

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
    """The mpirun beside this Python, or the first on the PATH."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which("mpirun", path=f"{beside}:{os.environ.get('PATH', '')}")
    if found is None:
        raise RuntimeError("there is no mpirun: launch/setup installs one in .venv")
    return found


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
