"""The result of a check, and what the checks are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..launcher import data_plane
from .remedies import Remedies
from .reports import HostReport

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: the check's name, the same on all hosts.
        message: the value, or what is wrong.
        level: "failure" if a job would fail or give wrong results, "warning" if it may
            be slow or may fail later.
        remedy: a command line, or an instruction, that fixes the problem.
        host: empty for a finding about all hosts together.
    """

    check: str
    message: str
    level: Level = "ok"
    remedy: str = ""
    host: str = ""


@dataclass(frozen=True)
class HostContext:
    """One host that answered.

    Attributes:
        report: the host's own.
        reference: the report of the first host that answered; versions and paths must
            equal its.
        remedies: commands for this host.
        backend: for data, that the host file names; None if it names none.
        slots: how many ranks the host takes.
        devices: RDMA devices that the host file names for this host.
    """

    report: HostReport
    reference: HostReport
    remedies: Remedies
    backend: str | None = None
    slots: int = 1
    devices: tuple[str, ...] = ()

    @property
    def uses_jaccl(self) -> bool:
        return self.backend in data_plane.JACCL


@dataclass(frozen=True)
class GroupContext:
    """All hosts that answered, by the names they were asked by.

    Attributes:
        network: the network that the user asked for, or None.
    """

    reports: Mapping[str, HostReport]
    remedies: Mapping[str, Remedies]
    network: str | None
