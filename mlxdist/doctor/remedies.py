"""Commands and instructions that fix problems on a host. Runs nothing itself."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .ssh_errors import Problem

_NEEDS_NO_QUOTES = re.compile(r"[\w\s./=:@%+,-]*", re.ASCII)
_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local", "/opt/homebrew")


@dataclass(frozen=True)
class Remedies:
    """Commands for one host, to be typed into a shell on this machine.

    A command for another host goes through ssh, with a terminal if sudo may ask for a
    password.

    Attributes:
        host: empty for this machine.
        system: begins with "Darwin" or "Linux".
        python: path of the interpreter there.
    """

    host: str
    system: str
    python: str

    @property
    def is_mac(self) -> bool:
        return self.system.startswith("Darwin")

    @property
    def location(self) -> str:
        return f"on {self.host}" if self.host else "here"

    def command(self, line: str, *, terminal: bool = False) -> str:
        """Return the command line that runs `line` on the host."""
        if not self.host:
            return line
        quoted = line if _NEEDS_NO_QUOTES.fullmatch(line) else shlex.quote(line)
        return f"ssh {'-t ' * terminal}{shlex.quote(self.host)} {quoted}"

    def pip_install(self, *arguments: str) -> str:
        """Install packages with pip."""
        return self.command(
            shlex.join([self.python, "-m", "pip", "install", *arguments])
        )

    def install_mlx(self, version: str | None = None, *, cuda: bool = False) -> str:
        """Install MLX with a backend, which its wheel for Linux does not contain."""
        name = "mlx" if self.is_mac else f"mlx[{'cuda13' if cuda else 'cpu'}]"
        pinned = f"{name}=={version}" if version else name
        return self.pip_install("--force-reinstall", pinned)

    def install_mlxdist(self) -> str:
        """Install this package from its checkout."""
        source, comment = _source()
        return f"{self.pip_install(source)}   # {comment}"

    def install_open_mpi(self) -> str:
        """Install the system's Open MPI. Homebrew is run on the Mac itself."""
        if self.is_mac:
            comment = f"   # on {self.host}" if self.host else ""
            return f"brew install open-mpi{comment}"
        packages = "openmpi-bin libopenmpi-dev"
        return self.command(f"sudo apt install {packages}", terminal=True)

    def list_accelerators(self) -> str:
        """Show the host's GPUs."""
        program = "system_profiler SPDisplaysDataType" if self.is_mac else "nvidia-smi"
        return self.command(program)

    def shorten_tmpdir(self) -> str:
        """Set TMPDIR in shells that ssh starts.

        Debian's .bashrc returns early in those, so the line goes to its beginning.
        """
        if self.is_mac:
            return self.command("echo export TMPDIR=/tmp >>~/.zshenv")
        return self.command('sed -i "1i export TMPDIR=/tmp" ~/.bashrc')

    def show_memory(self) -> str:
        """Show the processes that use most memory."""
        key = "mem" if self.is_mac else "%MEM"
        return self.command(f"top -o {key}", terminal=True)

    def rename_host(self, name: str) -> str:
        """Set the host name."""
        program = "scutil --set HostName" if self.is_mac else "hostnamectl set-hostname"
        return self.command(f"sudo {program} {shlex.quote(name)}", terminal=True)

    def add_address(self, other: str) -> str:
        """Edit the host's list of addresses, which lacks another host's."""
        editor = self.command("sudo vi /etc/hosts", terminal=True)
        return f"{editor}   # add the address of {other}"

    def allow_traffic(self, other: str) -> str:
        """Find out why packets to another host are lost."""
        if self.is_mac:
            return (
                "allow Python (or Terminal) under System Settings > Privacy & Security "
                "> Local Network, and check the firewall"
            )
        return self.command(f"ping -c 3 {other}")

    def remove_folders(self, folders: Sequence[str]) -> str:
        """Remove exactly these folders, which have the same parent."""
        parent = shlex.quote(os.path.dirname(folders[0]))
        names = " ".join(shlex.quote(os.path.basename(folder)) for folder in folders)
        return self.command(f"cd {parent} && rm -r {names}")

    def reach(self, problem: Problem, version: str) -> str:
        """Fix a host that did not answer.

        Args:
            version: of Python on the other hosts.
        """
        host = shlex.quote(self.host or "localhost")
        enable_ssh = (
            "sudo systemsetup -setremotelogin on"
            if self.is_mac
            else "sudo systemctl enable --now ssh"  # Fedora's service is called sshd
        )
        match problem:
            case "no ssh client":
                return "sudo apt install openssh-client   # here: no ssh on the PATH"
            case "no key":
                return (
                    f"ssh-copy-id {host}   # after ssh-keygen, if there is no key yet"
                )
            case "unknown host key":
                return f"ssh {host} true   # compare the key it shows with the host's"
            case "unknown name":
                return f"ping -c 3 {host}   # a Mac's name on the network is NAME.local"
            case "no python":
                return self._install_python(version)
            case "refused":
                return f"{enable_ssh}   # on {self.host} itself, which accepts no ssh"
            case "unreachable":
                return f"ping -c 3 {host}   # and there: {enable_ssh}"
            case "unknown":
                return self.command(f"{shlex.quote(self.python)} --version")

    def _install_python(self, version: str) -> str:
        """Create the virtual environment whose interpreter is missing."""
        prefix, bin_ = os.path.split(os.path.dirname(self.python))
        if bin_ != "bin" or prefix in _SYSTEM_PREFIXES:
            where = f"on {self.host or 'this machine'}, at {self.python}"
            return f"install Python {version} {where}, or give --python another path"
        name = f"python{'.'.join(version.split('.')[:2])}"
        source, comment = _source()
        create = shlex.join([name, "-m", "venv", prefix])
        install = shlex.join([self.python, "-m", "pip", "install", source])
        return f"{self.command(f'{create} && {install}')}   # {comment}"


def _source() -> tuple[str, str]:
    """Return the path from which pip installs this package, and a comment on it."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").exists():
        return str(root), "a copy of the checkout that is here"
    return ".", "in a checkout of mlxdist"
