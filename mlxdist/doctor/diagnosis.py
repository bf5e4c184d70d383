"""Diagnosis of a set of hosts from their reports. Pure: it asks nothing itself.

To add a check, write a function of one of the four signatures below and append it to
its list here; `mlxdist doctor` then runs and prints it. If it needs a new fact about a
host, add that to `collect` in launcher/probe.py and to HostReport in reports.py.

- HOST_CHECKS: `(HostContext) -> Iterator[Finding]`, called for each host that answered.
  `Finding.host` is filled in by the caller. See host_checks.py.
- HOST_FILE_CHECKS: `(HostList) -> Iterator[Finding]`, called once if hosts were named.
  See host_file_checks.py.
- GROUP_CHECKS: `(GroupContext) -> Iterator[Finding]`, called once if there are several
  hosts. See group_checks.py.
- LINK_CHECKS: `(LinkReport, hosts) -> Iterator[Finding]`, called once with the report
  of a job over all hosts. `hosts` has each rank's host. See link_checks.py.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from ..launcher.hosts import Host, HostList
from . import (
    gpu_checks,
    group_checks,
    host_checks,
    host_file_checks,
    link_checks,
    mac_checks,
)
from .finding import Finding, GroupContext, HostContext
from .remedies import Remedies
from .reports import Answer, HostReport, LinkReport

_NO_HOSTS = HostList()

HOST_CHECKS: tuple[Callable[[HostContext], Iterator[Finding]], ...] = (
    host_checks.check_python,
    host_checks.check_packages,
    host_checks.check_device,
    gpu_checks.check_gpus,
    host_checks.check_libmpi,
    host_checks.check_tmpdir,
    host_checks.check_leftovers,
    host_checks.check_memory,
    host_checks.check_disk,
    mac_checks.check_sleep,
    mac_checks.check_display,
    mac_checks.check_power_mode,
    mac_checks.check_heat,
    mac_checks.check_fast_synch,
    mac_checks.check_jaccl_versions,
    mac_checks.check_rdma,
    mac_checks.check_bridge,
    host_checks.check_peers,
)
HOST_FILE_CHECKS: tuple[Callable[[HostList], Iterator[Finding]], ...] = (
    host_file_checks.check_devices,
    host_file_checks.check_backend,
    host_file_checks.check_variables,
)
GROUP_CHECKS: tuple[Callable[[GroupContext], Iterator[Finding]], ...] = (
    group_checks.check_host_names,
    group_checks.check_shared_network,
)
LINK_CHECKS: tuple[Callable[[LinkReport, Sequence[str]], Iterator[Finding]], ...] = (
    link_checks.check_sums,
    link_checks.check_pairs,
)


def diagnose(
    answers: Sequence[Answer],
    python: str,
    network: str | None = None,
    named: HostList = _NO_HOSTS,
) -> Iterator[Finding]:
    """Run the checks of the host file, of each host, and of all hosts together.

    Args:
        python: path of the interpreter on the hosts.
        network: the network that the user asked for, such as 10.0.0.0/24.
        named: the hosts, as the user has named them.
    """
    yield from chain.from_iterable(check(named) for check in HOST_FILE_CHECKS)
    reports = {a.host: a.report for a in answers if a.report is not None}
    reference = next(iter(reports.values()), None)
    # A host that does not answer is assumed to be like the others.
    system = reference["system"] if reference else platform.system()
    version = reference["python"] if reference else platform.python_version()
    remedies = {
        a.host: Remedies(
            host="" if a.is_local else a.host,
            system=a.report["system"] if a.report else system,
            python=python,
        )
        for a in answers
    }
    for answer in answers:
        if answer.report is None:
            remedy = remedies[answer.host].reach(answer.problem, version)
            yield Finding("reached", answer.error, "failure", remedy, answer.host)
        else:
            way = "this machine" if answer.is_local else "by ssh"
            yield Finding("reached", way, host=answer.host)
    if reference is None:
        return
    for host, report in reports.items():
        context = _context_of(host, report, reference, remedies[host], named)
        for check in HOST_CHECKS:
            for finding in check(context):
                yield replace(finding, host=host)
    if len(answers) > 1:
        group = GroupContext(reports, remedies, network)
        for group_check in GROUP_CHECKS:
            yield from group_check(group)


def _context_of(
    name: str,
    report: HostReport,
    reference: HostReport,
    remedies: Remedies,
    named: HostList,
) -> HostContext:
    host = next((host for host in named.hosts if host.name == name), Host(name))
    devices = tuple(device for item in host.devices for device in item)
    return HostContext(report, reference, remedies, named.backend, host.slots, devices)


def diagnose_links(report: LinkReport, hosts: Sequence[str]) -> Iterator[Finding]:
    """Run the checks of the links between ranks.

    Args:
        hosts: the name of each rank's host.
    """
    if "error" in report:
        remedy = f"{report['command']}   # shows all of its output"
        yield Finding("job over all", report["error"], "failure", remedy)
        return
    for check in LINK_CHECKS:
        yield from check(report, hosts)
