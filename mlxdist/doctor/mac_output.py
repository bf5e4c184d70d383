"""What macOS's programs print, parsed: tests/doctor/test_mac_checks.py has samples."""

from __future__ import annotations

import re
from typing import NamedTuple

_SETTING = re.compile(
    r" ([A-Za-z]\w*)\s+(\S+)(?:\s+\((?:display )?sleep prevented by (.*)\))?"
)
_SPEED_LIMIT = re.compile(r"CPU_Speed_Limit\s*=\s*(\d+)")
_DEVICE = re.compile(r"\s*(rdma_\S+)\s+\S+")
_BRIDGE = re.compile(r"^bridge0: flags=\S*<([A-Z,]*)>(.*\n(?:\s.*\n?)*)", re.MULTILINE)
_MEMBER = re.compile(r"^\s+member: (\S+)", re.MULTILINE)


class PowerSetting(NamedTuple):
    """A setting of `pmset -g`.

    Attributes:
        value: as it is printed: minutes, 0 for never; or 0 or 1.
        prevented_by: programs that prevent that sleep for now.
    """

    value: str
    prevented_by: tuple[str, ...] = ()


def power_settings(pmset: str) -> dict[str, PowerSetting]:
    """Parse `pmset -g`: settings in use, by their names."""
    settings = {}
    for line in pmset.splitlines():
        if match := _SETTING.match(line):
            programs = tuple(filter(None, (match[3] or "").split(", ")))
            settings[match[1]] = PowerSetting(match[2], programs)
    return settings


def speed_limit(therm: str) -> int:
    """Parse `pmset -g therm`: per cent of its speed that a CPU may run at.

    Macs that are not hot print notes, without a limit or with one of 100.
    """
    match = _SPEED_LIMIT.search(therm)
    return int(match[1]) if match else 100


def rdma_devices(ibv_devices: str) -> list[str]:
    """Parse `ibv_devices`: the names of this Mac's RDMA devices."""
    lines = map(_DEVICE.fullmatch, ibv_devices.splitlines())
    return [match[1] for match in lines if match]


def bridge_members(ifconfig: str) -> list[str]:
    """Parse `ifconfig -a`: the interfaces in a Thunderbolt bridge that is up."""
    match = _BRIDGE.search(ifconfig)
    if match is None or "UP" not in match[1].split(","):
        return []
    return _MEMBER.findall(match[2])


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version, such as (26, 2)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
