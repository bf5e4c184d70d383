"""The command that mends what `mlxdist doctor` finds, in the words of a host's system.

Runs nothing itself. A command for another host goes by ssh, with a terminal where sudo
may ask for a password.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PLAIN = re.compile(r"[\w\s./=:@%+,-]*", re.ASCII)  # what no shell takes for its own
_SYSTEM_S = ("/", "/usr", "/usr/local", "/opt/homebrew")


@dataclass(frozen=True)
class Place:
    """A host: its name, "" for this machine; "Darwin" or "Linux"; its Python."""

    host: str
    system: str
    python: str

    @property
    def is_mac(self) -> bool:
        return self.system.startswith("Darwin")

    @property
    def where(self) -> str:
        return f"on {self.host}" if self.host else "here"

    def run(self, command: str, *, terminal: bool = False) -> str:
        """The command line, for a shell here, that runs a command there."""
        if not self.host:
            return command
        quoted = command if _PLAIN.fullmatch(command) else shlex.quote(command)
        return f"ssh {'-t ' * terminal}{shlex.quote(self.host)} {quoted}"

    def pip(self, *words: str) -> str:
        """pip's installation of some packages there."""
        return self.run(shlex.join([self.python, "-m", "pip", "install", *words]))

    def mlx(self, version: str | None = None, *, cuda: bool = False) -> str:
        """MLX with what it computes with: its wheel for Linux has nothing by itself."""
        name = "mlx" if self.is_mac else f"mlx[{'cuda13' if cuda else 'cpu'}]"
        pinned = f"{name}=={version}" if version else name
        return self.pip("--force-reinstall", pinned)

    def mlxdist(self) -> str:
        """This package."""
        source, where = _source()
        return f"{self.pip(source)}   # {where}"

    def accelerators(self) -> str:
        """Shows which there are."""
        program = "system_profiler SPDisplaysDataType" if self.is_mac else "nvidia-smi"
        return self.run(program)

    def open_mpi(self) -> str:
        """The system's own Open MPI."""
        if self.is_mac:
            beside = f"   # on {self.host}" if self.host else ""
            return f"brew install open-mpi{beside}"
        packages = "openmpi-bin libopenmpi-dev"
        return self.run(f"sudo apt install {packages}", terminal=True)

    def short_tmpdir(self) -> str:
        """Of shells that ssh starts. Debian's .bashrc ends early for those."""
        if self.is_mac:
            return self.run("echo export TMPDIR=/tmp >>~/.zshenv")
        return self.run('sed -i "1i export TMPDIR=/tmp" ~/.bashrc')

    def most_memory(self) -> str:
        """Shows what takes it."""
        key = "mem" if self.is_mac else "%MEM"
        return self.run(f"top -o {key}", terminal=True)

    def rename(self, name: str) -> str:
        """Gives it another host name."""
        program = "scutil --set HostName" if self.is_mac else "hostnamectl set-hostname"
        return self.run(f"sudo {program} {shlex.quote(name)}", terminal=True)

    def tell_address(self, other: str) -> str:
        """Where it does not know another host's name."""
        editor = self.run("sudo vi /etc/hosts", terminal=True)
        return f"{editor}   # add the address of {other}"

    def let_through(self, other: str) -> str:
        """Where packets to another host get lost."""
        if self.is_mac:
            return (
                "allow Python (or Terminal) under System Settings > Privacy & Security "
                "> Local Network, and check the firewall"
            )
        return self.run(f"ping -c 3 {other}")

    def remove(self, folders: Sequence[str]) -> str:
        """Removes exactly these folders, which lie in one."""
        outer = shlex.quote(os.path.dirname(folders[0]))
        names = " ".join(shlex.quote(os.path.basename(one)) for one in folders)
        return self.run(f"cd {outer} && rm -r {names}")


def to_reach(place: Place, error: str, version: str) -> str:
    """The one command that mends a host which can't be asked.

    Args:
        place: its system, and `version` of Python, are those of other hosts: it has
            not told its own.
    """
    host = shlex.quote(place.host or "localhost")
    if error.startswith("ssh: No such file"):
        return "sudo apt install openssh-client   # here: there is no ssh on the PATH"
    if re.search(r"Permission denied \(|no such identity", error):
        return f"ssh-copy-id {host}   # after ssh-keygen, where there is no key yet"
    if "Host key verification failed" in error:
        return f"ssh {host} true   # compare the key it shows with the host's, once"
    if re.search(r"resolve hostname|not known", error):
        return f"ping -c 3 {host}   # a Mac's name on the network is NAME.local"
    if re.search(
        r"[Nn]o such file|not found|[Nn]ot a directory|Permission denied", error
    ):
        return _python_at(place, version)
    allow = (
        "sudo systemsetup -setremotelogin on"
        if place.is_mac
        else "sudo systemctl enable --now ssh"  # Fedora and its like call it sshd
    )
    if "refused" in error:
        return f"{allow}   # on {place.host} itself, which lets no ssh in"
    if re.search(r"No route|timed out|unreachable|no answer|port 22", error):
        return f"ping -c 3 {host}   # and there: {allow}"
    return place.run(f"{shlex.quote(place.python)} --version")


def _python_at(place: Place, version: str) -> str:
    """Where there is no interpreter of that path."""
    folder, bin_ = os.path.split(os.path.dirname(place.python))
    if bin_ != "bin" or folder in _SYSTEM_S:
        where = f"on {place.host or 'this machine'}, at {place.python}"
        return f"install Python {version} {where}, or give --python another path"
    name = f"python{'.'.join(version.split('.')[:2])}"
    source, where = _source()
    made = shlex.join([name, "-m", "venv", folder])
    filled = shlex.join([place.python, "-m", "pip", "install", source])
    return f"{place.run(f'{made} && {filled}')}   # {where}"


def _source() -> tuple[str, str]:
    """What pip installs this package from, and where that is."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").exists():
        return str(root), "a copy of the checkout that is here"
    return ".", "in a checkout of mlxdist"
