"""Output of the system's programs that list network interfaces.

`probe` sends this file to other hosts, whose Python may have no mlxdist: standard
library only.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import TypedDict


class InterfaceOutput(TypedDict, total=False):
    """The text of the system's programs, for `interfaces.parse`."""

    ip: str  # Linux: `ip -j -4 address`
    wireless: list[str]  # Linux: names of wireless devices
    ifconfig: str  # macOS: `ifconfig -a`
    networksetup: str  # macOS: `networksetup -listallhardwareports`


def interface_output() -> InterfaceOutput:
    """Return what this machine reports about its interfaces."""
    if platform.system() == "Darwin":
        ports = ["/usr/sbin/networksetup", "-listallhardwareports"]
        return {
            "ifconfig": run_program(["/sbin/ifconfig", "-a"]).stdout,
            "networksetup": run_program(ports).stdout,
        }
    ip = shutil.which("ip") or "/sbin/ip"
    devices = "/sys/class/net"
    names = os.listdir(devices) if os.path.isdir(devices) else []
    return {
        "ip": run_program([ip, "-j", "-4", "address"]).stdout,
        "wireless": [n for n in names if os.path.exists(f"{devices}/{n}/wireless")],
    }


def run_program(
    command: list[str], timeout: float = 10.0
) -> subprocess.CompletedProcess[str]:
    """Run a program without input; one that can't run, or not in time, has code 1."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
