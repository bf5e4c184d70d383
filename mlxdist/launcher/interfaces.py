"""A machine's network interfaces, from the output of the system's programs.

Parsing is apart from running the programs, so that macOS output is tested on Linux.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .interface_output import InterfaceOutput, interface_output

Kind = Literal["thunderbolt", "wired", "wifi", "virtual", "loopback"]
# In the order of preference. Virtual ones are VPNs and the bridges of containers.
KINDS: tuple[Kind, ...] = ("thunderbolt", "wired", "wifi", "virtual", "loopback")

_VIRTUAL = re.compile(
    r"(docker|br-|virbr|veth|vnet|vmnet|vboxnet|cni|flannel|cali|kube|tun|tap|utun|wg|"
    r"tailscale|zt|ipsec|ppp|gif|stf|awdl|llw|anpi|ap|bridge1\d\d)\S*"
)


@dataclass(frozen=True)
class Interface:
    """One IPv4 address of an interface that is up."""

    name: str
    kind: Kind
    address: ipaddress.IPv4Interface

    @property
    def network(self) -> str:
        """Its network, such as `10.0.0.0/24`."""
        return str(self.address.network)

    def is_in(self, network: str) -> bool:
        """Return whether its address is in a network such as 10.0.0.0/24."""
        if "/" not in network:
            return False
        return self.address.ip in ipaddress.IPv4Network(network)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.address})"


def local_interfaces() -> list[Interface]:
    """Return this machine's interfaces, the best first; none if it lists none."""
    return parse(interface_output())


def parse(output: InterfaceOutput) -> list[Interface]:
    """Return the interfaces that the programs listed, the best first."""
    if output.get("ip"):
        interfaces = _parse_ip(output["ip"], output.get("wireless", ()))
    else:
        interfaces = _parse_ifconfig(
            output.get("ifconfig", ""), output.get("networksetup", "")
        )
    return sorted(interfaces, key=lambda interface: KINDS.index(interface.kind))


def _parse_ip(text: str, wireless: Sequence[str]) -> list[Interface]:
    """Parse the JSON of `ip -j -4 address`."""
    interfaces = []
    for device in json.loads(text):
        name = device.get("ifname", "")
        if "UP" not in device.get("flags", ()) or device.get("operstate") == "DOWN":
            continue
        for info in device.get("addr_info", ()):
            address = ipaddress.IPv4Interface(f"{info['local']}/{info['prefixlen']}")
            interfaces.append(Interface(name, _linux_kind(name, wireless), address))
    return interfaces


def _linux_kind(name: str, wireless: Sequence[str]) -> Kind:
    if name == "lo":
        return "loopback"
    if name.startswith("thunderbolt"):
        return "thunderbolt"
    if name in wireless or name.startswith("wl"):
        return "wifi"
    return "virtual" if _VIRTUAL.fullmatch(name) else "wired"


def _parse_ifconfig(text: str, ports: str) -> list[Interface]:
    """Parse the blocks of macOS's `ifconfig`, with ports named by `networksetup`."""
    pairs = re.findall(r"Hardware Port: (.*)\nDevice: (\S+)", ports)
    port_of = {device: port for port, device in pairs}
    interfaces = []
    for name, flags, block in re.findall(
        r"^(\S+): flags=\w+<([^>]*)>(.*(?:\n[ \t].*)*)", text, re.MULTILINE
    ):
        if "UP" not in flags.split(",") or "status: inactive" in block:
            continue
        kind = _mac_kind(name, port_of.get(name, ""))
        for ip, mask in re.findall(r"\tinet (\S+).*netmask (0x\w{8})", block):
            prefix = int(mask, 16).bit_count()
            address = ipaddress.IPv4Interface(f"{ip}/{prefix}")
            interfaces.append(Interface(name, kind, address))
    return interfaces


def _mac_kind(name: str, port: str) -> Kind:
    if re.fullmatch(r"lo\d+", name):
        return "loopback"
    if _VIRTUAL.fullmatch(name):
        return "virtual"
    # "Thunderbolt Ethernet" is an adapter: a cable to a switch, not to another Mac.
    if name == "bridge0" or ("Thunderbolt" in port and "Ethernet" not in port):
        return "thunderbolt"
    return "wifi" if re.search(r"Wi-?Fi|AirPort", port, re.IGNORECASE) else "wired"
