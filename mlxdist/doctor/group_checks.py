"""Checks of all hosts together.

Each takes a GroupContext and yields findings; diagnosis.py lists them in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..launcher import interfaces
from ..launcher.interfaces import Interface
from .finding import Finding, GroupContext


def check_host_names(context: GroupContext) -> Iterator[Finding]:
    """Require different host names: with equal ones, Open MPI sums wrongly or crashes.

    It takes processes of equally named hosts for neighbours that share memory.
    """
    reports = context.reports
    counts = Counter(report["host"] for report in reports.values())
    for name, count in counts.items():
        if count > 1:
            hosts = [host for host, report in reports.items() if report["host"] == name]
            new_name = f"{name.partition('.')[0]}-{count}"
            remedy = context.remedies[hosts[-1]].rename_host(new_name)
            message = f"{', '.join(hosts)} have the same host name, {name}"
            yield Finding("host names", message, "failure", remedy)
    if len(counts) == len(reports):
        yield Finding("host names", ", ".join(counts))


def check_shared_network(context: GroupContext) -> Iterator[Finding]:
    """Expect a network that all hosts are in; require it if the user named one."""
    by_host = {
        host: interfaces.parse(report["network"])
        for host, report in context.reports.items()
    }
    if context.network is not None and "/" in context.network:
        yield _check_named_network(context.network, by_host)
        return
    first, *others = by_host.values()
    shared = [
        interface
        for interface in first
        if interface.kind not in ("loopback", "virtual")
        and all(interface.network in {x.network for x in some} for some in others)
    ]
    if shared:
        message = ", ".join(f"{x.network} ({x.kind})" for x in shared)
        yield Finding("shared network", message)
        return
    remedy = "name hosts by addresses of one network, or give it with --iface"
    message = f"none: {_listed(by_host)}"
    yield Finding("shared network", message, "warning", remedy)


def _check_named_network(
    name: str, by_host: Mapping[str, Sequence[Interface]]
) -> Finding:
    outside = [
        host
        for host, some in by_host.items()
        if not any(interface.is_in(name) for interface in some)
    ]
    if not outside:
        return Finding("shared network", f"{name}, as asked for")
    message = f"{', '.join(outside)} not in {name}: {_listed(by_host)}"
    remedy = "give --iface a network that all hosts are in"
    return Finding("shared network", message, "failure", remedy)


def _listed(by_host: Mapping[str, Sequence[Interface]]) -> str:
    """List each host's interfaces."""
    return "; ".join(
        f"{host}: {', '.join(map(str, some)) or 'none'}"
        for host, some in by_host.items()
    )
