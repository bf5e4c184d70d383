"""Network interfaces of a machine, and which of them MPI should use.

Asks `ip` on Linux, `ifconfig` and `networksetup` on macOS. The parsing is apart from
the asking, so that what a Mac says is tested on Linux.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import probe

Kind = Literal["thunderbolt", "wired", "wifi", "virtual", "loopback"]
# In the order of preference. Virtual ones are VPNs and the bridges of containers.
KINDS: tuple[Kind, ...] = ("thunderbolt", "wired", "wifi", "virtual", "loopback")

_VIRTUAL = re.compile(
    r"(docker|br-|virbr|veth|vnet|vmnet|vboxnet|cni|flannel|cali|kube|tun|tap|utun|wg|"
    r"tailscale|zt|ipsec|ppp|gif|stf|awdl|llw|anpi|ap|bridge1\d\d)\S*"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,31}")


@dataclass(frozen=True)
class Interface:
    """One IPv4 address of an interface that is up."""

    name: str
    kind: Kind
    address: ipaddress.IPv4Interface

    @property
    def network(self) -> str:
        """`10.0.0.0/24`: the same on all hosts, as names need not be."""
        return str(self.address.network)

    def is_in(self, network: str) -> bool:
        """Whether its address is in a network such as 10.0.0.0/24."""
        if "/" not in network:
            return False
        return self.address.ip in ipaddress.IPv4Network(network)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.address})"


def here() -> list[Interface]:
    """Those of this machine; none where it doesn't say."""
    return parse(probe.network())


def parse(raw: Mapping[str, Any]) -> list[Interface]:
    """What `probe.network` collected, as interfaces, the best first."""
    if raw.get("ip"):
        found = _from_ip(raw["ip"], raw.get("wireless", ()))
    else:
        found = _from_ifconfig(raw.get("ifconfig", ""), raw.get("networksetup", ""))
    return sorted(found, key=lambda one: KINDS.index(one.kind))


def _from_ip(text: str, wireless: Sequence[str]) -> list[Interface]:
    """The JSON of `ip -j -4 address`."""
    found = []
    for device in json.loads(text):
        name = device.get("ifname", "")
        if "UP" not in device.get("flags", ()) or device.get("operstate") == "DOWN":
            continue
        for one in device.get("addr_info", ()):
            address = ipaddress.IPv4Interface(f"{one['local']}/{one['prefixlen']}")
            found.append(Interface(name, _linux_kind(name, wireless), address))
    return found


def _linux_kind(name: str, wireless: Sequence[str]) -> Kind:
    if name == "lo":
        return "loopback"
    if name.startswith("thunderbolt"):
        return "thunderbolt"
    if name in wireless or name.startswith("wl"):
        return "wifi"
    return "virtual" if _VIRTUAL.fullmatch(name) else "wired"


def _from_ifconfig(text: str, ports: str) -> list[Interface]:
    """macOS: blocks of `ifconfig`, and the ports' names by `networksetup`."""
    listed = re.findall(r"Hardware Port: (.*)\nDevice: (\S+)", ports)
    port_of = {device: port for port, device in listed}
    found = []
    for name, flags, block in re.findall(
        r"^(\S+): flags=\w+<([^>]*)>(.*(?:\n[ \t].*)*)", text, re.MULTILINE
    ):
        if "UP" not in flags.split(",") or "status: inactive" in block:
            continue
        kind = _mac_kind(name, port_of.get(name, ""))
        for address, mask in re.findall(r"\tinet (\S+).*netmask (0x\w{8})", block):
            prefix = int(mask, 16).bit_count()
            found.append(
                Interface(name, kind, ipaddress.IPv4Interface(f"{address}/{prefix}"))
            )
    return found


def _mac_kind(name: str, port: str) -> Kind:
    if re.fullmatch(r"lo\d+", name):
        return "loopback"
    if _VIRTUAL.fullmatch(name):
        return "virtual"
    # "Thunderbolt Ethernet" is an adapter: a cable to a switch, not to another Mac.
    if name == "bridge0" or ("Thunderbolt" in port and "Ethernet" not in port):
        return "thunderbolt"
    return "wifi" if re.search(r"Wi-?Fi|AirPort", port, re.IGNORECASE) else "wired"


def choose(
    own: Sequence[Interface], others: Sequence[Sequence[str]]
) -> Interface | None:
    """The best of this machine's interfaces from which all other hosts are reached.

    Args:
        own: this machine's, the best first.
        others: the addresses to which each other host's name resolves.

    Returns:
        None where no one network holds an address of every other host: they are behind
        a router, or their names are unknown here.
    """
    if not others:
        return None
    for one in own:
        if all(
            any(ipaddress.IPv4Address(a) in one.address.network for a in addresses)
            for addresses in others
        ):
            return one
    return None


def check_choice(text: str) -> str:
    """What `--iface` may be: an interface's name, or a network such as 10.0.0.0/24.

    Raises:
        ValueError: where it is neither.
    """
    if "/" in text:
        try:
            return str(ipaddress.IPv4Network(text, strict=False))
        except ValueError as error:
            raise ValueError(f"--iface {text!r}: {error}") from None
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"--iface {text!r}: wanted an interface's name, such as bridge0, or a "
            "network, such as 10.0.0.0/24"
        )
    return text


def network_of(choice: str, own: Sequence[Interface] | None = None) -> str:
    """The network that `--iface` names: by itself, or by this machine's interface.

    A network is the same on all hosts, where an interface's name may not be. Where the
    machine tells nothing of its interfaces, the name is taken as it is.

    Args:
        own: this machine's interfaces; None asks it.

    Raises:
        ValueError: where it names none, with those that there are.
    """
    choice = check_choice(choice)
    own = here() if own is None else own
    if not own:
        return choice
    named = [one for one in own if one.name == choice or one.is_in(choice)]
    if not named:
        raise ValueError(
            f"--iface {choice!r}: this machine has no such interface or network with "
            f"an IPv4 address; it has {', '.join(map(str, own))}"
        )
    if named[0].kind == "loopback":
        raise ValueError(f"--iface {choice!r} reaches no other host")
    return choice if "/" in choice else named[0].network
